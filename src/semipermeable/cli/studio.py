"""`spm studio`: the page on which concepts are erased, looked at and checked."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from semipermeable.cli.options import DeviceOption, silence_libraries
from semipermeable.cli.problems import fail, guarded

__all__ = ["EXAMPLE", "studio_command"]

EXAMPLE = "Example:  spm studio --work studio --port 7860      Then open http://127.0.0.1:7860"


@guarded
def studio_command(
    work: Annotated[
        Path, typer.Option("--work", "-w", help="Folder for membranes, training runs, pictures and exports.")
    ] = Path("studio"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model to offer besides the bundled ones (see `spm erase`); repeatable."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Beyond 127.0.0.1, anyone who reaches it may use it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="TCP port; 0 takes a free one.", min=0, max=65535)] = 7860,
    device: DeviceOption = None,
) -> None:
    """Open a page in your browser: erase a concept, compare before and after, check its neighbours, export it.

    It listens on this machine only, sends nothing anywhere, and keeps everything in one folder. Ctrl-C ends it; a
    training that was at work can be resumed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise fail("the studio needs gradio; install it with: pip install 'semipermeable[studio]'")
    silence_libraries()
    from semipermeable.studio.desk import Desk
    from semipermeable.studio.running import run_studio
    from semipermeable.studio.workfolder import WorkFolder

    desk = Desk(WorkFolder(work), model or (), device)
    run_studio(desk, host, port, typer.echo)
