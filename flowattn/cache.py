"""Cache: compiled programs kept on disk, from one process to the next."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import platformdirs

from .errors import InputError, quoted

_VARIABLE, _OFF = "FLOWATTN_CACHE", "off"
# What JAX keeps: its own defaults, which leave out small programs, and ours.
_LIMITS = {
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0),
    "jax_persistent_cache_min_entry_size_bytes": (0, -1),
}


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
        return Path(given) if given else None
    own = platformdirs.user_cache_dir("flowattn")
    asked = folder or os.environ.get(_VARIABLE) or own
    if str(asked).strip().lower() == _OFF:
        return None
    place = _writable(asked)
    jax.config.update("jax_compilation_cache_dir", str(place))
    # Most programs are small, but there are many.
    for name, (default, ours) in _LIMITS.items():
        if getattr(jax.config, name) == default:
            jax.config.update(name, ours)
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


def _writable(asked: str | os.PathLike[str]) -> Path:
    """The folder for this machine in the one that is asked for.

    Raises `InputError` if it cannot be written to.
    """
    try:
        place = Path(asked).expanduser().absolute() / _machine()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = place / f".flowattn-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except (OSError, RuntimeError, ValueError) as error:  # also: a home of no user
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"compiled programs cannot be kept in {quoted(str(asked))}: {reason}; "
            f"choose another folder by {_VARIABLE}, or {_VARIABLE}={_OFF}"
        ) from None
    return place
