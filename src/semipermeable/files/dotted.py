"""LoRA files that keep dotted layer names: diffusers, PEFT, and the generic names that ComfyUI reads.

| keys | by | scale |
| --- | --- | --- |
| `unet.<site>.lora_A.weight` / `lora_B`, `….lora.down.weight` / `up` | diffusers | `lora_adapter_metadata`, else 1 |
| `unet.<attention>.processor.to_q_lora.down.weight` / `up` | older diffusers | 1 |
| `base_model.model.<site>.lora_A.weight` / `lora_B` | PEFT | `adapter_config.json` beside it |
| `diffusion_model.<original name>.lora_down.weight` / `lora_up`, `alpha` | ComfyUI, generic | alpha / k, else 1 |

The first three use diffusers' names of the sites; the last is resolved when a denoiser is met.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from semipermeable.files.container import Container, fail, strict_json

__all__ = [
    "COMFY_PREFIX",
    "CONFIG_NAME",
    "DIFFUSERS_KEY",
    "PEFT_PREFIX",
    "ScaleConfig",
    "dotted_parts",
    "is_dotted",
    "scale_config",
]

PEFT_PREFIX = "base_model.model."
COMFY_PREFIX = "diffusion_model."
DIFFUSERS_KEY = "lora_adapter_metadata"
"""Metadata key under which diffusers stores the fields of PEFT's LoraConfig, each with the component's prefix."""
CONFIG_NAME = "adapter_config.json"

_KEY = re.compile(
    r"(?:(?P<component>unet|transformer|text_encoder(?:_\d)?)\.)?(?P<site>.+?)"
    r"(?:\.processor\.(?P<old>to_[qkv]|to_out)_lora\.(?P<oldpart>down|up)\.weight"
    r"|\.(?P<part>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_DOWN = ("lora_A", "lora.down", "lora_down", "down")


def is_dotted(container: Container) -> bool:
    """Whether a file holds LoRA tensors with dotted names, and none of kohya's."""
    if any(name.startswith(("lora_unet_", "lora_te")) for name in container.entries):
        return False
    return any((match := _KEY.fullmatch(name)) and not match["alpha"] for name in container.entries)


def dotted_parts(container: Container) -> dict[str, dict[str, str]]:
    """Return site to part ("down", "up", "alpha") to tensor name.

    A site in ComfyUI's names keeps its prefix; the others are diffusers' names.

    Raises:
        MembraneFileError: on tensors of a text encoder, a repeated part, or a pair of which one half is missing.
    """
    found: dict[str, dict[str, str]] = {}
    for name in sorted(container.entries):
        match = _KEY.fullmatch(name)
        if match is None:
            message = f"tensor {name!r} is no part of a low-rank pair"
            fail(container.path, f"{message}; LoHa, LoKr, DoRA and biases are not read", name)
        if (match["component"] or "").startswith("text_encoder"):
            message = f"tensor {name!r} changes the text encoder, but a membrane acts on the denoiser only"
            fail(container.path, f"{message}; train it on the denoiser only, or remove those tensors", name)
        site = match["site"].removeprefix(PEFT_PREFIX)
        if match["old"]:
            site += "." + ("to_out.0" if match["old"] == "to_out" else match["old"])
        part = match["part"] or match["oldpart"]
        kind = "alpha" if match["alpha"] else "down" if part in _DOWN else "up"
        if kind in found.setdefault(site, {}):
            fail(container.path, f"tensors {found[site][kind]!r} and {name!r} are the same part of {site!r}", name)
        found[site][kind] = name
    for site, parts in found.items():
        for kind in ("down", "up"):
            if kind not in parts:
                fail(container.path, f"site {site!r} is incomplete: its {kind} weight is missing", site)
    return found


def scale_config(container: Container) -> "ScaleConfig | None":
    """Return what a file says of its scale outside the tensors: diffusers' metadata or PEFT's configuration; or None.

    Raises:
        MembraneFileError: if it is missing or not usable, or asks for more than a low-rank product.
    """
    if any(name.startswith(PEFT_PREFIX) for name in container.entries):
        return ScaleConfig(container.path, CONFIG_NAME, _peft_config(container.path))
    text = container.metadata.get(DIFFUSERS_KEY)
    if text is None:
        return None
    found = _object(container.path, DIFFUSERS_KEY, text)
    plain = {key.partition(".")[2]: value for key, value in found.items() if key.startswith(("unet.", "transformer."))}
    return ScaleConfig(container.path, DIFFUSERS_KEY, plain or found)


class ScaleConfig:
    """The fields of a LoraConfig that say by how much a low-rank product counts.

    Args:
        path: the file, for messages.
        where: the metadata key or file that holds the fields.
        fields: the fields.

    Raises:
        MembraneFileError: if they describe more than a low-rank product.
    """

    def __init__(self, path: str, where: str, fields: Mapping[str, Any]) -> None:
        self._path = path
        self._where = where
        self._fields = fields
        for unsupported in ("use_dora", "lora_bias", "fan_in_fan_out"):
            if fields.get(unsupported):
                self._fail(f"sets {unsupported!r}: it is more than low-rank pairs and cannot be read")
        kind = fields.get("peft_type", "LORA")
        if kind != "LORA":
            self._fail(f"has 'peft_type' {kind!r}; only LORA is a low-rank pair")
        patterns = fields.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            self._fail("has an 'alpha_pattern' that is no object")
        self._patterns = {self._plain(pattern): value for pattern, value in cast("dict[str, Any]", patterns).items()}

    def scale(self, site: str, rank: int) -> float:
        """Return alpha / rank of a site, alpha / √rank where the configuration says so.

        Raises:
            MembraneFileError: if its alpha is not a number other than 0.
        """
        alpha = self._fields.get("lora_alpha", rank)
        for (whole, name), value in self._patterns.items():
            if site == name or (not whole and site.endswith(f".{name}")):
                alpha = value
                break
        if type(alpha) not in (int, float) or not math.isfinite(alpha) or alpha == 0:
            self._fail(f"must give site {site!r} an alpha that is a number other than 0, found {alpha!r}")
        return alpha / (math.sqrt(rank) if self._fields.get("use_rslora") else rank)

    def _plain(self, pattern: str) -> tuple[bool, str]:
        """PEFT reads a pattern as a regular expression for the end of a name; only plain names are taken here."""
        name = re.sub(r"\\([.-])", r"\1", pattern.removeprefix("^"))
        if not re.fullmatch(r"[\w.-]+", name):
            self._fail(f"has the expression {pattern!r} in 'alpha_pattern'; only names of layers are read")
        return pattern.startswith("^"), name

    def _fail(self, message: str) -> NoReturn:
        fail(self._path, f"{self._where!r} {message}", self._where)


def _peft_config(path: str) -> dict[str, Any]:
    beside = Path(path).with_name(CONFIG_NAME)
    try:
        text = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"is a PEFT adapter, but {CONFIG_NAME} beside it cannot be read, which holds its scale"
        fail(path, f"{message}; keep both files in one folder", CONFIG_NAME, error)
    return _object(path, CONFIG_NAME, text)


def _object(path: str, what: str, text: str) -> dict[str, Any]:
    try:
        found = strict_json(text)
    except ValueError as error:
        fail(path, f"{what!r} is not JSON ({error})", what, error)
    if not isinstance(found, dict):
        fail(path, f"{what!r} must be a JSON object", what)
    return cast("dict[str, Any]", found)
