"""`spm sign`, `spm verify`: who vouches for a file, and that it has not changed since."""

from pathlib import Path
from typing import Annotated

import typer

from semipermeable.cli.problems import guarded

__all__ = ["SIGN_EXAMPLE", "VERIFY_EXAMPLE", "sign_command", "verify_command"]

SIGN_EXAMPLE = "Example:  spm sign --make-key signing.pem      then:  spm sign cat.safetensors --key signing.pem"
VERIFY_EXAMPLE = "Example:  spm verify cat.safetensors --key signing.pem.pub"

SignatureOption = Annotated[
    Path | None, typer.Option("--signature", help="The signature; FILE with .sig added, if not given.")
]


@guarded
def sign_command(
    file: Annotated[Path | None, typer.Argument(help="What to sign, e.g. a membrane.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Private key, PEM, elliptic curve.")] = None,
    signature: SignatureOption = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="File whose first line is the key's password.")
    ] = None,
    make_key: Annotated[
        Path | None,
        typer.Option("--make-key", help="Make a key pair here and at the name with .pub added; sign nothing."),
    ] = None,
) -> None:
    """Sign a file with a key of your own; needs no network."""
    from semipermeable.files.atomic import check_apart
    from semipermeable.signing import make_keys, sign_file

    if make_key is not None:
        if file is not None or key is not None or signature is not None or password_file is not None:
            raise typer.BadParameter("--make-key makes a key and signs nothing; give it alone")
        public_key = make_keys(make_key)
        typer.echo(f"{make_key}: private key, keep it secret\n{public_key}: public key, give it to those who verify")
        return
    if file is None or key is None:
        raise typer.BadParameter("say what to sign and with which key: spm sign FILE --key signing.pem")
    if signature is not None and password_file is not None:
        check_apart(signature, password_file)
    typer.echo(f"{sign_file(file, key, signature, password=_password(password_file))}: signature of {file}")


@guarded
def verify_command(
    file: Annotated[Path, typer.Argument(help="What to check.")],
    key: Annotated[Path, typer.Option("--key", help="Public key of the one whose signature counts, PEM.")],
    signature: SignatureOption = None,
) -> None:
    """Check that a file is byte for byte what the owner of a key signed."""
    from semipermeable.generation.png import file_digest
    from semipermeable.signing import verify_file

    verify_file(file, key, signature)
    typer.echo(f"{file}: signed with the key of {key}, unchanged; SHA-256 {file_digest(file)}")


def _password(file: Path | None) -> str | None:
    from semipermeable.errors import SignatureError

    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"password file {str(file)!r} cannot be read ({error}); check the path") from error
    if not lines:
        raise SignatureError(f"password file {str(file)!r} is empty; its first line must be the password")
    return lines[0]
