"""Tests run in double precision, with shapes checked and no silent promotion."""

import gc
import os
from pathlib import Path

import jax
import jaxtyping
import matplotlib
import pytest

# A program, not tests; atheris, which it imports, has no wheels for most machines.
collect_ignore = ["tests/fuzz_for_long.py"]

# The same small programs are compiled by many tests, and by the commands they start:
# kept on disk, for each worker by itself, they are compiled once.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
_COMPILED = {
    "jax_compilation_cache_dir": str(
        Path(__file__).parent / ".pytest_cache" / f"jax-{_WORKER}"
    ),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
# Two thirds of the time to compile for a processor go to the emitters of fused loops
# that are XLA's default, and to code that is made in parts. `XLA_FLAGS= pytest` tests
# what users get. A flag that XLA does not know ends the process, without a word: the
# first is no longer one in 0.11.
if jax.__version_info__ < (0, 12):
    _flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__ < (0, 11):
        _flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(_flags))
for _name, _value in _COMPILED.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)

# Traced programs are many small objects that live: looking through them for garbage is
# a tenth of the time.
gc.set_threshold(200_000, 50, 100)

matplotlib.use("agg")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("flowattn", "beartype.beartype"):
    import flowattn.plotting

    # Imported here, though the packages wait until their names are used.
    for _package in (flowattn, flowattn.systems):
        for _name in dir(_package):
            getattr(_package, _name)
    from flowattn.numerics.programs import clear_caches_if_many

# Pictures are looked at elsewhere.
flowattn.plotting.STYLE |= {
    "savefig.dpi": 50,
    "figure.constrained_layout.use": False,
}


def _compile(quickly: bool):
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quickly)


# Most tests, and the fixtures of modules, only compile: do that fast.
_compile(quickly=True)


@pytest.fixture(autouse=True)
def _compile_what_computes_with_optimizations(request):
    """Tests that compute run as users would."""
    if request.node.get_closest_marker("computes"):
        _compile(quickly=False)
        yield
        _compile(quickly=True)
    else:
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """A worker runs hundreds of tests."""
    yield
    clear_caches_if_many()


@pytest.fixture(autouse=True)
def _double_precision():
    """The command line sets the precision of its process: put it back."""
    yield
    jax.config.update("jax_enable_x64", True)
