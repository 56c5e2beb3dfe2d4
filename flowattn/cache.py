"""Cache: compiled programs kept on disk, from one process to the next."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import platformdirs

from .errors import InputError

_VARIABLE, _OFF = "FLOWATTN_CACHE", "off"


def use_cache(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk, where later processes find them; commands do so
    by themselves.

    A program is compiled once for a version of JAX, a processor and the shapes of its
    arrays; without a cache, in every process. To be called before anything is compiled,
    since JAX takes one folder a process: one that you have given to JAX stays. Entries
    are never deleted: the folder may be, at any time.

    Args:
        folder: where; None: that of the environment variable FLOWATTN_CACHE ("off":
            nowhere), else a folder of this package among your caches.

    Returns:
        The folder that JAX uses; None if there is none.

    Raises:
        InputError: for a folder that cannot be written to.

    >>> place = use_cache()
    >>> place == use_cache("another")  # too late
    True
    """
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore
    if given is not None:
        return Path(given)
    asked = (
        folder or os.environ.get(_VARIABLE) or platformdirs.user_cache_dir("flowattn")
    )
    if str(asked) == _OFF:
        return None
    place = Path(asked).expanduser().absolute() / _machine()
    _require_writable(place)
    jax.config.update("jax_compilation_cache_dir", str(place))
    # Most programs are small, but there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place


def _machine() -> str:
    """A name for processors that run the same programs: a folder of caches may be
    shared by machines with others, on which a program would end the process.
    """
    flags = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        flags += sorted({x for x in lines if x.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(flags).encode()).hexdigest()[:16]


def _require_writable(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = place / f".flowattn-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"compiled programs cannot be kept in {place}: {error.strerror or error}; "
            f"choose another folder by {_VARIABLE}, or {_VARIABLE}={_OFF}"
        ) from None
