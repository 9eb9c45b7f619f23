"""The house itself: a light import, the Makefile, the pins, the documentation."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from semipermeable.cli import app

ROOT = Path(__file__).parent.parent
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] not in "# "
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_import_is_light():
    program = (
        "import sys, semipermeable; semipermeable.errors; semipermeable.zoo.names(); semipermeable.Concept('cat')\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'typer'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


CORE_ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Closed(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {"diffusers", "transformers", "accelerate", "typer", "rich", "PIL", "matplotlib", "pydantic",
                   "jinja2", "tokenizers", "huggingface_hub", "peft", "fastapi", "gradio", "ray"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Closed())
import pkgutil, torch
import semipermeable as spm
for package in ("concept", "errors", "files", "membrane", "permeability", "rank1", "runtime", "sites"):
    module = __import__(f"semipermeable.{package}", fromlist=["x"])
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        __import__(found.name)
from semipermeable.runtime import Binding

class Transformer2DModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.proj(x)

net = torch.nn.Sequential(Transformer2DModel())
membrane = spm.Membrane({"0.proj": (torch.ones(2, 1), torch.ones(1, 3))}, spm.Concept("cat"))
spm.save(membrane, "cat.safetensors")
spm.save_concepts([membrane.concept], "concepts.toml")
assert spm.load_concepts("concepts.toml") == (membrane.concept,)
bound = Binding(net, [spm.load("cat.safetensors")])
x = torch.ones(2, 3)
with torch.no_grad():
    bare = net(x)
    with bound.activate(torch.tensor([[1.0], [0.0]])):
        out = net(x)
assert torch.equal(out[1], bare[1])
torch.testing.assert_close(out[0], bare[0] + 3)
print("alone")
"""


def test_the_core_works_with_torch_and_safetensors_alone(tmp_path):
    command = [sys.executable, "-W", "error::ImportWarning", "-c", CORE_ALONE]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, "alone"), found.stderr


def test_every_public_name_resolves():
    import semipermeable

    for name in semipermeable.__all__:
        assert getattr(semipermeable, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'eraze'"):
        semipermeable.eraze  # noqa: B018


def test_pins_cover_what_is_declared_and_nothing_pulls_in_torchvision():
    pinned = {normal(name) for name in PINS}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in declared} - {"semipermeable"}
    assert names <= pinned
    assert "torchvision" not in pinned
    assert not any(name.startswith("nvidia") for name in pinned)
    assert not any("+" in version for version in PINS.values())
    assert PINS["torch"] == "2.13.0"


@pytest.mark.skipif(
    not os.environ.get("VIRTUAL_ENV") and ".venv" not in sys.prefix, reason="not in the Makefile's .venv"
)
def test_what_is_installed_is_what_is_pinned():
    for name, version in PINS.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert found.partition("+")[0] == version, name
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torchvision")


@pytest.fixture
def checkout(tmp_path):
    """The Makefile with its inputs and a `.venv` that holds an interpreter and both stamps."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\n")
    for stamp in (".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def planned(folder, *arguments):
    """What `make` would do."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "work"),
    [
        ("demo", ["spm demo"]),
        (
            "check",
            [
                "ruff",
                "pyright",
                "lint-imports",
                'pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile -m "not slow"',
            ],
        ),
        ("test", ["pytest --numprocesses"]),
    ],
)
def test_make_installs_only_when_something_changed(checkout, target, work):
    plan = planned(checkout, target)
    assert "pip install" not in plan
    assert all(words in plan for words in work)
    later = (checkout / ".venv" / ".installed-dev").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (later, later))
    assert "pip install --quiet -c constraints.txt -e" in planned(checkout, target)
    shutil.rmtree(checkout / ".venv")
    assert "-m venv .venv" in planned(checkout, target)


def test_make_test_also_tries_the_wheel_and_ci_calls_it(checkout):
    assert "smoke_wheel.sh" in planned(checkout, "test")
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_interpreter_found_is_supported_or_make_says_so(checkout):
    found = subprocess.run(["sh", "scripts/find_python.sh"], cwd=checkout, capture_output=True, text=True, check=True)
    version = subprocess.run([found.stdout.strip(), "--version"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"Python 3\.1[123]\.", version)
    shutil.rmtree(checkout / ".venv")
    refused = subprocess.run(["make", "demo", "PYTHON="], cwd=checkout, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13 found" in refused.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


def test_the_command_page_names_every_command_and_option():
    text = (ROOT / "docs" / "cli.md").read_text()

    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])
        if not getattr(command, "commands", None):
            yield path, command

    for path, command in walk(get_command(app), ["spm"]):
        assert " ".join(path) in text
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option == "--help" or option in text, f"{path}: {option}"


@pytest.mark.slow
def test_the_readme_runs(tmp_path):
    """Every Python block, in order, in a fresh process and an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    program = "\n".join(blocks) + "\nassert [round(row.gamma) for row in guard.trace] == [1, 0], guard.trace\n"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=500)
    assert (tmp_path / "cat.safetensors").is_file()
