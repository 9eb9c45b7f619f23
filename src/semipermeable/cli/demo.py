"""`spm demo`: the whole story on the bundled model, with its figures."""

from pathlib import Path
from typing import Annotated

import typer

from semipermeable.cli.options import SeedOption
from semipermeable.cli.problems import guarded

__all__ = ["EXAMPLE", "demo_command"]

EXAMPLE = "Example:  spm demo --out out/demo"


@guarded
def demo_command(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report, pictures, membranes and figures.")
    ] = Path("out/demo"),
    seed: SeedOption = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A sixth of the pictures: a look, not a proof; marked so in the report.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Erase "cat" and "neon" from the bundled model, draw, judge, and write a report.

    Exit code 1 if a figure misses its bar.
    """
    from semipermeable.cli.options import progress_bar, silence_libraries
    from semipermeable.generation.output import check_writable

    check_writable(out, folder=True)
    from semipermeable.evaluation.demo import DemoPlan, run_demo
    from semipermeable.evaluation.summary import summary_table

    silence_libraries()
    plan = DemoPlan.quick(seed=seed, device=device) if quick else DemoPlan(seed=seed, device=device)
    result = run_demo(plan, out, bar=progress_bar)
    typer.echo(summary_table(result))
    for name in ("report.html", "before_after.png", "result.json", "cat.safetensors", "neon.safetensors"):
        typer.echo(str(out / name))
    if not result.passed:
        typer.echo("spm: the demo missed a bar; see the verdicts above.", err=True)
        raise typer.Exit(1)
