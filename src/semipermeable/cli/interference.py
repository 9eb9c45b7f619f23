"""`spm interference`: do membranes disturb each other when they are open together?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semipermeable.cli.erase import folder_files, load_folder
from semipermeable.cli.options import DeviceOption, ModelOption, SeedOption, loaded
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.training.interference import Interference

__all__ = ["EXAMPLE", "interference_command"]

EXAMPLE = "Example:  spm interference membranes/ --json interference.json"
_SHOWN = 10


@guarded
def interference_command(
    folder: Annotated[Path, typer.Argument(help="Folder of membranes of one model.")],
    as_json: Annotated[
        Path | None, typer.Option("--json", help="JSON file with every pair of membranes at every site.")
    ] = None,
    captions: Annotated[int, typer.Option("--captions", help="Captions for each concept.", min=1)] = 4,
    steps: Annotated[int, typer.Option("--steps", help="Latents of each caption.", min=1)] = 6,
    seed: SeedOption = 0,
    model: ModelOption = "emoji",
    device: DeviceOption = None,
) -> None:
    """Measure whether membranes of a folder disturb each other when all are open.

    "disturbed" is how far the others change a concept's erased prediction, relative to what its own membrane does;
    "kept" is what a membrane does to captions that all shall keep.
    """
    if as_json is not None:
        from semipermeable.files.atomic import check_apart
        from semipermeable.generation.output import check_writable

        check_writable(as_json)
        check_apart(as_json, *folder_files(folder))
    membranes = load_folder(folder)
    pipe = loaded(model, device, "fp32")
    from semipermeable.training import Workshop
    from semipermeable.training.interference import measure_interference

    found = measure_interference(Workshop(pipe), membranes, seed=seed, captions_each=captions, sampling_steps=steps)
    if as_json is not None:
        from semipermeable.generation.output import staged_file

        with staged_file(as_json) as path:
            path.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(found)


def _print(found: "Interference") -> None:
    width = max(len(one.name) for one in found.disturbances)
    typer.echo(f"{'concept':{width}}  alone     disturbed  kept")
    for one in found.disturbances:
        typer.echo(f"{one.name:{width}}  {one.alone:.2e}  {one.disturbed:9.4f}  {one.kept:.2e}")
    typer.echo(f"{'all open':{width}}  {'':8}  {'':9}  {found.kept_all:.2e}")
    for name, other in found.undone:
        typer.echo(
            f"{name!r} falls to what {other!r} erases, so that its prompts still draw it; name another --surrogate, or "
            "make both in one run: spm erase --concepts"
        )
    worst = found.worst()[:_SHOWN]
    typer.echo(f"\nclosest pairs by weights, {len(worst)} of {len(found.worst())}:")
    for pair in worst:
        shares = f"changes {pair.changes:+.3f}, regulators {pair.regulators:.3f}"
        typer.echo(f"  {pair.first} and {pair.second}: {shares} at {pair.site}")
