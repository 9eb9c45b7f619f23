"""What a user sees when something goes wrong: one sentence with the next step on stderr, and an exit code.

Exit codes: 0 all is well; 1 a result that misses its bar; 2 a mistake that the user can mend; 130 stopped by Ctrl-C.
Anything else is a bug of ours and keeps its traceback.
"""

import errno
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from semipermeable.errors import SemipermeableError

__all__ = ["USER_ERROR", "fail", "guarded"]

USER_ERROR = 2
_INTERRUPTED = 130
P = ParamSpec("P")
R = TypeVar("R")


def fail(sentence: str) -> typer.Exit:
    """Print a sentence on stderr and return the exit to raise."""
    typer.echo(f"spm: {' '.join(sentence.split())}", err=True)
    return typer.Exit(USER_ERROR)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user can mend into one sentence and exit code 2, and Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SemipermeableError as error:
            raise fail(str(error)) from error
        except KeyboardInterrupt as error:
            typer.echo("\nspm: stopped; nothing half-written was left behind.", err=True)
            raise typer.Exit(_INTERRUPTED) from error
        except MemoryError as error:
            raise fail(_OUT_OF_MEMORY) from error
        except OSError as error:
            if error.errno not in _MENDABLE:
                raise
            raise fail(_MENDABLE[error.errno].format(where=repr(error.filename or "a file"))) from error
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise fail(_OUT_OF_MEMORY) from error

    return run


_OUT_OF_MEMORY = "out of memory; draw or train fewer pictures at once (--batch-size 1), or use --device cpu"
_DISK_FULL = "the disk is full; free some space or write to another place with --out"
_DENIED = "{where} cannot be written or read: permission denied; choose a place that you may use"
_MENDABLE = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.ENOMEM: _OUT_OF_MEMORY,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENAMETOOLONG: "the name {where} is too long; choose or give a shorter one",
    errno.EROFS: "{where} lies on a read-only file system; choose another place",
}
