"""The `spm` command: its sub-commands, `--version`, and the entry point."""

import io
import signal
import sys
from typing import Annotated

import typer

from semipermeable import __version__
from semipermeable.cli import (
    bank,
    card,
    demo,
    erase,
    evaluate,
    export,
    generate,
    inspect,
    interference,
    serve,
    sign,
    studio,
    zoo,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="spm",
    help="Erase concepts from text-to-image diffusion models with membranes: rank-1 adapters, gated per prompt.",
    epilog='First look:  spm demo      One concept:  spm erase "cat" --out cat.safetensors',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("erase", epilog=erase.EXAMPLE)(erase.erase_command)
app.command("generate", epilog=generate.EXAMPLE)(generate.generate_command)
app.command("interference", epilog=interference.EXAMPLE)(interference.interference_command)
app.command("inspect", epilog=inspect.EXAMPLE)(inspect.inspect_command)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo_command)
app.command("evaluate", epilog=evaluate.EVALUATE_EXAMPLE)(evaluate.evaluate_command)
app.command("report", epilog=evaluate.REPORT_EXAMPLE)(evaluate.report_command)
app.command("export", epilog=export.EXPORT_EXAMPLE)(export.export_command)
app.command("import", epilog=export.IMPORT_EXAMPLE)(export.import_command)
app.command("merge", epilog=export.MERGE_EXAMPLE)(export.merge_command)
app.command("card", epilog=card.EXAMPLE)(card.card_command)
app.command("sign", epilog=sign.SIGN_EXAMPLE)(sign.sign_command)
app.command("verify", epilog=sign.VERIFY_EXAMPLE)(sign.verify_command)
app.command("serve", epilog=serve.SERVE_EXAMPLE)(serve.serve_command)
app.command("serve-key", epilog=serve.KEY_EXAMPLE)(serve.serve_key_command)
app.command("serve-audit", epilog=serve.AUDIT_EXAMPLE)(serve.serve_audit_command)
app.command("studio", epilog=studio.EXAMPLE)(studio.studio_command)
app.add_typer(zoo.app, name="zoo")
app.add_typer(bank.app, name="bank")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semipermeable {__version__}")
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; a request to terminate cleans up like Ctrl-C, and what the terminal cannot show is "?"."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="spm")


def _terminate(_number: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)
