"""README and the page of tables say what the committed results say."""

import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
SCRIPT = HOME / "benchmarks" / "show_results.py"


def shown(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, cwd=HOME)


@pytest.mark.slow
def test_pages_show_the_committed_results():
    found = shown("--check")
    assert (found.returncode, found.stdout.strip()) == (0, "stale: nothing"), found.stdout + found.stderr


def test_every_committed_benchmark_has_its_place_on_the_page():
    page = (HOME / "docs" / "benchmarks" / "bundled.md").read_text(encoding="utf-8")
    for file in (HOME / "results").glob("*/*/benchmark.json"):
        table, name = file.parts[-3], file.parts[-2].partition("@")[0]
        assert f"<!-- results:{name if table == 'main' else f'{table}/{name}'} -->" in page


def test_the_summary_has_the_presets_as_they_are_and_not_as_they_were():
    readme = (HOME / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- results:summary -->")[2].partition("<!-- /results -->")[0]
    names = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {"spm", "spm:instant", "spm-open", "spm-open:instant"} <= set(names)
    assert not [name for name in names if "=" in name]
