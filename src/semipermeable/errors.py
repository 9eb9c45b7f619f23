"""Every error this package raises on purpose, one class per kind of mistake.

A message says what was found, where, what was expected, and the next step. The command line turns any of these into one
sentence and exit code 2; everything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchitectureError",
    "AttachError",
    "AuditError",
    "CalibrationError",
    "ConceptError",
    "ConfigError",
    "DivergenceError",
    "ExportError",
    "MembraneError",
    "MembraneFileError",
    "ModelError",
    "OutputError",
    "PermeabilityError",
    "PolicyError",
    "PromptError",
    "RefusedError",
    "SemipermeableError",
    "SignatureError",
    "SiteError",
    "SiteNotFiredError",
    "StudioError",
    "UnknownNameError",
    "UnknownPromptError",
    "ZooError",
    "closest",
]


class SemipermeableError(Exception):
    """Base of all errors below."""


class ConceptError(SemipermeableError, ValueError):
    """A concept, or a concept file, is not usable."""


class MembraneError(SemipermeableError, ValueError):
    """The content of a membrane is inconsistent (shapes, NaN, missing sites)."""


class MembraneFileError(MembraneError):
    """A membrane file cannot be read; `key` names the tensor or metadata key at fault, if any."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class SiteError(SemipermeableError, ValueError):
    """A membrane names a site that the denoiser does not have, or whose shape differs."""


class ArchitectureError(SemipermeableError, TypeError):
    """The pipeline belongs to a family that no host supports."""


class ModelError(SemipermeableError):
    """A model cannot be found, read, or is not a text-to-image pipeline."""


class AttachError(SemipermeableError, RuntimeError):
    """Membranes cannot be attached to this pipeline in its present state."""


class SiteNotFiredError(AttachError):
    """A denoiser call finished although a site with γ ≠ 0 never ran: the picture would have been drawn bare."""


class PermeabilityError(SemipermeableError, ValueError):
    """A permeability rule or its value is not usable."""


class UnknownPromptError(PermeabilityError):
    """A row's prompt embedding was not produced by this pipeline and `on_unknown="error"`."""


class CalibrationError(PermeabilityError):
    """A gate cannot be fitted, or the stored one does not belong to this text encoder."""


class ConfigError(SemipermeableError, ValueError):
    """A training configuration is not usable."""


class DivergenceError(SemipermeableError, RuntimeError):
    """Training diverged; `checkpoint` is the last good state on disk, if one was asked for."""

    def __init__(self, message: str, *, checkpoint: str | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class PromptError(SemipermeableError, ValueError):
    """A prompt is empty or malformed."""


class OutputError(SemipermeableError, OSError):
    """A result cannot be written."""


class ExportError(SemipermeableError, ValueError):
    """A membrane cannot be expressed in the asked-for format."""


class SignatureError(SemipermeableError):
    """A file cannot be signed, or is not what the owner of a key signed."""


class ZooError(SemipermeableError):
    """A bundled model is missing, damaged or cannot be built."""


class PolicyError(SemipermeableError, ValueError):
    """A server's configuration, policies or keys are not usable."""


class AuditError(SemipermeableError, RuntimeError):
    """The audit log cannot be read or written."""


class StudioError(SemipermeableError, ValueError):
    """The studio cannot do what was asked of it now."""


class RefusedError(SemipermeableError):
    """A server refuses a request.

    Args:
        message: what was found, expected, and the next step; it goes to the client.
        status: HTTP status.
        code: short stable name, e.g. "queue_full".
        param: the request field at fault, or None.
        retry_after: seconds after which the same request may succeed, or None.
    """

    def __init__(
        self, message: str, *, status: int, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class UnknownNameError(SemipermeableError, LookupError):
    """A name is not in a registry; the message suggests close ones."""


def closest(name: str, known: Iterable[str], *, what: str) -> str:
    """Return a sentence that says `name` is unknown and suggests close names.

    Args:
        name: what was asked for.
        known: the names that exist.
        what: the kind of thing, e.g. "bundled model".
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = (
        f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else f"; known: {', '.join(names) or 'none'}."
    )
    return f"unknown {what} {name!r}{hint}"
