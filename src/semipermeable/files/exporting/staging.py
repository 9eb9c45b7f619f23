"""Results too large to hold as bytes, or made of several files: written beside their place, then renamed, so that they
are there whole or not at all.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from semipermeable.errors import OutputError
from semipermeable.files.atomic import give_usual_permissions

__all__ = ["new_file", "new_folder"]


@contextmanager
def new_folder(target: Path) -> Generator[Path, None, None]:
    """Give a temporary folder that takes the place of `target` when the block ends well.

    Args:
        target: a path that is free, or an empty folder; folders above it are made.

    Raises:
        OutputError: if something is there, or it cannot be written; nothing is left behind then.
    """
    with _stage_beside(target) as stage:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{str(target)!r} is there already; remove it or give the name of a new folder")
        inner = stage / "result"
        inner.mkdir()
        yield inner
        give_usual_permissions(stage)
        os.replace(inner, target)  # noqa: PTH105 - the rename is what makes it atomic


@contextmanager
def new_file(target: Path) -> Generator[Path, None, None]:
    """Give a temporary path whose file takes the place of `target` when the block ends well.

    Args:
        target: the file; an existing one is replaced. Folders above it are made.

    Raises:
        OutputError: if it cannot be written; nothing is left behind then, and an old file is still there.
    """
    with _stage_beside(target) as stage:
        if target.is_dir():
            raise OutputError(f"cannot write {str(target)!r}: it is a folder; add a file name")
        yield stage / "result"
        give_usual_permissions(stage)
        os.replace(stage / "result", target)  # noqa: PTH105 - the rename is what makes it atomic


@contextmanager
def _stage_beside(target: Path) -> Generator[Path, None, None]:
    made: list[Path] = []
    try:
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".spm-", dir=target.parent))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except BaseException as error:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            step = "free some space or choose another disk" if full else "choose another place"
            raise OutputError(f"cannot write {str(target)!r}: {error.strerror or error}; {step}") from error
        raise
