"""server.toml: paths, defaults, what is refused, and that the page names every key."""

import re
from pathlib import Path

import pytest

from semipermeable.errors import PolicyError
from semipermeable.server.config import ServerConfig, load_config
from semipermeable.server.policies import parse_policies

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def written(tmp_path, text):
    (tmp_path / "server.toml").write_text(text)
    return load_config(tmp_path / "server.toml")


def test_paths_are_relative_to_the_file(tmp_path):
    config = written(tmp_path, 'membranes = "m"\npolicies = "p.toml"\n[listen]\ncertificate = "c.pem"')
    assert (config.membranes, config.policies) == (tmp_path / "m", tmp_path / "p.toml")
    assert config.listen.certificate == tmp_path / "c.pem"
    assert config.audit.url == f"sqlite:///{tmp_path / 'audit.sqlite3'}"


def test_an_absolute_path_and_a_url_stay(tmp_path):
    config = written(tmp_path, 'membranes = "/m"\n[audit]\nurl = "postgresql://x/y"')
    assert config.membranes == Path("/m")
    assert config.audit.url == "postgresql://x/y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'emoji'", "server.toml: modle: unknown key 'modle'; did you mean 'model'"),
        ("[limits]\nimage = 3", r"limits\.image: unknown key 'image'; did you mean 'images'"),
        ("[listen]\nport = 99999", r"listen\.port: Input should be less than or equal to 65535"),
        ("[drawing]\nsizes = ['64']", "sizes holds '64'; write e.g."),
        ("[drawing]\nsteps = 60", "steps = 60 is more than max_steps = 50"),
        ("[drawing]\nguidance = 20", "guidance = 20 is more than max_guidance = 15"),
        ("[limits]\nimages = 9\ntenant_rows = 8", "some request could never be drawn"),
        ("admin_keys = [{id = 'x', hash = 'y'}]", r"admin_keys\.1\.id"),
        ("reload_seconds = 0", "reload_seconds"),
        ("reload_seconds = inf", "reload_seconds"),
        ("[audit]\nprompts = 'no'", r"audit\.prompts: Input should be 'text' or 'hash'"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(tmp_path, text, message):
    with pytest.raises(PolicyError, match=message):
        written(tmp_path, text)


def test_a_missing_file(tmp_path):
    with pytest.raises(PolicyError, match=r"server\.toml: cannot be read: No such file"):
        load_config(tmp_path / "server.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_keys_do_not_travel_in_plain_text(tmp_path, host):
    with pytest.raises(PolicyError, match="would send keys in plain text"):
        written(tmp_path, f'[listen]\nhost = "{host}"').checked()
    assert written(tmp_path, f'[listen]\nhost = "{host}"\nplain_http = true').checked().listen.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_alone_needs_no_tls(tmp_path, host):
    assert written(tmp_path, f'[listen]\nhost = "{host}"').checked().listen.is_loopback


def test_tls_files_must_be_there(tmp_path):
    with pytest.raises(PolicyError, match=r"TLS file 'c\.pem' does not exist"):
        written(tmp_path, '[listen]\ncertificate = "c.pem"').checked()
    with pytest.raises(PolicyError, match=r"without listen\.certificate"):
        written(tmp_path, '[listen]\ncertificate_key = "c.pem"').checked()


def test_the_files_that_the_page_shows_are_read(tmp_path, keys):
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    server, policies = (block.replace("scrypt:…", keys.acme.hash) for block in blocks)
    (tmp_path / "server.toml").write_text(server)
    config = load_config(tmp_path / "server.toml")
    assert (config.listen.host, config.policies) == ("0.0.0.0", tmp_path / "policies.toml")
    found = parse_policies(policies.encode())
    assert found.policies["kids"].membranes == ("cat", "Van Gogh")
    assert found.tenants["acme"].policy == "kids"


def test_the_page_names_every_key():
    text = PAGE.read_text()

    def walk(model, prefix):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                yield from walk(inner, f"{name}.")
            else:
                yield f"`{prefix}{name}`"

    assert [key for key in walk(ServerConfig, "") if key not in text] == []
