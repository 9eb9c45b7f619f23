"""Sign a membrane's file with a local key, and verify it: who published it, and that no byte has changed since.

The `model-signing` package (OpenSSF) does the work: the SHA-256 of the file goes into an in-toto statement, which is
signed with ECDSA over P-256, P-384 or P-521 and written as a Sigstore bundle. With keys of one's own no network is
needed. A signature says who vouches for a file, not that the erasure is any good; it is worth what is known of the key.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semipermeable.errors import SignatureError
from semipermeable.files.atomic import check_apart, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["SUFFIX", "make_keys", "sign_file", "verify_file"]

SUFFIX = ".sig"
"""Added to a file's name for the name of its signature."""

_INSTALL = "signing needs the extra `sign`: pip install 'semipermeable[sign]'"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def make_keys(private_key: Path) -> Path:
    """Make a key pair on the curve P-256.

    Args:
        private_key: where the private key goes, PEM without a password, readable by its owner only; the public key goes
            beside it, with ".pub" added to the name.

    Returns:
        The public key's path.

    Raises:
        SignatureError: if one of the files exists, or the extra `sign` is not installed.
        OutputError: if a file cannot be written.
    """
    _library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public_key = private_key.parent / f"{private_key.name}.pub"
    for path in (private_key, public_key):
        if path.exists():
            raise SignatureError(f"{str(path)!r} exists already; a key is never replaced, choose another name")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    before = os.umask(0o077)
    try:
        write_atomically(private_key, secret)
    finally:
        os.umask(before)
    write_atomically(public_key, _public_pem(key))
    return public_key


def sign_file(file: Path, private_key: Path, signature: Path | None = None, *, password: str | None = None) -> Path:
    """Sign a file.

    Args:
        file: what to sign; it is only read.
        private_key: PEM, on the curve P-256, P-384 or P-521.
        signature: where the signature goes; None adds ".sig" to the file's name.
        password: of the private key, if it has one.

    Returns:
        The signature's path.

    Raises:
        SignatureError: if the file or the key cannot be read, or the extra `sign` is not installed.
        OutputError: if the signature cannot be written, or would replace the file or the key.
    """
    signing, _ = _library()
    _check_file(file)
    _read_private(private_key, password)
    target = signature or file.with_name(file.name + SUFFIX)
    check_apart(target, file, private_key)
    secret = None if password is None else password.encode()
    config = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        config.sign(file.resolve(), bundle)
        write_atomically(target, bundle.read_bytes())
    return target


def verify_file(file: Path, public_key: Path, signature: Path | None = None) -> None:
    """Check that a file is, byte for byte, what the owner of a key signed; its name may have changed.

    Args:
        file: what to check.
        public_key: PEM, of the one whose signature counts; get it from that person, not from beside the file.
        signature: the signature; None adds ".sig" to the file's name.

    Raises:
        SignatureError: if it is not, or anything needed cannot be read; returning means that it is.
    """
    _, verifying = _library()
    _check_file(file)
    bundle = signature or file.with_name(file.name + SUFFIX)
    if not bundle.is_file():
        raise SignatureError(
            f"{str(file)!r} has no signature at {str(bundle)!r}; get it from the publisher, or say where it is with "
            "--signature"
        )
    _check_public(public_key)
    _check_bundle(bundle)
    from cryptography.exceptions import InvalidSignature

    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(file.resolve(), bundle)
    except InvalidSignature as error:
        raise SignatureError(
            f"{str(bundle)!r} was altered, or another key made it; get file and signature again from the publisher"
        ) from error
    except Exception as error:
        raise SignatureError(_refusal(file, public_key, bundle, error)) from error


def _refusal(file: Path, public_key: Path, bundle: Path, error: Exception) -> str:
    """Say what the library found; whatever it was, the file does not count as verified."""
    if str(error).startswith("Signature mismatch"):
        return (
            f"{str(file)!r} is not the file that was signed: its SHA-256 differs; do not use it, get it again from the "
            "publisher"
        )
    if str(error).startswith("Key mismatch"):
        return (
            f"{str(bundle)!r} was made with another key than {str(public_key)!r}; check whose key this is, and who "
            "signed the file"
        )
    return f"{str(file)!r} cannot be verified with {str(bundle)!r} ({error}); get file and signature again"


def _library() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise SignatureError(f"{_INSTALL} ({error})") from error
    return signing, verifying


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise SignatureError(f"there is no file {str(file)!r}; check the path")


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"the {what} {str(path)!r} cannot be read: {error.strerror or error}") from error


def _read_private(path: Path, password: str | None) -> None:
    from cryptography.hazmat.primitives import serialization

    if not path.is_file():
        raise SignatureError(f"there is no private key {str(path)!r}; make one with `spm sign --make-key {path}`")
    data = _read(path, "private key")
    try:
        key = serialization.load_pem_private_key(data, None if password is None else password.encode())
    except TypeError as error:
        wanted = "needs a password; pass it with --password-file" if password is None else "has no password; pass none"
        raise SignatureError(f"the private key {str(path)!r} {wanted}") from error
    except ValueError as error:
        why = "is no private key in PEM" if password is None else "is no private key in PEM, or the password is wrong"
        raise SignatureError(f"{str(path)!r} {why}; `spm sign --make-key` makes one") from error
    _check_curve(path, key)


def _check_public(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    data = _read(path, "public key")
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError as error:
        hint = "a private key; pass the public one" if b"PRIVATE KEY" in data else "no public key in PEM"
        raise SignatureError(f"{str(path)!r} is {hint}, e.g. signing.pem.pub") from error
    _check_curve(path, key)


def _check_curve(path: Path, key: object) -> None:
    name = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if name not in _CURVES:
        raise SignatureError(
            f"the key {str(path)!r} is of kind {name}; signatures take elliptic curves P-256, P-384 or P-521"
        )


def _check_bundle(path: Path) -> None:
    from model_signing._signing.sign_sigstore_pb import (
        Signature,
    )  # the reader that `verify` uses; it has no public name

    try:
        Signature.read(path)
    except Exception as error:
        raise SignatureError(
            f"{str(path)!r} is no signature that model-signing wrote; get it again from the publisher"
        ) from error


def _public_pem(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
