from pathlib import Path

from semipermeable.evaluation.benchmarks import benchmark, benchmark_names
from semipermeable.evaluation.erasers.registry import card_table
from semipermeable.evaluation.scores import FIGURES

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_page_holds_the_cards_as_they_are() -> None:
    assert card_table() in PAGE


def test_the_page_names_every_benchmark_with_its_size() -> None:
    for found in map(benchmark, benchmark_names()):
        assert f"| `{found.key}` |" in PAGE
        assert f"| {sum(len(case.rows) for case in found.cases)} |" in PAGE


def test_the_page_says_what_every_figure_is() -> None:
    for figure in FIGURES.values():
        assert f"| {figure.title} | `{figure.name}` | {figure.better} | {figure.meaning} |" in PAGE
