"""What goes over the wire: OpenAI's images API with the fields that membranes add."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "AuditAnswer",
    "AuditRow",
    "DeletionAnswer",
    "ErrorAnswer",
    "HealthAnswer",
    "ImageRequest",
    "ImagesAnswer",
    "MembranesAnswer",
    "ModelsAnswer",
    "PoliciesAnswer",
    "ReadyAnswer",
]


def _clean(text: str) -> str:
    """Refuse what a database or a tokenizer cannot hold: a lone surrogate, a NUL character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text is not valid Unicode (a lone surrogate)") from error
    if "\0" in text:
        raise ValueError("the text holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_clean)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ImageRequest(_Wire):
    """`POST /v1/images/generations`."""

    prompt: Annotated[Text, Field(min_length=1)]
    """What to draw."""
    model: Text | None = None
    """The served model's name, or nothing."""
    n: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """Number of pictures; picture j has seed + j."""
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] = "auto"
    """"WIDTHxHEIGHT" in pixels, or "auto"."""
    response_format: Literal["b64_json"] = "b64_json"
    """Pictures come in the answer; there is no URL to fetch them from."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """File format of the pictures."""
    user: Annotated[Text, Field(max_length=256)] | None = None
    """Your own user's id; it is written to the audit record."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] | None = None
    """Of the first picture's noise; drawn at random if not given."""
    steps: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Classifier-free guidance; 1 is without."""
    negative_prompt: Text = ""
    """What to stay away from."""
    erase: Annotated[tuple[Annotated[Text, Field(max_length=200)], ...], Field(max_length=64)] = ()
    """Concepts to erase beside those of your policy."""


class Explanation(_Wire):
    """γ of one membrane for one picture."""

    concept: str
    """The concept."""
    gamma: float
    """γ in [0, 1]."""
    reason: str
    """Why."""
    source: Literal["policy", "request"]
    """Who asked for the membrane."""


class Picture(_Wire):
    """One picture."""

    b64_json: str
    """The file, base64."""
    seed: int
    """The seed that draws it again."""
    id: str
    """Its id in the audit log."""
    membranes: list[Explanation] | None = None
    """γ and its reason, where the server explains; null where it does not."""


class ImagesAnswer(_Wire):
    """Pictures and what was in force."""

    created: int
    """Unix time."""
    data: list[Picture]
    """The pictures."""
    size: str
    """Their size."""
    output_format: str
    """Their file format."""
    request_id: str
    """The request's id in the audit log."""
    policy: str
    """Policy and version, "NAME@VERSION", of the last picture; each picture's own is in the audit log."""
    missing: list[str]
    """Membranes that any of the pictures was drawn without, under a policy with fail = "open"."""


class ErrorBody(_Wire):
    """OpenAI's error object."""

    message: str
    """What was found, and what to do."""
    type: str
    """Kind of error."""
    param: str | None
    """The field at fault."""
    code: str | None
    """Stable short name."""


class ErrorAnswer(_Wire):
    """Any answer that is not 2xx."""

    error: ErrorBody
    """What went wrong."""


class Model(_Wire):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelsAnswer(_Wire):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class PolicyView(_Wire):
    """A policy as it is in force."""

    name: str
    version: str
    membranes: list[str]
    """Concepts required; "*" is every membrane there is."""
    missing: list[str]
    """Required, and not there."""
    fail: Literal["closed", "open"]
    permeability: Any
    strength: Any
    tenants: list[str]
    """Who draws under it; a tenant sees itself only."""


class PoliciesAnswer(_Wire):
    """`GET /v1/policies`."""

    state: int
    data: list[PolicyView]


class MembraneView(_Wire):
    """A membrane of the folder."""

    concept: str
    aliases: list[str]
    file: str
    sha256: str
    sites: int
    rank: int
    parameters: int
    base_model: str


class MembranesAnswer(_Wire):
    """`GET /v1/membranes`."""

    state: int
    data: list[MembraneView]


class AuditRow(_Wire):
    """One record; see the audit page of the documentation."""

    model_config = ConfigDict(extra="allow")

    id: int
    image: str
    request: str
    at: str
    tenant: str
    policy_version: str
    prompt: str
    seed: int


class AuditAnswer(_Wire):
    """`GET /v1/audit`."""

    data: list[AuditRow]
    next: int | None
    """Pass it as `after` for the next page; null at the end."""


class DeletionAnswer(_Wire):
    """`DELETE /v1/audit`."""

    tenant: str
    deleted: int


class HealthAnswer(_Wire):
    """`GET /healthz`."""

    status: Literal["ok"] = "ok"


class ProblemView(_Wire):
    """Something that is not as it should be."""

    file: str
    message: str
    kept: bool
    """The content read before is still in force."""


class ReadyAnswer(_Wire):
    """`GET /readyz`."""

    ready: bool
    state: int
    problems: list[ProblemView]
