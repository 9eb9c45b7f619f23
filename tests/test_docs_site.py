"""The documentation as a site: it builds without a warning, opens without a network; its commands and notebooks run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from semipermeable.cli import app

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("mkdocs")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
FEWER_STEPS = {"erase": ["--steps", "0"], "generate": ["--steps", "2"], "card": ["--steps", "1"]}
"""What is added to a page's commands, so that a test of a page takes seconds."""


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


def pages_of(nav):
    for entry in nav:
        for value in entry.values():
            yield from pages_of(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    nav = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    there = {str(path.relative_to(DOCS)) for path in [*DOCS.rglob("*.md"), *NOTEBOOKS]}
    assert len(nav) == len(set(nav))
    assert there - set(nav) == set(), "add these pages to nav in mkdocs.yml"
    assert set(nav) - there == set()


def test_formulas_become_mathml(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
    found = hooks.on_page_markdown("with $`\\gamma^2`$ and\n\n```math\ny = W x\n```\n\nand `$x$`", page)
    assert 'with <span><math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><msup>' in found
    assert '<div><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in found
    assert found.endswith("and `$x$`")


@pytest.mark.parametrize(
    ("place", "link", "shown"),
    [
        ("faq.md", "[README](../README.md)", "README (`README.md`)"),
        ("faq.md", "[`README.md`](../README.md)", "`README.md`"),
        ("how-to/flux.md", "[training](../training.md#what)", "[training](../training.md#what)"),
        ("how-to/flux.md", "[nodes](../../integrations/x.md)", "nodes (`integrations/x.md`)"),
        ("faq.md", "[the gate](gate.md)", "[the gate](gate.md)"),
    ],
)
def test_links_out_of_the_site_keep_their_text(hooks, place, link, shown):
    assert hooks.on_page_markdown(link, SimpleNamespace(file=SimpleNamespace(src_uri=place))) == shown


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_opens_without_a_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorial.html", "reference/erasing.html", "notebooks/quick-start.html"} <= set(pages)
    for name, text in pages.items():
        # A notebook's page holds a loader for diagrams, which acts only on notebooks that hold one: ours do not.
        foreign = re.findall(r"<(?:script|img|iframe)[^>]+src=\"https?://|<link[^>]+href=\"https?://", text)
        assert not foreign, name
    assert pages["method.html"].count("<math") > 20
    assert "$`" not in pages["method.html"]
    assert "</math></span> is the base model" in pages["method.html"], "a line may begin with a formula"
    for name in ("erase", "attach", "TrainConfig", "fold", "Attachment"):
        assert f">{name}<" in pages["reference/erasing.html"], name
    assert "Latent anchoring" in pages["method.html"]


def run_page(page, folder, monkeypatch):
    """Run a page's shell blocks, and then its Python blocks, in a folder; return what the commands printed."""
    monkeypatch.chdir(folder)
    printed = []
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "spm"
        result = CliRunner().invoke(app, [*arguments, *FEWER_STEPS.get(arguments[0], [])])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        printed.append(result.stdout)
    program = "\n".join(blocks(page, "python"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return "\n".join(printed), done.stdout


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    printed, shown = run_page("tutorial.md", tmp_path, monkeypatch)
    for line in "".join(blocks("tutorial.md", "text")).splitlines():
        assert line in printed
    assert (tmp_path / "both" / "before_after.png").is_file()
    assert (tmp_path / "card.png").is_file()
    assert "a neon icon of a cat cat 1.0" in shown
    assert "a flat icon of a dog neon 0.0" in shown


@pytest.mark.slow
def test_the_page_about_many_concepts_runs(tmp_path, monkeypatch):
    (tmp_path / "concepts.toml").write_text(blocks("how-to/many-concepts.md", "toml")[0], encoding="utf-8")
    run_page("how-to/many-concepts.md", tmp_path, monkeypatch)
    assert sorted(path.name for path in (tmp_path / "membranes").iterdir()) == ["cat.safetensors", "dog.safetensors"]
    assert (tmp_path / "both_lora.safetensors").is_file()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_stored_with_what_they_printed(file):
    book = nbformat.read(file, nbformat.NO_CONVERT)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert file.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(file, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    book = nbformat.read(file, nbformat.NO_CONVERT)
    stored = texts_of(book)
    client.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    found = texts_of(book)
    assert len(found) == len(stored) > 0
    if file.stem == "quick-start":
        assert "[False, False, True, True]" in found, "closed rows are the base model's own pictures, bit for bit"
        assert any("name found: 'cat'" in text and "inside a phrase to keep" in text for text in found)
    else:
        assert any(re.search(r"membrane +\d of 4 +\d of 4 +4 of 4", text) for text in found)


def texts_of(book):
    """What each cell printed or returned as text, library notices apart."""
    found = []
    for cell in book.cells:
        outputs = cell.get("outputs", [])
        printed = [output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"]
        returned = [output.data["text/plain"] for output in outputs if "text/plain" in output.get("data", {})]
        found += ["".join([*printed, *returned])] if printed or returned else []
    return found
