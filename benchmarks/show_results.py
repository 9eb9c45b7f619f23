"""Write the committed tables where people read them: README.md, docs/benchmarks/bundled.md and their picture.

Figures follow from verdicts: those of a committed result that was made by an earlier version are reckoned anew first.

    python benchmarks/show_results.py           # write
    python benchmarks/show_results.py --check   # exit 1 if a page or a result's figures do not follow from its verdicts

Reads `results` and nothing else, so that every figure on those pages is one of a committed result. Text between
`<!-- results:NAME -->` and `<!-- /results -->` belongs to this program: NAME is a benchmark of `results/main`, or
TABLE/BENCHMARK of another folder.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from statistics import fmean

from semipermeable.evaluation.assembly import estimates_json
from semipermeable.evaluation.bench_report import read_sections
from semipermeable.evaluation.erasers.siblings import SIBLING
from semipermeable.evaluation.experiments import write_committed
from semipermeable.evaluation.scores import FIGURES, differences_of, resample

HOME = Path(__file__).resolve().parent.parent
PICTURE = HOME / "docs" / "images" / "erase_keep.png"
PAGES = (HOME / "README.md", HOME / "docs" / "benchmarks" / "bundled.md")
RESULTS = "*/benchmark.json"
TARGET = "target"
"""Role of prompts whose concept is erased."""
PANELS = ("emoji-objects", "emoji-styles")
"""Benchmarks of the summary."""
SHARES = ("ua", "ira", "cra")
WIDE = ("harmonic", "ua", "ira", "cra", "opened", "identical", "drift", "clip_error", "frechet_real", "frechet_base")
"""Columns of the full tables, where a benchmark has them."""
GROUPS = (("open", "Always open"), ("gated", "Gated"))
COLOURS = {"open": "#b45309", "gated": "#1d4ed8"}


def entries_of(section, group):
    """Erasers of a group, best first."""
    return section.gated if group == "gated" else section.open


def mean_rank(sections, name):
    """Mean harmonic mean over the summary's benchmarks; -1 where one is missing."""
    found = [find(section, name) for section in sections]
    return fmean(one.rank for one in found) if all(found) else -1.0


def summarised(sections, group):
    """Return the best variant of each eraser of a group that ran on all sections, best first.

    Rivals have their best; of our own nothing is chosen by these figures: what a preset was before is not in it.
    """
    best = {}
    for one in entries_of(sections[0], group):
        spec = one.result.eraser
        if "=" in spec:
            continue
        # The closed form alone is a preset of its own, not a setting of "fast".
        family = spec.partition(":")[0] + (" instant" if spec.endswith(":instant") else "")
        rank = mean_rank(sections, spec)
        if rank >= 0 and rank > best.get(family, ("", -1.0))[1]:
            best[family] = (spec, rank)
    return [spec for spec, _ in sorted(best.values(), key=lambda pair: (-pair[1], pair[0]))]


def find(section, spec):
    """Return an eraser's entry, or None.

    Styles have no siblings: there an eraser towards them is the one without the word.
    """
    name, _, words = spec.partition(":")
    rest = ",".join(word for word in words.split(",") if word != SIBLING)
    plain = f"{name}:{rest}" if rest else name
    wanted = plain if all(case.axis == "style" for case in section.benchmark.cases) else spec
    return next((one for one in section.entries if one.result.eraser == wanted), None)


def share(estimate):
    """Return a value with its interval."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} <small>{estimate.low:.3f}–{estimate.high:.3f}</small>"


def rule(width):
    """Return the line below a table's head: text first, then numbers."""
    return "| --- |" + " ---: |" * (width - 1)


def summary(sections):
    """Return the README's table."""
    titles = [
        f"{section.benchmark.name.removeprefix('emoji-')}: {FIGURES[n].title}" for section in sections for n in SHARES
    ]
    lines = ["| | " + " | ".join([*titles, "mean H"]) + " |", rule(len(titles) + 2)]
    base = [f"{section.base.figures[name].value:.3f}" for section in sections for name in SHARES]
    bare = fmean(section.base.rank for section in sections)
    lines.append(f"| base model | {' | '.join([*base, f'{bare:.3f}'])} |")
    for group, title in GROUPS:
        lines.append(f"| **{title}** |" + " |" * (len(titles) + 1))
        names = summarised(sections, group)
        values = {n: [find(s, n).figures[name].value for s in sections for name in SHARES] for n in names}
        best = [max(column) for column in zip(*values.values(), strict=True)]
        for name in names:
            cells = [
                f"**{value:.3f}**" if value == top else f"{value:.3f}"
                for value, top in zip(values[name], best, strict=True)
            ]
            lines.append(f"| `{name}` | {' | '.join(cells)} | {mean_rank(sections, name):.3f} |")
    return "\n".join(lines)


def full(section):
    """Return everything about one benchmark: figures with intervals, paired differences to the first, costs."""
    benchmark, seeds = section.benchmark, len({seed for _, seed in section.base.result.shards})
    names = [name for name in WIDE if any(name in one.figures for one in section.entries)]
    lines = [f"### {benchmark.key}", ""]
    drawn, everything = drawn_cases(section), len(benchmark.cases)
    which = f"{everything} cases" if len(drawn) == everything else f"Cases {', '.join(case.name for case in drawn)}"
    pictures = f"{which}, {seeds} seeds, {len(section.base.sheet.prompts)} pictures an eraser"
    lines += [f"{benchmark.summary} {pictures}, digest `{benchmark.digest}`.", ""]
    head = "| " + " | ".join(["", *(FIGURES[name].title for name in names)]) + " |"
    for group, title in GROUPS:
        found = entries_of(section, group)
        if not found:
            continue
        lines += [f"**{title}**", "", head, rule(len(names) + 1)]
        lines.append("| base model | " + " | ".join(share(section.base.figures.get(name)) for name in names) + " |")
        lines += [
            f"| `{one.result.eraser}` | " + " | ".join(share(one.figures.get(name)) for name in names) + " |"
            for one in found
        ]
        lines += ["", *duels(found), ""]
    return "\n".join([*lines, *cases(section), *gates(section), *lost_styles(section), *costs(section)])


def drawn_cases(section):
    """Return the benchmark's cases that have results."""
    return [case for case in section.benchmark.cases if case.name in section.base.by_case]


def cases(section):
    """Return UA, IRA and CRA case by case, where cases differ in how much they erase."""
    found = drawn_cases(section)
    if len({len(case.concepts) for case in found}) == 1:
        return []
    named = [case.name for case in found]
    lines = ["UA, IRA, CRA case by case:", "", f"| | {' | '.join(named)} |", rule(len(named) + 1)]
    for one in (*section.open, *section.gated):
        found = [one.by_case[name] for name in named]
        cells = [", ".join(f"{figures[share]:.3f}" for share in SHARES) for figures in found]
        lines.append(f"| `{one.result.eraser}` | {' | '.join(cells)} |")
    return [*lines, ""]


def gates(section):
    """Return how many prompts of each kind opened a gate, where there are several kinds of targets."""
    asked = Counter((row.role, row.tag) for case in drawn_cases(section) for row in case.rows)
    gated = [one for one in section.gated if one.result.openings]
    if not gated or sum(role == TARGET for role, _ in asked) < 2:
        return []
    kinds = sorted(asked, key=lambda kind: kind[0] != TARGET)
    head = [tag if role == TARGET else f"closed: {tag}" for role, tag in kinds]
    lines = ["Prompts that open the gate:", "", f"| | {' | '.join(head)} |", rule(len(kinds) + 1)]
    for one in gated:
        opened = Counter()
        for case in drawn_cases(section):
            for row, found in zip(case.rows, one.result.openings[case.name], strict=True):
                opened[row.role, row.tag] += any(gamma for _, gamma, _ in found)
        cells = [f"{opened[kind]} of {asked[kind]}" for kind in kinds]
        lines.append(f"| `{one.result.eraser}` | {' | '.join(cells)} |")
    return [*lines, ""]


def lost_styles(section):
    """Return in which styles CRA is lost where objects are erased: pictures of the concept, and of others."""
    drawn = drawn_cases(section)
    if any(case.axis != "object" for case in drawn):
        return []
    rows = [row for name, _ in section.base.result.shards for row in section.benchmark.case(name).rows]
    styles = [row.style for row in rows]
    named = sorted({style for style in styles if style})
    found = []
    for one in (section.base, *section.open, *section.gated):
        hits = one.sheet.hits
        wrong = hits.crossed & ~hits.other_right
        counted = Counter((style, bool(asks)) for style, asks, bad in zip(styles, hits.asks, wrong, strict=True) if bad)
        if not counted:
            continue
        cells = [f"{counted[style, True]} + {counted[style, False]}" for style in named]
        whole = [sum(n for (_, asks), n in counted.items() if asks is side) for side in (True, False)]
        name = "base model" if one is section.base else f"`{one.result.eraser}`"
        found.append(f"| {name} | {' | '.join(cells)} | {whole[0]} + {whole[1]} |")
    if not found:
        return []
    title = "Pictures whose style is no longer right, of the concept + of others (no line: none):"
    return [title, "", f"| | {' | '.join(named)} | all |", rule(len(named) + 2), *found, ""]


def duels(found):
    """Return the paired differences of the first of a group to the others."""
    first, *rest = found
    if not rest:
        return []
    draws = resample(first.sheet)
    lines = [f"`{first.result.eraser}` minus each other, paired; bold where the interval leaves out 0:", ""]
    lines += ["| minus | H | UA | IRA | CRA |", rule(5)]
    for other in rest:
        differences = differences_of(first.sheet, other.sheet, draws)
        cells = []
        for name in ("harmonic", *SHARES):
            one = differences.get(name)
            text = "–" if one is None else f"{one.value:+.3f}"
            sure = one is not None and (one.low > 0 or one.high < 0)
            interval = "" if one is None else f" <small>{one.low:+.3f} to {one.high:+.3f}</small>"
            cells.append((f"**{text}**" if sure else text) + interval)
        lines.append(f"| `{other.result.eraser}` | {' | '.join(cells)} |")
    return lines


def costs(section):
    """Return what each eraser costs."""
    lines = ["| | seconds to make, a case | bytes stored | processor time a picture, ratio to bare |", rule(4)]
    for one in sorted((*section.open, *section.gated), key=lambda one: one.result.costs["prepare_seconds"]):
        cost = one.result.costs
        cells = (f"{cost['prepare_seconds']:.1f}", f"{cost['stored_bytes']:,.0f}", f"{cost['overhead']:.2f}")
        lines.append(f"| `{one.result.eraser}` | {' | '.join(cells)} |")
    return lines


def draw(sections, path):
    """Draw the erase-versus-keep plane of the summary's benchmarks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from adjustText import adjust_text

    figure, axes = plt.subplots(1, len(sections), figsize=(11, 5.4), squeeze=False, constrained_layout=True)
    specs = [(spec, group) for group, _ in GROUPS for spec in summarised(sections, group)]
    for axis, section in zip(axes[0], sections, strict=True):
        for number, (spec, group) in enumerate(specs, 1):
            found = find(section, spec).figures
            x, y = found["ua"], found["keep"]
            marker = {"open": "s", "gated": "o"}[group]
            axis.errorbar(
                x.value,
                y.value,
                xerr=[[x.value - x.low], [x.high - x.value]],
                yerr=[[y.value - y.low], [y.high - y.value]],
                fmt=marker,
                color=COLOURS[group],
                mfc="white" if group == "open" else COLOURS[group],
                ms=6,
                lw=0.8,
                alpha=0.85,
                label=f"{number}  {spec}" + (" (gated)" if group == "gated" else ""),
            )
            axis.text(x.value, y.value, str(number), fontsize=8, color=COLOURS[group])
        axis.set_title(section.benchmark.key, fontsize=11)
        axis.set_xlabel("erased: UA →")
        axis.set_ylabel("kept: mean of IRA and CRA →")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.draw_without_rendering()
    for axis in axes[0]:
        at = list(zip(*(text.get_position() for text in axis.texts), strict=True))
        axis.margins(0.12)
        arrow = {"arrowstyle": "-", "lw": 0.5, "color": "0.5"}
        adjust_text(
            list(axis.texts), *at, ax=axis,
            expand=(2.0, 1.9), force_static=(0.4, 0.5), force_text=(0.4, 0.6), min_arrow_len=2,
            time_lim=None, iter_lim=300, arrowprops=arrow,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def filled(text, blocks):
    """Return a page with its blocks filled in.

    Raises:
        SystemExit: if the page has a block of an unknown name.
    """

    def fill(found):
        name = found[1]
        if name not in blocks:
            sys.exit(f"no results called {name!r}; there are {', '.join(blocks)}")
        return f"<!-- results:{name} -->\n{blocks[name]}\n<!-- /results -->"

    return re.sub(r"<!-- results:(\S+) -->\n.*?<!-- /results -->", fill, text, flags=re.S)


def outdated(sections):
    """Yield path and new content of every result whose figures are not those of its verdicts."""
    for section in sections:
        for one in (section.base, *section.open, *section.gated):
            path = one.place.result
            content = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: found for name, found in one.figures.items() if name not in one.result.sets}
            now = {"figures": estimates_json(figures), "differences_to_base": estimates_json(one.differences)}
            if any(content[part] != found for part, found in now.items()):
                yield path, {**content, **now}


def main():
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HOME / "results")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    tables = {path.name: read_sections(path) for path in sorted(arguments.results.iterdir()) if any(path.glob(RESULTS))}
    stale = []
    for path, content in outdated(chain.from_iterable(tables.values())):
        stale.append(path)
        if not arguments.check:
            write_committed(path, content)
    sections = {section.benchmark.name: section for section in tables.pop("main")}
    panels = [sections[name] for name in PANELS if name in sections]
    blocks = {name: full(section) for name, section in sections.items()} | {"summary": summary(panels)}
    for table, found in tables.items():
        blocks |= {f"{table}/{section.benchmark.name}": full(section) for section in found}
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = filled(before, blocks)
        if after != before:
            stale.append(path)
            if not arguments.check:
                path.write_text(after, encoding="utf-8")
    if not arguments.check:
        draw(panels, PICTURE)
    names = ", ".join(os.path.relpath(path, HOME) for path in stale)
    print(f"{'stale' if arguments.check else 'written'}: {names or 'nothing'}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
