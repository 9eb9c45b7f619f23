"""Signing and verifying with keys of one's own: what verifies, and every way in which it must not."""

import json
import stat

import pytest
from typer.testing import CliRunner

from semipermeable.cli import app
from semipermeable.errors import OutputError, SignatureError
from semipermeable.signing import make_keys, sign_file, verify_file

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
pytest.importorskip("model_signing")
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "signing.pem", make_keys(tmp_path / "signing.pem")


@pytest.fixture
def signed(tmp_path, keys):
    file = tmp_path / "cat.safetensors"
    file.write_bytes(b"the bytes of a membrane")
    sign_file(file, keys[0])
    return file


def private_pem(key, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def test_what_was_signed_verifies_under_any_name(tmp_path, signed, keys):
    verify_file(signed, keys[1])
    moved = tmp_path / "other.safetensors"
    moved.write_bytes(signed.read_bytes())
    verify_file(moved, keys[1], signed.with_name("cat.safetensors.sig"))


def test_the_private_key_is_for_its_owner_only_and_is_never_replaced(keys):
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    before = keys[0].read_bytes()
    with pytest.raises(SignatureError, match="exists already; a key is never replaced"):
        make_keys(keys[0])
    assert keys[0].read_bytes() == before


@pytest.mark.parametrize("place", [0, 10, -1])
def test_one_changed_byte_is_found(signed, keys, place):
    data = bytearray(signed.read_bytes())
    data[place] ^= 1
    signed.write_bytes(data)
    with pytest.raises(SignatureError, match="is not the file that was signed: its SHA-256 differs"):
        verify_file(signed, keys[1])


def test_another_key_is_named(tmp_path, signed):
    other = make_keys(tmp_path / "other.pem")
    with pytest.raises(SignatureError, match=r"was made with another key than '.*other\.pem\.pub'"):
        verify_file(signed, other)


def test_a_signature_altered_to_name_the_right_key_is_refused(tmp_path, signed, keys):
    """The key's hash in the bundle is a hint that anybody can write: the signature itself must count."""
    forger = tmp_path / "forger.pem"
    make_keys(forger)
    genuine = json.loads((tmp_path / "cat.safetensors.sig").read_text())
    signed.write_bytes(b"the bytes of the forger")
    forged_path = sign_file(signed, forger, tmp_path / "forged.sig")
    forged = json.loads(forged_path.read_text())
    forged["verificationMaterial"] = genuine["verificationMaterial"]
    forged_path.write_text(json.dumps(forged))
    with pytest.raises(SignatureError, match="was altered, or another key made it"):
        verify_file(signed, keys[1], forged_path)


def test_a_missing_signature_is_missing(signed, keys):
    signed.with_name("cat.safetensors.sig").unlink()
    with pytest.raises(SignatureError, match=r"has no signature at '.*cat\.safetensors\.sig'"):
        verify_file(signed, keys[1])


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "not json", '{"verificationMaterial": {}}'])
def test_what_is_no_signature_is_refused(signed, keys, content):
    signed.with_name("cat.safetensors.sig").write_text(content)
    with pytest.raises(SignatureError, match="is no signature that model-signing wrote"):
        verify_file(signed, keys[1])


def test_keys_of_the_wrong_kind_are_refused(tmp_path, signed, keys):
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(private_pem(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(SignatureError, match="is of kind RSAPrivateKey; signatures take elliptic curves"):
        sign_file(signed, wrong)
    wrong.write_bytes(private_pem(ec.generate_private_key(ec.SECP256K1())))
    with pytest.raises(SignatureError, match="is of kind secp256k1"):
        sign_file(signed, wrong)
    wrong.write_text("hello")
    with pytest.raises(SignatureError, match="is no private key in PEM"):
        sign_file(signed, wrong)
    with pytest.raises(SignatureError, match="is a private key; pass the public one"):
        verify_file(signed, keys[0])
    with pytest.raises(SignatureError, match="there is no private key"):
        sign_file(signed, tmp_path / "nowhere.pem")
    with pytest.raises(SignatureError, match="cannot be read"):
        verify_file(signed, tmp_path / "nowhere.pub")


def test_a_locked_key_needs_its_password(tmp_path, signed):
    key = ec.generate_private_key(ec.SECP384R1())
    locked, public = tmp_path / "locked.pem", tmp_path / "locked.pub"
    locked.write_bytes(private_pem(key, b"open sesame"))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(SignatureError, match="needs a password"):
        sign_file(signed, locked)
    with pytest.raises(SignatureError, match="the password is wrong"):
        sign_file(signed, locked, password="no")
    sign_file(signed, locked, password="open sesame")
    verify_file(signed, public)


def test_a_signature_that_cannot_be_written_says_so(tmp_path, signed, keys):
    with pytest.raises(OutputError):
        sign_file(signed, keys[0], tmp_path / "nowhere" / "cat.sig")


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.safetensors").write_bytes(b"bytes")

    def spm(*arguments):
        return CliRunner().invoke(app, list(arguments))

    assert "private key, keep it secret" in spm("sign", "--make-key", "k.pem").output
    assert (
        "cat.safetensors.sig: signature of cat.safetensors" in spm("sign", "cat.safetensors", "--key", "k.pem").output
    )
    fine = spm("verify", "cat.safetensors", "--key", "k.pem.pub")
    assert fine.exit_code == 0
    assert "unchanged; SHA-256 " in fine.output
    (tmp_path / "cat.safetensors").write_bytes(b"byteS")
    refused = spm("verify", "cat.safetensors", "--key", "k.pem.pub")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("spm: 'cat.safetensors' is not the file that was signed")
    assert "unchanged" not in refused.output
    for wrong in (("sign",), ("sign", "cat.safetensors"), ("sign", "cat.safetensors", "--make-key", "x.pem")):
        assert spm(*wrong).exit_code == 2
    empty = tmp_path / "password"
    empty.touch()
    assert "is empty" in spm("sign", "cat.safetensors", "--key", "k.pem", "--password-file", "password").stderr


def test_a_signature_replaces_nothing_that_it_is_made_from(tmp_path, signed, keys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text("secret")
    (tmp_path / "link").symlink_to(signed)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for target in (signed, keys[0], tmp_path / "link", tmp_path / "." / "cat.safetensors"):
        with pytest.raises(OutputError, match="is read for it and would be lost; choose another name"):
            sign_file(signed, keys[0], target)
    arguments = ["sign", "cat.safetensors", "--key", "signing.pem", "--password-file", "password"]
    refused = CliRunner().invoke(app, [*arguments, "--signature", "password"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_is_no_place_for_a_key_or_a_signature(tmp_path, signed, keys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--make-key", "."], ["cat.safetensors", "--key", "signing.pem", "--signature", "."]):
        refused = CliRunner().invoke(app, ["sign", *arguments])
        assert refused.exit_code == 2
        assert refused.stderr.startswith("spm: ")
        assert "'.'" in refused.stderr
