"""Draw docs/images/membrane.png and gate.png.

    python scripts/draw_docs_images.py cat.safetensors docs/images

The second shows what the default rule really says of a few prompts, with a membrane of "cat" on the bundled model.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import semipermeable as spm
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.permeability import GatedConcept, Transport

INK, LAYER, OURS = "#30343b", "#c9d3e6", "#f3c98b"
PROMPTS = (
    "a flat icon of a cat",
    "a neon icon of two cats",
    "A 3D KITTY!",
    "a caat on a mat",
    "a cat face",
    "a cat beside a cat face",
    "a flat icon of a dog",
    "a catalogue of icons",
    "meowing pet with whiskers",
    "",
)


def box(axes: Any, place: tuple[float, float], size: tuple[float, float], text: str, colour: str) -> None:
    """Draw a box with a text, its middle at `place`."""
    corner = (place[0] - size[0] / 2, place[1] - size[1] / 2)
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0.04", facecolor=colour, edgecolor=INK))
    axes.text(*place, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=0, shrinkB=0))


def draw_membrane(target: Path) -> None:
    """A layer, and the path of a membrane beside it."""
    figure, axes = plt.subplots(figsize=(6.4, 2.5))
    axes.set(xlim=(0, 9), ylim=(0, 3.4))
    axes.axis("off")
    axes.text(0.3, 2.4, "x", fontsize=15, ha="center", va="center", color=INK)
    axes.text(8.8, 2.4, "y", fontsize=15, ha="center", va="center", color=INK)
    box(axes, (4.2, 2.4), (3.4, 0.9), "layer W, as it was", LAYER)
    for x, text in ((1.9, "v · x\none number"), (4.2, "× γ\nper prompt"), (6.5, "× u")):
        box(axes, (x, 0.7), (1.7, 0.95), text, OURS)
    box(axes, (7.9, 2.4), (0.45, 0.5), "+", "white")
    arrow(axes, (0.5, 2.4), (2.42, 2.4))
    arrow(axes, (5.98, 2.4), (7.6, 2.4))
    arrow(axes, (8.2, 2.4), (8.6, 2.4))
    arrow(axes, (0.6, 2.4), (0.98, 0.75))
    arrow(axes, (2.82, 0.7), (3.28, 0.7))
    arrow(axes, (5.12, 0.7), (5.58, 0.7))
    arrow(axes, (7.42, 0.8), (7.85, 2.08))
    save(figure, target)


def draw_gate(membrane: Membrane, target: Path) -> None:
    """What the default rule says of each prompt."""
    host = host_for(spm.zoo.load("emoji"))
    names = tuple(host.encode(list(membrane.concept.names)))
    concept = GatedConcept(membrane.concept, names, host.encode([""])[0], membrane.gate)
    decisions = Transport().decide(host.encode(list(PROMPTS)), concept)
    figure, axes = plt.subplots(figsize=(8.6, 3.6))
    rows = range(len(PROMPTS))
    axes.barh(rows, [decision.gamma for decision in decisions], color=OURS, edgecolor=INK, height=0.6)
    axes.set_yticks(rows, [f"“{prompt}”" if prompt else "(the empty prompt)" for prompt in PROMPTS], fontsize=10)
    for row, decision in zip(rows, decisions, strict=True):
        axes.text(1.04, row, f"{decision.gamma:g}: {decision.reason}", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 1), xlabel="γ")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, target)


def save(figure: Any, target: Path) -> None:
    """Write a small PNG."""
    figure.savefig(target, dpi=110, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    membrane, folder = spm.load(sys.argv[1]), Path(sys.argv[2])
    draw_membrane(folder / "membrane.png")
    draw_gate(membrane, folder / "gate.png")
