"""`spm serve-key`, `spm serve-audit`, and what `spm serve` refuses before a model is loaded."""

import json
import re

import pytest
from typer.testing import CliRunner

from semipermeable.cli import app
from semipermeable.server.audit import AuditLog, Record
from semipermeable.server.keys import Remembered
from semipermeable.server.policies import parse_policies


@pytest.fixture
def spm(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("spm: ")
    assert all(word in result.stderr for word in words), result.stderr


def record(number, tenant):
    return Record(
        f"{number:032x}",
        "r",
        tenant,
        None,
        "p",
        "p@0",
        1,
        "a cat",
        "",
        number,
        2,
        4.0,
        64,
        64,
        "emoji",
        "a",
        (),
        (),
        "b",
    )


@pytest.fixture
def records(tmp_path):
    url = f"sqlite:///{tmp_path / 'audit.sqlite3'}"
    log = AuditLog(url)
    log.write([record(1, "acme"), record(2, "zoo"), record(3, "acme")])
    log.close()
    return url


def test_serve_key_prints_a_key_and_the_lines_that_store_it(spm):
    text = spm("serve-key").stdout
    key = re.search(r"spm_[0-9a-f]{12}_\S{43}", text)[0]
    line = re.search(r"\{id = .*\}", text)[0]
    assert key.split("_", 2)[2] not in line
    policies = f'[[policy]]\nname = "p"\n[[tenant]]\nname = "acme"\npolicy = "p"\nkeys = [{line}]'
    assert parse_policies(policies.encode()).keys.verify(key, Remembered()) == "acme"
    assert spm("serve-key").stdout != text


def test_serve_audit_prints_records_as_json_lines(spm, records, tmp_path):
    rows = [json.loads(line) for line in spm("serve-audit", "--url", records).stdout.splitlines()]
    assert [row["tenant"] for row in rows] == ["acme", "zoo", "acme"]
    (tmp_path / "server.toml").write_text("")
    found = spm("serve-audit", "--config", "server.toml", "--tenant", "zoo").stdout
    assert [json.loads(line)["tenant"] for line in found.splitlines()] == ["zoo"]


def test_serve_audit_deletes_a_tenant(spm, records):
    assert (
        spm("serve-audit", "--url", records, "--tenant", "acme", "--delete").stdout == "2 records of 'acme' deleted\n"
    )
    assert len(spm("serve-audit", "--url", records).stdout.splitlines()) == 1


def test_serve_audit_needs_one_place_and_a_tenant_to_delete(spm, records):
    assert spm("serve-audit").exit_code == 2
    assert spm("serve-audit", "--url", records, "--config", "x").exit_code == 2
    assert "--tenant NAME" in spm("serve-audit", "--url", records, "--delete").stderr
    refused(spm("serve-audit", "--url", "nonsense"), "audit database cannot be opened")


def test_serve_without_a_folder_of_membranes_says_how_to_make_one(spm, tmp_path):
    refused(spm("serve"), "there is no folder of membranes 'membranes'", "spm erase")
    assert not list(tmp_path.iterdir())


def test_serve_refuses_plain_http_for_other_machines_before_loading(spm):
    refused(spm("serve", "--host", "0.0.0.0"), "plain text", "listen.certificate")


def test_serve_refuses_a_broken_configuration(spm, tmp_path):
    (tmp_path / "server.toml").write_text("modle = 3")
    refused(spm("serve", "--config", "server.toml"), "unknown key 'modle'; did you mean 'model'")
    refused(spm("serve", "--config", "nothing.toml"), "nothing.toml: cannot be read")


def test_without_the_extra_serve_says_what_to_install(spm, monkeypatch):
    monkeypatch.setattr("semipermeable.cli.serve._NEEDED", ("fastapi_that_is_missing",))
    for command in ("serve", "serve-key", "serve-audit"):
        refused(spm(command), "pip install 'semipermeable[serve]'")
