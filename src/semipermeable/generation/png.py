"""PNG files that know how they were made: text chunks with prompt, seed, membranes and γ."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semipermeable import __version__
from semipermeable.generation.drawing import Drawing

__all__ = ["file_digest", "picture_facts", "picture_name", "read_facts", "write_png"]

_TEXTS = ("prompt", "negative_prompt", "model", "software")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def picture_name(drawing: Drawing) -> str:
    """Return a file name for a drawing, e.g. "a-neon-icon-of-a-cat-seed0.png"; other prompts get other names."""
    prompt = drawing.job.prompt
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    if slug.replace("-", " ") != prompt or len(slug) > 60:
        slug = f"{slug[:60].strip('-')}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}".strip("-")
    return f"{slug}-seed{drawing.job.seed}.png"


def picture_facts(
    drawing: Drawing,
    *,
    model: str,
    membranes: Sequence[Mapping[str, Any]],
    strength: float,
    negative: str,
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    """Return what is written into a picture's file.

    Args:
        drawing: the picture.
        model: what it was drawn with, as the user named it.
        membranes: one mapping per membrane, e.g. {"concept": "cat", "file": "cat.safetensors", "sha256": "…"}.
        strength: the factor on γ.
        negative: negative prompt.
        steps: denoising steps.
        guidance: classifier-free guidance.
    """
    return {
        "prompt": drawing.job.prompt,
        "negative_prompt": negative,
        "seed": drawing.job.seed,
        "model": model,
        "steps": steps,
        "guidance": guidance,
        "membranes": list(membranes),
        "strength": strength,
        "gamma": drawing.gamma,
        "decisions": [asdict(row) for row in drawing.decisions],
        "software": f"semipermeable {__version__}",
    }


def write_png(image: Image.Image, facts: Mapping[str, Any], path: Path) -> None:
    """Write a picture with its facts: texts as they are, everything else as JSON, one chunk per fact."""
    chunks = PngInfo()
    for key, value in facts.items():
        chunks.add_itxt(key, value if key in _TEXTS else json.dumps(value, ensure_ascii=False, sort_keys=True))
    image.save(path, format="PNG", pnginfo=chunks)


def read_facts(path: Path) -> dict[str, Any]:
    """Read back what `write_png` wrote."""
    with Image.open(path) as picture:
        picture.load()
        texts = dict(getattr(picture, "text", {}))
    return {key: str(value) if key in _TEXTS else json.loads(value) for key, value in texts.items()}
