"""`spm evaluate` and `spm report`: compare erasers on a benchmark, and read the comparison."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from semipermeable.cli.options import progress_bar
from semipermeable.cli.problems import guarded

__all__ = ["EVALUATE_EXAMPLE", "REPORT_EXAMPLE", "evaluate_command", "report_command"]

EVALUATE_EXAMPLE = "Example:  spm evaluate emoji-objects --eraser spm --eraser uce --seeds 3 --out results/"
REPORT_EXAMPLE = "Example:  spm report results/ --out report.html"

_FIGURES = ("ua", "ira", "cra", "harmonic", "opened", "nudenet", "copy", "clip_error", "identical")
_SETS = ("frechet_real", "frechet_base", "frechet_apart", "nudenet_total")


@guarded
def evaluate_command(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="emoji-objects, emoji-styles, emoji-neighbours, emoji-wordings, emoji-many, emoji-memorised; of real "
            "models see docs/benchmarks."
        ),
    ],
    eraser: Annotated[
        list[str],
        typer.Option("--eraser", "-e", help="An eraser, e.g. spm, spm-open, spm:cat.safetensors, uce; repeatable."),
    ],
    seeds: Annotated[int, typer.Option("--seeds", help="Pictures of each prompt.", min=1)] = 3,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Only this case of the benchmark, e.g. cat; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes; they share the machine's cores.", min=1)] = 1,
    cluster: Annotated[
        str, typer.Option("--cluster", help="Address of a Ray cluster to draw on; `auto` is that of this machine.")
    ] = "",
    prompts: Annotated[
        list[Path] | None, typer.Option("--prompts", help="Prompt file (CSV) of a real model's benchmark; repeatable.")
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="What to erase, where the benchmark leaves it open, A+B at once; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Fewer rows: of the file, or of each class.", min=1)
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Copy of a real model: diffusers folder, checkpoint or hub id.")
    ] = "",
    clip: Annotated[str, typer.Option("--clip", help="CLIP: hub id or folder.")] = "",
    classifier: Annotated[str, typer.Option("--classifier", help="Image classifier: hub id or folder.")] = "",
    style_classifier: Annotated[
        str, typer.Option("--style-classifier", help="Image classifier of styles: hub id or folder.")
    ] = "",
    inception: Annotated[
        str, typer.Option("--inception", help="TorchScript of Inception, for FID: file, or OWNER/REPO/FILE of the hub.")
    ] = "",
    real_images: Annotated[
        Path | None, typer.Option("--real-images", help="Folder of real pictures, or of the memorised ones.")
    ] = None,
    sscd: Annotated[str, typer.Option("--sscd", help="TorchScript of SSCD: file, or OWNER/REPO/FILE of the hub.")] = "",
    lpips: Annotated[
        str, typer.Option("--lpips", help="LPIPS, for any benchmark: alex, vgg or squeeze; or its TorchScript.")
    ] = "",
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16.")] = "fp32",
    train_seed: Annotated[int, typer.Option("--train-seed", help="Of all training.", min=0, max=2**63 - 1)] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")] = "cpu",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for results; a run that was stopped goes on there.")
    ] = Path("results"),
) -> None:
    """Draw a benchmark with erasers and the base model, judge every picture, and write figures with intervals.

    Finished shards are never drawn again: the same command continues a stopped run, and more seeds extend it.
    """
    from semipermeable.cli.options import silence_libraries
    from semipermeable.evaluation.benchmarks import Request
    from semipermeable.evaluation.benchmarks import benchmark as find
    from semipermeable.evaluation.judges import JudgeSources
    from semipermeable.evaluation.runner import RunPlan, run
    from semipermeable.generation.output import check_writable

    plan = RunPlan(
        benchmark=find(benchmark, Request(prompts=tuple(prompts or ()), concepts=tuple(concept or ()), limit=limit)),
        erasers=tuple(eraser),
        seeds=seeds,
        cases=tuple(case or ()),
        train_seed=train_seed,
        model=model,
        judges=JudgeSources(
            clip=clip,
            classifier=classifier,
            style_classifier=style_classifier,
            inception=inception,
            real_images=real_images,
            sscd=sscd,
            lpips=lpips,
        ),
        device=device,
        dtype=dtype,
        workers=workers,
        cluster=cluster,
    )
    check_writable(out, folder=True)
    silence_libraries()
    results = run(plan, out, bar=progress_bar)
    typer.echo(_table([json.loads(path.read_text(encoding="utf-8")) for path in results]))
    for path in results:
        typer.echo(str(path))
    typer.echo(f"the comparison as a page:  spm report {out} --out report.html")


def _table(results: list[Any]) -> str:
    from semipermeable.evaluation.scores import figure_of

    shown = [name for name in _FIGURES if any(name in content["figures"] for content in results)]
    sets = [name for name in _SETS if any(name in content["sets"] for content in results)]
    lines: list[tuple[str, ...]] = [("eraser", *(figure_of(name).title for name in (*shown, *sets)), "s/picture")]
    for content in results:
        cells = [_cell(content["figures"].get(name)) for name in shown]
        cells += [_plain(content["sets"].get(name)) for name in sets]
        lines.append((content["eraser"], *cells, f"{content['costs']['seconds_per_picture']:.2f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(found: Any) -> str:
    if found is None or found["value"] is None:
        return "–"
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _plain(found: Any) -> str:
    return "–" if found is None else f"{found:.2f}"


@guarded
def report_command(
    results: Annotated[Path, typer.Argument(help="Folder with results of `spm evaluate`, at any depth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    cluster: Annotated[
        Literal["prompt", "seed", "concept"],
        typer.Option("--cluster", help="What intervals generalise over: captions, seeds, or concepts."),
    ] = "prompt",
) -> None:
    """Write one HTML file with the comparison; it opens without network."""
    from semipermeable.evaluation.bench_report import write_bench_report

    write_bench_report(results, out, level=cluster)
    typer.echo(str(out))
