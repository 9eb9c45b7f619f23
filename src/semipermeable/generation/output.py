"""Write results so that a failure leaves nothing half-written: to a temporary place beside the target, then rename."""

import errno
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from semipermeable.errors import OutputError
from semipermeable.files.atomic import give_usual_permissions

__all__ = ["check_writable", "explain", "staged_file", "staged_folder"]

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another place",
    errno.EEXIST: "there is a file of that name; choose another name or remove it",
    errno.EISDIR: "there is a folder of that name; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def explain(target: Path, error: OSError) -> OutputError:
    """Turn an operating-system error about `target` into a sentence with a next step."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another place")
    return OutputError(f"{str(target)!r} cannot be written: {reason}")


def check_writable(target: Path, *, folder: bool = False) -> None:
    """Find out whether a result can be written, before the work for it begins; leaves nothing behind.

    Args:
        target: the file, or the folder.
        folder: whether `target` is to be a folder.

    Raises:
        OutputError: if it cannot.
    """
    if not folder:
        _check_no_folder(target)
    where = target if folder else target.parent
    try:
        made = _make_folders(where)
        try:
            with tempfile.TemporaryFile(dir=where):
                pass
        finally:
            _remove_folders(made)
    except OSError as error:
        raise explain(target, error) from error


@contextmanager
def staged_folder(target: Path) -> Generator[Path, None, None]:
    """Give a temporary folder whose files move into `target` when the block ends well.

    Files of the same name are replaced; other files in `target` stay. If the block fails, `target` is as it was.

    Args:
        target: the folder; made if missing.

    Raises:
        OutputError: if it cannot be written, in the block or at the end.
    """
    made: list[Path] = []
    try:
        try:
            made = _make_folders(target)
            stage = Path(tempfile.mkdtemp(prefix=".spm-", dir=target))
        except OSError as error:
            raise explain(target, error) from error
        try:
            yield stage
            give_usual_permissions(stage)
            for path in sorted(stage.iterdir()):
                path.replace(target / path.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except BaseException as error:
        _remove_folders(made)
        if isinstance(error, OSError) and not isinstance(error, OutputError) and error.errno in _REASONS:
            raise explain(target, error) from error
        raise


@contextmanager
def staged_file(target: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `target` that is renamed to it when the block ends well.

    Args:
        target: the file; its folder is made if missing.

    Raises:
        OutputError: if it cannot be written, in the block or at the end.
    """
    _check_no_folder(target)
    with staged_folder(target.parent) as stage:
        yield stage / target.name


def _check_no_folder(target: Path) -> None:
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except OSError as error:
        raise explain(target, error) from error


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that are new, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(folders: list[Path]) -> None:
    """Remove folders made by `_make_folders`, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
