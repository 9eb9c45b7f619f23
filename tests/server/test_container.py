"""Dockerfile and compose file: what they name exists, and the command and the health check do what they say.

Building and running the image needs a program for containers, which continuous integration does not have.
"""

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semipermeable.cli.app import app

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps():
    """Instructions of the Dockerfile, continued lines joined: (name, rest)."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def one(steps, name):
    (found,) = [rest for step, rest in steps if step == name]
    return found


def test_what_is_copied_exists_and_is_not_ignored(steps):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = [part for step, rest in steps if step == "COPY" and "--from" not in rest for part in rest.split()[:-1]]
    assert {"src", "pyproject.toml", "constraints.txt"} <= set(copied)
    for part in copied:
        assert (ROOT / part).exists(), part
        assert any(fnmatch.fnmatch(part, pattern) for pattern in kept), part


def test_the_extra_that_is_installed_exists_and_python_is_one_of_ours(steps):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extra,) = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(rest for step, rest in steps if step == "RUN"))
    assert set(extra.split(",")) <= project["optional-dependencies"].keys()
    assert [rest.split()[0] for step, rest in steps if step == "FROM"] == ["${BASE}", "${BASE}"]
    (base,) = [rest.removeprefix("BASE=") for step, rest in steps if step == "ARG" and rest.startswith("BASE=")]
    version = re.search(r"/python:(3\.\d+)", base)[1]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_it_does_not_run_as_root_and_its_command_is_one(steps, tmp_path):
    assert one(steps, "USER") == "spm"
    program, *command = json.loads(one(steps, "ENTRYPOINT")) + json.loads(one(steps, "CMD"))
    assert program == "spm"
    command[-1] = str(tmp_path / "server.toml")
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code != 0
    assert "server.toml: cannot be read" in answer.output


def test_the_health_check_follows_the_server(steps, service, serve):
    check = json.loads(one(steps, "HEALTHCHECK").partition("CMD")[2])
    assert check[:2] == ["python", "-c"]
    exposed = one(steps, "EXPOSE")
    with serve(service) as address:
        program = check[2].replace(f"http://127.0.0.1:{exposed}", address)
        assert program != check[2]
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
        service.worker.stop(0)
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode != 0


def test_the_compose_file_uses_what_the_image_offers(steps):
    (name, service), *others = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].items()
    assert (name, others, service["build"]) == ("spm", [], ".")
    assert service["ports"] == [f"127.0.0.1:{one(steps, 'EXPOSE')}:{one(steps, 'EXPOSE')}"]
    assert service["volumes"] == [f"./data:{one(steps, 'VOLUME')}"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]
