"""The model card and the contact sheet of a bundle: written from its measurements, never by hand."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semipermeable.zoo.recipe.icons import ICON_SETS
from semipermeable.zoo.spec import ZooSpec

__all__ = ["attribution", "contact_sheet", "model_card"]

SHOWN = ("cat", "dog", "apple", "castle", "guitar", "owl", "taxi", "rocket", "rose", "butterfly")
"""Objects on the contact sheet, if the model knows them."""


def contact_sheet(pipeline: Any, spec: ZooSpec, path: Path, *, steps: int, guidance: float) -> None:
    """Draw one row an object and one column a style, seed 0 everywhere, and write a PNG."""
    rows: list[Any] = []
    for name in [name for name in SHOWN if name in spec.object_names] or list(spec.object_names[:10]):
        captions = [spec.caption(name, style) for style in spec.styles]
        seeds = [torch.Generator().manual_seed(0) for _ in captions]
        drawn = pipeline(
            captions, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="np"
        )
        rows.append(np.concatenate(list(drawn.images), axis=1))
    sheet = (np.concatenate(rows, axis=0) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).quantize(
        128
    ).save(path, optimize=True)


def attribution(name: str) -> str:
    """Return ATTRIBUTION.md: whose drawings the model and its judges learned from."""
    rows = "\n".join(
        f"| `{icons.package}` {icons.version} | {icons.author} | {icons.licence} | {icons.url} |" for icons in ICON_SETS
    )
    return f"""# Whose drawings the bundled model "{name}" and its judges learned from

| set | author | licence | source |
| --- | --- | --- | --- |
{rows}

The pipeline's first weights were also trained on Fluent Emoji (MIT, Microsoft Corporation) and with names and tags from
`emojibase-data` 17.0.0 (MIT, Miles Johnson).

Changes: the drawings were scaled to 64×64 pixels, shifted and turned into the model's styles by filters; the model's
pictures are mixtures learned from them. CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/. Sets under
share-alike or
proprietary terms (OpenMoji, later EmojiOne, Apple, Facebook, JoyPixels) were not used.
"""


def _share(row: dict[str, Any]) -> str:
    low, high = row["wilson95"]
    return f"{row['right']} of {row['total']} ({row['share']:.3f}; {low:.3f} to {high:.3f})"


def model_card(spec: ZooSpec, measured: dict[str, Any]) -> str:
    """Return README.md of a bundle.

    Args:
        spec: what the model claims.
        measured: `drawing` (what `evaluate` returns), `judge`, `clip`, `autoencoder`, `memorised`, `sizes` and
            `lineage`, as `build` collects them.
    """
    drawing, judge, clip = measured["drawing"], measured["judge"], measured["clip"]
    memory, sizes = measured["memorised"], measured["sizes"]
    styles = "\n".join(
        f"| {style} | {row['object']['right']} of {row['object']['total']} | {row['style']['right']} of "
        f"{row['style']['total']} | {judge['by_style'][style]:.3f} | {measured['autoencoder'][style]['mean']:.1f} |"
        for style, row in drawing["by_style"].items()
    )
    groups = "\n".join(
        f"| {group} | {row['right']} of {row['total']} |" for group, row in drawing["by_group"].items() if row["total"]
    )
    twins = "\n".join(f"| {names} | {share:.3f} |" for names, share in judge["twin_groups"].items())
    canaries = "\n".join(
        f'| "{row["caption"]}" | {row["object"]}, {row["style"]} | {row["reproduced"]} of {row["of"]} '
        f"| {row['median']:.3f} | {row['median_to_others']:.3f} |"
        for row in memory["canaries"]
    )
    wrong = drawing["confusions"]
    parts = "\n".join(f"| {part} | {size / 1e6:.2f} MB |" for part, size in sizes.items())
    lineage = "\n".join(f"- {line}" for line in measured["lineage"])
    ordinary = memory["ordinary"]
    return _wrapped(f"""# Model card: `{spec.name}`

A small latent diffusion model that draws {len(spec.objects)} objects in {len(spec.styles)} styles at 64×64 pixels from
captions such as "{spec.caption(spec.object_names[0], spec.styles[-1])}". It exists so that concept erasure
can be shown, tested and taught without a network or a GPU. It is not a model for making art. Every number here was
written by `spm zoo build` and lies in `evaluation.json`; `spm zoo evaluate {spec.name}` prints those of the
drawings again.

![contact sheet: a row for each object, a column for each style ({", ".join(spec.styles)}); seed 0](contact.png)

## What is in the bundle

| part | size |
| --- | --- |
{parts}

{lineage}

## How well it draws

{drawing["pictures"]} pictures: the first of the fixed shuffle of `recipe/evaluate.py`, one seed each, used for
nothing else;
{drawing["steps"]} DDIM steps, guidance {drawing["guidance"]:g}; shares with 95 % Wilson intervals.

| | right |
| --- | --- |
| object | {_share(drawing["object"])} |
| style | {_share(drawing["style"])} |
| both | {_share(drawing["both"])} |

{len(wrong)} wrong objects, {sum(row["twins"] for row in wrong)} of them a near twin of what was asked for. CLIP score
{drawing["clip_score"]:.3f} (captions of other pictures: {drawing["clip_score_shuffled"]:.3f}). Fréchet
distance to real icons
in the judge's features {drawing["frechet"]:.2f}; that of held-out real drawings {measured["frechet_held_out"]:.2f}.

| style | object right | style right | judge on held-out real drawings: object | autoencoder PSNR, dB |
| --- | --- | --- | --- | --- |
{styles}

| group | object right |
| --- | --- |
{groups}

## The judges

The classifier and the small CLIP saw real drawings only, by seven designers in all styles, and share no weight
with each
other or with the pipeline (CLIP shares the vocabulary). Of each object one whole drawing was held out from
both, and from
the denoiser: {judge["drawings"]} drawings, {judge["pictures"]} pictures. The drawings that the denoiser
learned from are among
those the judges learned from: they know what the model should draw, and know drawings unlike any they saw less well.

| on held-out drawings | share right |
| --- | --- |
| object | {judge["object"]:.3f} |
| object or a near twin of it | {judge["object_or_twin"]:.3f} |
| style | {judge["style"]:.3f} |
| CLIP: caption among all {len(spec.objects) * len(spec.styles)} | {clip["top1_of_all_captions"]:.3f} |

CLIP score of held-out drawings with their captions {clip["score"]:.3f}, with others' {clip["score_shuffled"]:.3f}.

| near twins | judge on held-out drawings: object right |
| --- | --- |
{twins}

## What it knows by heart

Distance is the root mean square in [−1, 1]. Of {ordinary["pictures"]} pictures with ordinary captions the
nearest taught
picture lies at {ordinary["median"]:.3f} (median; least {ordinary["least"]:.3f}). Canaries are pictures
repeated in training
with captions that say nothing about them. One is reproduced if what its caption draws is nearer to it than
{memory["near"]:g} of the distance to any other taught picture.

| caption | picture | reproduced | median distance | to the nearest other |
| --- | --- | --- | --- | --- |
{canaries}

## Words

Each caption template, {sum(len(thing.aliases) for thing in spec.objects)} aliases ("kitty"), and a broader
word for each
group ({", ".join(spec.groups)}) were in training. "insect" is the broad concept with many terms that stands in
for explicit
content in the examples. Prompts beyond these words are spelled letter by letter and mean little to it.

Licences of the drawings: `ATTRIBUTION.md`.
""")


def _wrapped(text: str) -> str:
    """Wrap paragraphs at 120 columns; headings, tables, lists and pictures stay as they are."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(b if b[0] in "#|-!" else textwrap.fill(b, 120, break_long_words=False) for b in blocks) + "\n"
