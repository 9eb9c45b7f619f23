"""Atheris on the readers of membranes and policies, for seconds; `make fuzz` runs the same for as long as you like."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"
SECONDS = 10


def fuzz(what, folder, program=SCRIPT):
    command = [sys.executable, str(program), what, str(SECONDS), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))


@pytest.mark.parametrize("what", ["policies", "membranes"])
def test_every_input_is_read_or_refused(tmp_path, what):
    found = fuzz(what, tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    assert int(re.search(r"stat::number_of_executed_units: (\d+)", found.stderr)[1]) > 100
    # More than the one example: atheris follows branches, or its instruments are not in place.
    assert len(list((tmp_path / what / "corpus").iterdir())) > 3
    assert not list((tmp_path / what).glob("crash-*"))


def test_a_reader_that_fails_is_found(tmp_path):
    """The same program, with a reader that raises what no reader may: the run ends with an error and the input."""
    text = SCRIPT.read_text(encoding="utf-8")
    broken = text.replace("found = parse_policies(data)", 'found = {}[parse_policies(data) and "missing"]')
    assert broken != text
    program = tmp_path / "broken.py"
    program.write_text(broken, encoding="utf-8")
    found = fuzz("policies", tmp_path, program)
    assert found.returncode != 0
    assert "KeyError" in found.stdout + found.stderr
    assert list((tmp_path / "policies").glob("crash-*"))
