"""A membrane's card: what it erases, where it came from and how to use it, as Markdown that the Hugging Face hub reads.

The text is a function of the membrane's file and of what the pictures were drawn with: no date, no machine, so equal
files give equal cards. A licence is not guessed; its author states it. The pictures, where there are any, are drawn
with captions of training: some that ask for the concept, and some that must stay.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from huggingface_hub import ModelCardData
from PIL import Image

from semipermeable.generation.drawing import Drawing, generate
from semipermeable.generation.grid import Row, comparison_grid
from semipermeable.generation.png import file_digest
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.training.captions import captions_for, spec_of
from semipermeable.zoo.spec import article

__all__ = ["Pictures", "card_prompts", "draw_pictures", "membrane_card"]

_BUNDLED = "zoo:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ("concept-erasure", "membrane", "semipermeable")
_UNKNOWN = "not recorded"
_NUM_EACH = 3
_STRIDE = 5
_MAX_ITEMS = 12
_WEIGHTS = {
    True: "the weights it was trained on",
    False: "**other weights than those it was trained on**",
    None: "the membrane does not say on which weights it was trained",
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """A before/after picture and what has to be said beside it.

    Args:
        file: name of the picture's file, which lies beside the card.
        model: what it was drawn on, as the user named it.
        same_weights: whether that denoiser has the weights the membrane was trained on; None if it does not say.
        seed: of every pair.
        steps: denoising steps.
        guidance: classifier-free guidance.
    """

    file: str
    model: str
    same_weights: bool | None
    seed: int
    steps: int
    guidance: float


def card_prompts(pipe: Any, membrane: Membrane, num_each: int = _NUM_EACH) -> tuple[list[str], list[str]]:
    """Choose prompts for a card's pictures.

    Args:
        pipe: the pipeline they are for; a bundled model has its own wordings.
        membrane: whose concept they are about.
        num_each: prompts of each kind.

    Returns:
        Prompts that ask for the concept, and prompts that must stay, near neighbours first among these.
    """
    captions = captions_for(membrane.concept, spec_of(pipe))
    near = _spread(captions.twins, num_each // 2)
    far = _spread([text for text in captions.anchors if text not in captions.twins], num_each - len(near))
    return _spread(captions.targets, num_each), [*near, *far]


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """Return `count` texts from all over a list, in its order.

    The list runs through styles within names: each pick is one further into its part, so that both change.
    """
    distinct = list(dict.fromkeys(texts))
    count = min(count, len(distinct))
    part = len(distinct) // count if count else 0
    return [distinct[index * part + index * _STRIDE % part] for index in range(count)]


def draw_pictures(
    pipe: Any, membrane: Membrane, *, seed: int, steps: int, guidance: float, progress: Any = None
) -> tuple[Image.Image, bool | None]:
    """Draw a card's prompts without and with a membrane, from the same noise.

    Args:
        pipe: the pipeline; bare again afterwards.
        membrane: what to draw with, gated by the default rule.
        seed: of every pair.
        steps: denoising steps.
        guidance: classifier-free guidance.
        progress: called with denoising steps done and in all, twice over.

    Returns:
        The grid, and whether the denoiser has the weights that the membrane was trained on (None: it does not say).

    Raises:
        AttachError, SiteError: if the membrane does not fit the pipeline.
        ConfigError: if the model's scheduler cannot take that many steps.
    """
    host = host_for(pipe)
    told = membrane.provenance.base_hash
    targets, kept = card_prompts(pipe, membrane)
    how: dict[str, Any] = {"seed": seed, "steps": steps, "guidance": guidance, "progress": progress}
    after = generate(pipe, [*targets, *kept], membrane, **how)
    before = generate(pipe, [*targets, *kept], **how)
    rows = [Row(new.job.prompt, (old.image, new.image), _gammas(new)) for old, new in zip(before, after, strict=True)]
    return comparison_grid(rows, ("before", "after"), across=2), told == host.base_hash() if told else None


def _gammas(drawing: Drawing) -> str:
    return ", ".join(f"γ {name} = {gamma:g}" for name, gamma in drawing.gamma.items())


def membrane_card(membrane: Membrane, file: Path, pictures: Pictures | None = None) -> str:
    """Write the card of a membrane file.

    Args:
        membrane: as `load` gave it.
        file: where it was read from; name, size and SHA-256 stand in the card.
        pictures: the before/after picture, if one was drawn.
    """
    concept, origin, gate = membrane.concept, membrane.provenance, membrane.gate
    bundled = origin.base_model.startswith(_BUNDLED)
    return _template().render(
        membrane=membrane,
        concept=concept,
        names=", ".join(_plain(name) for name in concept.names),
        front_matter=_front_matter(membrane),
        pictures=pictures,
        weights="" if pictures is None else _WEIGHTS[pictures.same_weights],
        what=_concept_rows(membrane),
        base=_base_rows(membrane),
        gate=None if gate is None else {"rule": _plain(gate.kind), **_pairs(gate.settings)},
        training=_training_rows(membrane),
        metrics=_pairs(origin.metrics),
        prompt=f"a picture of {article(concept.name)} {concept.name}",
        file=file.name,
        bundled=bundled,
        model=_model_name(origin.base_model),
        contents={
            "name": f"`{file.name}`",
            "bytes": f"{file.stat().st_size:,}",
            "SHA-256": f"`{file_digest(file)}`",
        },
    )


def _template() -> jinja2.Template:
    # Markdown, not HTML: `plain` escapes what comes from files.
    environment = jinja2.Environment(  # noqa: S701
        loader=jinja2.PackageLoader("semipermeable.generation"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": _plain, "shell": _shell, "quoted": _quoted, "table": _table}
    return environment.get_template("card.md")


def _front_matter(membrane: Membrane) -> str:
    base = membrane.provenance.base_model
    on_hub = bool(_HUB_ID.fullmatch(base))
    data = ModelCardData(
        library_name="semipermeable",
        pipeline_tag="text-to-image",
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        tags=["text-to-image", *_TAGS],
    )
    return data.to_yaml(line_break="\n").strip()


def _model_name(base: str) -> str:
    """Return what a reader loads the base model by; a name that is no hub id means nothing elsewhere."""
    if base.startswith(_BUNDLED):
        return base.removeprefix(_BUNDLED)
    return base if _HUB_ID.fullmatch(base) else "path/to/the/base/model"


def _concept_rows(membrane: Membrane) -> dict[str, str]:
    concept = membrane.concept
    return {
        "erases": ", ".join(_plain(name) for name in concept.names),
        "draws instead": _plain(concept.surrogate) or "what is left of the prompt",
        "keeps": ", ".join(_plain(phrase) for phrase in concept.keep) or "no phrase named",
        "size": f"{len(membrane.pairs)} sites, rank {membrane.rank}, {membrane.num_parameters:,} parameters",
    }


def _base_rows(membrane: Membrane) -> dict[str, str]:
    origin = membrane.provenance
    hashes = {"denoiser, SHA-256": origin.base_hash, "text encoder, SHA-256": origin.text_encoder_hash}
    return {
        "model": _plain(origin.base_model) or _UNKNOWN,
        "family": _plain(origin.family) or _UNKNOWN,
        "prediction": _plain(origin.prediction_type) or _UNKNOWN,
        **{label: f"`{_plain(value)}`" if value else _UNKNOWN for label, value in hashes.items()},
    }


def _training_rows(membrane: Membrane) -> dict[str, str]:
    origin = membrane.provenance
    return {
        "made with": _plain(f"semipermeable {origin.package_version}") if origin.package_version else _UNKNOWN,
        "seed": _UNKNOWN if origin.seed is None else str(origin.seed),
        **_pairs(origin.training),
    }


def _pairs(values: Mapping[str, Any]) -> dict[str, str]:
    """Show JSON values by name, floats to six digits; of a long list, how long it is."""
    return {_plain(key): _plain(_shown(value)) for key, value in sorted(values.items())}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        items = [_shown(item) for item in cast("list[Any]", value)]
        return ", ".join(items) if len(items) <= _MAX_ITEMS else f"{len(items)} entries"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in rows.items())])


def _quoted(text: str) -> str:
    """Write a text as Python does, in double quotes; backticks, which could end the block, by their number."""
    return json.dumps(text, ensure_ascii=False).replace("`", r"\u0060")


def _shell(word: str) -> str:
    """Quote a word for a POSIX shell, in double quotes where it needs any."""
    if re.fullmatch(r"[\w./:-]+", word):
        return word
    return '"' + re.sub(r'(["$`\\!])', r"\\\1", word) + '"'


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would read as markup: names come from files of strangers."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(text.split()))
