"""Write a file whole or not at all: temporary name in the same folder, fsync, rename, fsync of the folder."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from semipermeable.errors import OutputError

__all__ = ["check_apart", "give_usual_permissions", "write_atomically"]

_NEXT_STEP = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "your quota is used up; free some space, or choose another disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "the path is a folder; add a file name",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Some network file systems cannot sync a folder; the file itself is synced by then."""


def check_apart(target: Path, *inputs: Path) -> None:
    """Refuse to write over what a result is made from; to be called before the work.

    Args:
        target: the file to write.
        inputs: what is read for it; one that is missing counts for nothing here.

    Raises:
        OutputError: if `target` is one of them, by whatever path.
    """
    for one in inputs:
        if _is_same(target, one):
            raise OutputError(
                f"cannot write {str(target)!r}: {str(one)!r} is read for it and would be lost; choose another name"
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def give_usual_permissions(folder: Path) -> None:
    """Give files below a folder the permissions that the user's umask gives any new file, whoever wrote them.

    safetensors makes its files for their owner alone.
    """
    probe = folder / f".{secrets.token_hex(6)}.tmp"
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)


def write_atomically(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> None:
    """Write `data` to `path`; a failure leaves what was there before, and no other file.

    Args:
        path: the file to write; an existing one is replaced.
        data: its whole content, in one piece or in several.

    Raises:
        OutputError: if it cannot be written, with the reason and the next step.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(6)}.tmp"
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, target)  # noqa: PTH105 - the rename is what makes it atomic; tests make it fail
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        step = _NEXT_STEP.get(number or 0, "choose another path")
        raise OutputError(f"cannot write {str(target)!r}: {reason}; {step}") from error


def _write_and_sync(path: Path, data: bytes | Iterable[bytes]) -> None:
    # os.open and not tempfile: the file gets the permissions that the user's umask gives any new file.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        for piece in [data] if isinstance(data, bytes) else data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
