"""The demo's report: one HTML file that needs nothing else, and the before/after sheet."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from semipermeable.evaluation.records import ConceptFigures, DemoResult
from semipermeable.generation import Drawing, Row, comparison_grid
from semipermeable.rates import Rate

__all__ = ["gallery_grid", "render_report", "write_report"]

Pair = tuple[Drawing, Drawing]
"""The same prompt and seed, without and with membranes."""


def gallery_grid(pairs: Sequence[Pair]) -> Image.Image:
    """Return a sheet of pairs, three beside each other."""
    rows = [Row(new.job.prompt, (old.image, new.image)) for old, new in pairs]
    return comparison_grid(rows, ("before", "after"), across=3, side=128)


def write_report(result: DemoResult, pairs: Sequence[Pair], path: Path) -> None:
    """Write the report; pictures are inlined, nothing is fetched when it is opened."""
    path.write_text(render_report(result, pairs), encoding="utf-8")


def render_report(result: DemoResult, pairs: Sequence[Pair]) -> str:
    """Return the report as HTML.

    Args:
        result: figures and verdicts.
        pairs: pictures to show.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = _rate
    return environment.get_template("demo.html.j2").render(
        result=result,
        figures=[(one, _rows(one)) for one in result.concepts],
        pictures=[_picture(old, new) for old, new in pairs],
        erased=all(verdict.passed for verdict in result.verdicts if verdict.figure.startswith("target")),
        missed=[verdict for verdict in result.verdicts if not verdict.passed],
    )


def _picture(old: Drawing, new: Drawing) -> dict[str, Any]:
    same = bool((old.pixels == new.pixels).all())
    return {
        "prompt": new.job.prompt,
        "seed": new.job.seed,
        "before": _inline(old.image),
        "after": _inline(new.image),
        "gamma": [(row.concept, row.gamma, row.reason) for row in new.decisions],
        "same": same,
    }


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _rows(figures: ConceptFigures) -> list[dict[str, Any]]:
    """Return the lines of one concept's table, with the verdicts' names."""
    other = "its style is right" if figures.kind == "object" else "its object is right"
    twins = ", ".join(figures.twins) or "no near twins known"
    return [
        {"text": f"“{figures.name}” is seen", "pair": figures.target, "verdict": "target after"},
        {
            "text": f"“{figures.name}” or a namesake is seen",
            "pair": figures.target_or_namesake,
            "verdict": "target or namesake after",
        },
        {"text": f"… or a near twin ({twins})", "pair": figures.target_or_twin, "verdict": None},
        {"text": other, "pair": figures.other_axis, "verdict": "other axis after"},
        {"text": "everything else is right", "pair": figures.kept, "verdict": "kept after"},
        {
            "text": "everything else, membrane open everywhere",
            "pair": figures.kept_open,
            "verdict": "kept, open everywhere",
        },
    ]
