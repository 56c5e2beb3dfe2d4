"""Folders: the location of a store's files, on this machine or under a URL."""

import abc
import contextlib
import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import uuid
from pathlib import Path
from typing import Any

from ..errors import InputError, quoted

# Names of temporary files, ours and zarr's, before they get their final names.
_ASIDE = re.compile(r".*\.[0-9a-f]{32}\.partial")


def is_aside(name: str) -> bool:
    """Whether a file was left unfinished by a process that ended.

    >>> is_aside("zarr.0123456789abcdef0123456789abcdef.partial"), is_aside("x.partial")
    (True, False)
    """
    return _ASIDE.fullmatch(name) is not None


class Folder(abc.ABC):
    """Named files in one place; names have "/" between folders.

    `place` is the path or the URL as given; `path` the absolute path, None for a
    URL.
    """

    place: str
    path: Path | None

    @abc.abstractmethod
    def names(self, under: str = "") -> list[str]:
        """The entries directly in a folder; empty if there is none.

        Raises `NotADirectoryError` for a file.
        """

    @abc.abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""

    @abc.abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file that appears in one piece, replacing an existing one."""

    @abc.abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless one of that name exists: of several concurrent attempts,
        exactly one succeeds.
        """

    @abc.abstractmethod
    def refresh(self, name: str, content: bytes) -> None:
        """Set a file's modification time to now, if it still has this content."""

    @abc.abstractmethod
    def age(self, name: str) -> float | None:
        """Seconds since a file was written, by the clock of the file system, which is
        the same for all machines; None if unknown.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents; absent ones too."""


def folder_at(place: Any) -> Folder:
    """The folder at a path, `~` being the home folder, or at a URL that fsspec knows.

    Raises `InputError` for anything else, for the home of an unknown user, and for a
    URL that cannot be opened.
    """
    if not isinstance(place, str | os.PathLike):
        raise InputError(f"a store needs a place, a path or a URL, got {quoted(place)}")
    text = str(place).removeprefix("file://")
    if not text:
        raise InputError("a store needs a place, got an empty one")
    if "://" not in text:
        return LocalFolder(text)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(text)
    except Exception as error:  # each kind of URL has its own errors
        raise InputError(f"cannot open {text}: {error}") from None
    return _Remote(system, path.rstrip("/"), text)


def local_path(text: str) -> Path:
    """A path, with `~` and `~user` expanded.

    Raises `InputError` for the home of an unknown user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise InputError(
            f"{text}: there is no home folder {user}; for a folder of that name "
            f"write ./{text}"
        ) from None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class LocalFolder(Folder):
    """A folder of this machine's file systems, which may be shared with others."""

    def __init__(self, place: str):
        # Absolute, since other workers have other current folders.
        self._root = local_path(place).absolute()
        self.place, self.path = place, self._root

    def names(self, under: str = "") -> list[str]:
        try:
            return os.listdir(self._root / under)
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        # Opening a file makes a network file system look again, stat may not. Anything
        # but a regular file (a pipe) is not waited for.
        try:
            with open(self._root / name, "rb", opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, f"{name} is not a regular file")
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        # Never the folder itself: one that was moved or removed is not created again.
        parent = (self._root / name).parent
        if parent != self._root:
            parent.mkdir(exist_ok=True)
        with self._aside(name, content) as aside:
            aside.replace(self._root / name)

    def create(self, name: str, content: bytes) -> bool:
        target = self._root / name
        self._root.mkdir(parents=True, exist_ok=True)
        with self._aside(name, content) as aside:
            try:
                os.link(aside, target)
            except FileExistsError:
                # A network file system repeats a request whose reply was lost.
                return aside.stat().st_nlink == 2
            except FileNotFoundError:  # cleaned up by the owner of the store
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                try:
                    with target.open("xb") as file:
                        file.write(content)
                except FileExistsError:
                    return False
            return True

    @contextlib.contextmanager
    def _aside(self, name: str, content: bytes):
        """A file under a unique name."""
        aside = self._root / f"{name}.{uuid.uuid4().hex}.partial"
        try:
            aside.write_bytes(content)
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def refresh(self, name: str, content: bytes) -> None:
        with open(self._root / name, "rb") as file:
            if file.read() == content:
                # The very file that was read, whatever has the name by now.
                by_number = os.utime in os.supports_fd
                os.utime(file.fileno() if by_number else self._root / name)

    def age(self, name: str) -> float | None:
        with contextlib.suppress(FileNotFoundError), open(self._root / name) as file:
            with tempfile.TemporaryFile(dir=self._root) as new:
                new.write(b"now")
                new.flush()
                now = os.fstat(new.fileno()).st_mtime
            return now - os.fstat(file.fileno()).st_mtime
        return None

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# Errors of file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}


class _Remote(Folder):
    """A folder under a URL.

    `create` is exclusive if the service supports it (S3 and memory); otherwise it
    checks first and then writes.
    """

    path = None

    def __init__(self, system: Any, root: str, place: str):
        self.system, self.root, self.place = system, root, place

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def names(self, under: str = "") -> list[str]:
        # fsspec caches listings, and would not show what others write.
        self.system.invalidate_cache()
        path = self._at(under)
        try:
            if self.system.isfile(path):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
            found = self.system.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return [str(each).rstrip("/").rsplit("/", 1)[-1] for each in found]

    def read(self, name: str) -> bytes | None:
        try:
            return self.system.cat_file(self._at(name))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        self.system.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        try:
            self.system.pipe_file(self._at(name), content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError):
            self.system.invalidate_cache()
            if self.system.exists(self._at(name)):
                return False
            self.write(name, content)
        return True

    def refresh(self, name: str, content: bytes) -> None:
        if self.read(name) == content:
            self.write(name, content)

    def age(self, name: str) -> float | None:
        probe = f"{name}.{uuid.uuid4().hex}.partial"
        try:
            self.write(probe, b"now")
            self.system.invalidate_cache()
            now, then = (self.system.modified(self._at(n)) for n in (probe, name))
            return (now - then).total_seconds()
        except (FileNotFoundError, NotImplementedError, AttributeError):
            return None
        finally:
            self.remove(probe)

    def remove(self, name: str) -> None:
        # fsspec reads a name as a pattern, and names may contain its wildcards.
        with contextlib.suppress(FileNotFoundError):
            self.system.rm(glob.escape(self._at(name)), recursive=True)
