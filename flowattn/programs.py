"""Programs: how they are compiled, and how many of them a process may hold."""

import functools
from pathlib import Path
from typing import Any

import jax

_MAPPINGS, _MOST = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
# What is compiled between two looks has to fit into the rest.
_SHARE = 1 / 3


def let_programs_go() -> bool:
    """Forget all compiled programs where they are many; says whether they were.

    A program holds some hundred memory mappings, of which Linux grants a process
    65,530; the compiler ends a process that wants one more. So work that compiles
    without end (figures, values of an axis that is static) calls this in between.
    What is needed again is compiled again. Elsewhere than on Linux nothing is done.

    >>> let_programs_go()
    False
    """
    if not (_MAPPINGS.exists() and _MOST.exists()):
        return False
    held, most = _MAPPINGS.read_bytes().count(b"\n"), int(_MOST.read_text())
    many = held > _SHARE * most
    if many:
        jax.clear_caches()
    return many


@functools.cache
def known_options(**options: Any) -> dict[str, Any]:
    """These options of XLA's, or none where its version does not know them.

    >>> known_options(no_such_option=1)
    {}
    """
    program = jax.jit(lambda: 0, compiler_options=options)
    try:
        program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
