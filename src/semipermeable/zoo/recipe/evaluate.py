"""How well a bundled model draws what it claims: judged objects and styles with Wilson intervals, CLIP score, FID.

Prompts are a fixed shuffle of every (object, style) pair with the bundle's own seed numbers; they are used for
nothing else.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.files.atomic import write_atomically
from semipermeable.rates import wilson_interval
from semipermeable.zoo.judges import FeatureStatistics

__all__ = ["PROMPT_SEED", "evaluate", "prompts", "score"]

PROMPT_SEED = 20_000
"""Seed of the shuffle of pairs; picture number i is drawn with seed `PROMPT_SEED + i`."""


def prompts(spec: zoo.ZooSpec, count: int) -> list[tuple[int, int]]:
    """Return the first `count` (object, style) index pairs of the fixed shuffle, repeated if there are fewer pairs."""
    pairs = [(o, s) for o in range(len(spec.objects)) for s in range(len(spec.styles))]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(PROMPT_SEED)).tolist()
    return [pairs[order[i % len(pairs)]] for i in range(count)]


def _share(right: Tensor) -> dict[str, Any]:
    hits, total = int(right.sum()), len(right)
    return {"right": hits, "total": total, "share": hits / max(1, total), "wilson95": wilson_interval(hits, total)}


def score(spec: zoo.ZooSpec, asked: Tensor, seen: Tensor) -> dict[str, Any]:
    """Return the shares of right verdicts and the confusions between near twins.

    Args:
        spec: what the model claims.
        asked: (N, 2) object and style asked for.
        seen: (N, 2) object and style the judge saw.
    """
    right = asked == seen
    by_style = {
        style: {name: _share(right[asked[:, 1] == s, k]) for k, name in enumerate(("object", "style"))}
        for s, style in enumerate(spec.styles)
    }
    groups = [thing.group for thing in spec.objects]
    rows = asked[:, 0].tolist()
    by_group = {
        group: _share(right[torch.tensor([groups[o] == group for o in rows], dtype=torch.bool), 0])
        for group in spec.groups
    }
    confusions = [
        {
            "asked": spec.objects[o].name,
            "seen": spec.objects[v].name,
            "twins": spec.objects[v].name in spec.objects[o].twins,
        }
        for o, v in zip(rows, seen[:, 0].tolist(), strict=True)
        if o != v
    ]
    return {
        "object": _share(right[:, 0]),
        "style": _share(right[:, 1]),
        "both": _share(right.all(1)),
        "by_style": by_style,
        "by_group": by_group,
        "confusions": confusions,
    }


def evaluate(
    name: str | Path,
    out: Path | None = None,
    *,
    count: int = 500,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 8,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw the fixed prompts with a bundled model and judge them.

    Args:
        name: bundled model, or a bundle's folder.
        out: JSON file to write, its folder too; rewritten after every batch, so that a stopped run leaves the
            pictures so far.
        count: pictures.
        steps: DDIM steps.
        guidance: scale of classifier-free guidance.
        batch: pictures a call; it changes nothing else, each picture has its own seed.
        progress: whether to show a bar.

    Returns:
        What `score` returns, the mean CLIP score of pictures with their own captions and with each other's, the
        Fréchet distance to real icons in the judge's features, and the settings.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    if count < 2:
        raise ConfigError(f"an evaluation needs at least 2 pictures, not {count}")
    pipeline = zoo.load(name)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    judge, clip, spec = zoo.judge(name), zoo.clip(name), zoo.spec(name)
    pairs = prompts(spec, count)
    seen: list[Tensor] = []
    features: list[Tensor] = []
    embedded: list[Tensor] = []
    read: list[Tensor] = []
    result: dict[str, Any] = {}
    for first in tqdm(range(0, count, batch), desc="evaluate", disable=not progress):
        part = pairs[first : first + batch]
        captions = [spec.caption(spec.objects[o].name, spec.styles[s]) for o, s in part]
        seeds = [torch.Generator().manual_seed(PROMPT_SEED + first + i) for i in range(len(part))]
        drawn: Any = pipeline(
            captions, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="pt"
        )
        seen.append(torch.stack(list(judge(drawn.images)), dim=1))
        features.append(judge.features(drawn.images))
        embedded.append(clip.image_features(drawn.images))
        read.append(clip.text_features(captions))
        verdicts = torch.cat(seen)
        result = {
            "model": spec.name,
            "pictures": len(verdicts),
            "steps": steps,
            "guidance": guidance,
            "prompt_seed": PROMPT_SEED,
            **score(spec, torch.tensor(pairs[: len(verdicts)]), verdicts),
            **_against_text(torch.cat(embedded), torch.cat(read)),
        }
        if out is not None:
            _write(out, result)
    result["frechet"] = FeatureStatistics.of(torch.cat(features)).distance(zoo.real_statistics(name))
    if out is not None:
        _write(out, result)
    return result


def _against_text(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Return the mean CLIP score of pictures with their captions, and with the captions of the next picture."""
    return {
        "clip_score": float((images * texts).sum(1).mean()),
        "clip_score_shuffled": float((images * texts.roll(1, 0)).sum(1).mean()),
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
