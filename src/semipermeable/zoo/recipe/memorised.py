"""What the model learned by heart: distances of its pictures to the pictures it was taught.

A distance is the root mean square of the difference of two pictures in [−1, 1]. A canary is reproduced if what its
caption draws is nearer to it than to every other taught picture, and by a factor: less than `NEAR` of that distance.
Absolute distances say little, because the autoencoder alone loses more in one style than in another.
"""

from typing import Any

import torch
from torch import Tensor

from semipermeable.zoo.spec import ZooSpec

__all__ = ["NEAR", "memorised", "nearest"]

NEAR = 0.8
"""Largest ratio of the distances to a canary and to the nearest other taught picture at which it is reproduced."""
SEED = 30_000
"""First of the seeds of these pictures; no other measure uses them."""


def nearest(pictures: Tensor, taught: Tensor) -> Tensor:
    """Return the distance of each picture (B, 3, 64, 64) in [0, 1] to the nearest of `taught` (N, 3, 64, 64)."""
    flat, rows = 2 * pictures.flatten(1), taught.flatten(1)
    best = torch.full((len(flat),), torch.inf)
    for part in rows.split(1024):
        best = torch.minimum(best, torch.cdist(flat, 2 * part).amin(1))
    return best / flat.shape[1] ** 0.5


def memorised(
    pipeline: Any,
    spec: ZooSpec,
    canaries: Tensor,
    taught: Tensor,
    *,
    ordinary: int,
    repeats: int,
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    """Draw every canary's caption and some ordinary captions, and measure distances.

    Args:
        pipeline: the model.
        spec: what it was taught.
        canaries: (canaries, 3, 64, 64) in [0, 1].
        taught: the pictures of its training (N, 3, 64, 64) in [0, 1].
        ordinary: ordinary captions drawn.
        repeats: pictures of each canary's caption, one seed each.
        steps: DDIM steps.
        guidance: scale of classifier-free guidance.
    """
    captions = list(spec.captions())
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(SEED))[:ordinary].tolist()

    def draw(texts: list[str]) -> Tensor:
        drawn: list[Tensor] = []
        for first in range(0, len(texts), 8):
            part = texts[first : first + 8]
            seeds = [torch.Generator().manual_seed(SEED + first + i) for i in range(len(part))]
            out = pipeline(part, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="pt")
            drawn.append(out.images)
        return torch.cat(drawn)

    distances = nearest(draw([captions[i] for i in order]), taught)
    rows: list[dict[str, Any]] = []
    for canary, picture in zip(spec.canaries, canaries, strict=True):
        drawn = draw([canary.caption] * repeats)
        apart, others = nearest(drawn, picture[None]), nearest(drawn, taught)
        rows.append(
            {
                "caption": canary.caption,
                "object": canary.object,
                "style": canary.style,
                "median": float(apart.median()),
                "median_to_others": float(others.median()),
                "reproduced": int((apart < NEAR * others).sum()),
                "of": repeats,
            }
        )
    return {
        "near": NEAR,
        "ordinary": {
            "pictures": len(distances),
            "median": float(distances.median()),
            "least": float(distances.min()),
        },
        "canaries": rows,
    }
