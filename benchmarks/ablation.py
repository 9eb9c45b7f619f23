"""Switch each part of the preset "fast" off in turn and judge the membrane, held open on every prompt.

Its sibling goes first, and stays off: with it there is little left to see of what the other parts do.

    python benchmarks/ablation.py

Trains on "cat" in the bundled model once per variant and writes `benchmarks/results/ablation.json`: share of target
pictures judged as the concept, and as one of its near twins; share of them whose style is right, and the judge's doubt
about it; share of other objects and styles judged right (a third of them near neighbours); seconds of training. All
variants draw the same prompts from the same noise.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

from semipermeable import __version__, attach, erase, zoo
from semipermeable.training import TrainConfig

PARTS = {
    "the word for the group": {},
    "no fine-tuning (closed form alone)": {"num_steps": 0},
    "no closed form": {"closed_form": False},
    "surrogate not in the wording": {"surrogate_in_wording": False},
    "one η for all objects (1.5)": {"negative_guidance": 1.5},
    "three captions on runs of 12 steps": {"num_trajectories": 3, "sampling_steps": 12},
    "no reuse of trajectories": {"reuse_trajectories": False},
    "frozen predictions in every step, with an unneeded half": {"cache_frozen": False, "skip_unconditional": False},
    "Gaussian anchors": {"anchors": "gaussian"},
    "no share of near neighbours": {"twin_share": 0.0},
    "one row, four anchors": {"batch_size": 1, "num_anchors": 4},
    "no anchoring": {"num_anchors": 0},
}
VARIANTS = {"fast": {}, **{name: {"sibling_surrogate": False, **off} for name, off in PARTS.items()}}
STEPS, GUIDANCE, BATCH = 25, 4.0, 24


def target_rows(spec, concept, count):
    """(object, style, template) of prompts about the concept; style and object take turns."""
    if concept in spec.styles:
        names = spec.object_names
        return [(names[(7 * i) % len(names)], concept, i % 4) for i in range(count)]
    styles = spec.styles
    return [(concept, styles[i % len(styles)], i // len(styles) % 4) for i in range(count)]


def kept_rows(spec, concept, count):
    """(object, style, template) of other prompts, every third about a near neighbour.

    A neighbour with the concept's own word in its name ("cat face") counts like any other object, not as one of these.
    """
    generator = torch.Generator().manual_seed(11)
    objects = [thing for thing in spec.object_names if thing != concept]
    styles = [style for style in spec.styles if style != concept]
    near = (
        () if concept in spec.styles else [twin for twin in spec.object(concept).twins if concept not in twin.split()]
    )
    picked = torch.randint(1 << 30, (count, 2), generator=generator).tolist()
    return [
        (near[i % len(near)] if near and i % 3 == 0 else objects[a % len(objects)], styles[b % len(styles)], i % 4)
        for i, (a, b) in enumerate(picked)
    ]


def draw(pipe, spec, rows, seed):
    """Draw one picture per row, (rows, 3, 64, 64) in [0, 1]; noise depends on seed and row alone."""
    prompts = [spec.caption(name, style, template=template) for name, style, template in rows]
    noise = torch.randn(len(rows), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    parts = [
        pipe(
            prompts[i : i + BATCH],
            latents=noise[i : i + BATCH],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
        ).images
        for i in range(0, len(rows), BATCH)
    ]
    return torch.cat(parts)


def right(judge, images, rows):
    """Share of pictures with the right object, with the right style, the objects seen, and doubt about the style.

    The doubt is the judge's mean -log p of the style that was asked for: it moves before a style is lost.
    """
    objects, styles = judge.logits(images)
    seen = [judge.objects[i] for i in objects.argmax(1).tolist()]
    asked = torch.tensor([judge.styles.index(row[1]) for row in rows])
    objects_right = sum(a == row[0] for a, row in zip(seen, rows, strict=True)) / len(rows)
    styles_right = float((styles.argmax(1) == asked).float().mean())
    doubt = -float(styles.log_softmax(1)[torch.arange(len(rows)), asked].mean())
    return objects_right, styles_right, seen, doubt


def measure(pipe, spec, judge, concept, num_target, num_kept):
    """Judge the pipeline as it is now."""
    is_style = concept in spec.styles
    rows = target_rows(spec, concept, num_target)
    objects, styles, seen, doubt = right(judge, draw(pipe, spec, rows, 1), rows)
    rows = kept_rows(spec, concept, num_kept)
    kept_objects, kept_styles, *_ = right(judge, draw(pipe, spec, rows, 2), rows)
    near = () if is_style else spec.object(concept).twins
    return {
        "target": styles if is_style else objects,
        "twins": None if is_style else sum(name in near for name in seen) / num_target,
        "other_axis": objects if is_style else styles,
        "kept_objects": kept_objects,
        "kept_styles": kept_styles,
        "style_doubt": None if is_style else round(doubt, 4),
    }


def table(result):
    """Return the figures as a Markdown table."""
    lines = [
        "| variant | target | its twins | other axis | kept objects | kept styles | style doubt | seconds |",
        "|" + " --- |" * 8,
    ]
    for name, row in {"base model": result["base"], **result["variants"]}.items():
        keys = ("target", "twins", "other_axis", "kept_objects", "kept_styles", "style_doubt")
        shown = ["–" if row[key] is None else f"{row[key]:.2f}" for key in keys]
        lines.append(f"| {name} | {' | '.join(shown)} | {row.get('seconds', '–')} |")
    return "\n".join(lines)


def main():
    """Run all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--num-target", type=int, default=24)
    parser.add_argument("--num-kept", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe, spec, judge = zoo.load("emoji"), zoo.spec("emoji"), zoo.judge("emoji")
    counts = (given.num_target, given.num_kept)
    result = {
        "concept": given.concept,
        "num_target": given.num_target,
        "num_kept": given.num_kept,
        "threads": given.threads,
        "machine": platform.machine(),
        "versions": {"semipermeable": __version__, "torch": torch.__version__},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "unet_sha256": zoo.info("emoji")["files"]["pipeline/unet/diffusion_pytorch_model.safetensors"]["sha256"],
        "base": measure(pipe, spec, judge, given.concept, *counts),
        "variants": {},
    }
    print("base", result["base"], flush=True)
    for name in given.variants:
        config = TrainConfig.from_preset("fast", **VARIANTS[name])
        began = time.monotonic()
        membrane = erase(pipe, given.concept, config=config, progress=False)
        seconds = time.monotonic() - began
        with attach(pipe, membrane, "open"):
            figures = measure(pipe, spec, judge, given.concept, *counts)
        result["variants"][name] = {"changed": VARIANTS[name], "seconds": round(seconds, 1), **figures}
        print(name, result["variants"][name], flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
