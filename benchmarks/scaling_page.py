"""The figures and the picture of docs/scaling.md, from committed results; measures nothing.

Text between `<!-- scaling:NAME -->` and `<!-- /scaling -->` in docs/scaling.md belongs to this module.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
SCALING = RESULTS / "scaling.json"
PATHS = {"bundled": RESULTS / "run_paths_emoji.json", "SD 1.5 size": RESULTS / "run_paths_sd15.json"}
PICTURE = HOME / "docs" / "images" / "scaling.png"
PAGE = HOME / "docs" / "scaling.md"
MARKED = re.compile(r"(<!-- scaling:(\w+) -->\n).*?(<!-- /scaling -->)", re.S)
SD15_PAIRS = 423_936
"""Parameters of a membrane on all 192 sites of Stable Diffusion 1.4 (SPM, and docs/method.md)."""
FLEET = 100_000
AT_FULL_SIZE = ("one active on conditional rows",)
"""Cases whose bar is for a UNet of the size of Stable Diffusion's."""
IDLE = "bank of 1,000, none active"
IDLE_ALONE = "what an idle call pays, by itself"
CLOCK = "cpu"
"""Which clock decides on a bar. Other programs ran on the same cores; wall time measures them as well."""
MEASURED, LEAST, SIDE, BAR = "#1d4ed8", "#6b7280", "#b45309", "#b91c1c"


def read(path: Path) -> dict[str, Any]:
    """Return a result, or {} where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def cases(model: str) -> dict[str, dict[str, Any]]:
    """Return the cases of `run_paths.py`; a bar for the size of SD 1.5 is none for the bundled model."""
    found = read(PATHS[model]).get("cases", {})
    return {
        title: case | {"bar": None} if model == "bundled" and title in AT_FULL_SIZE else case
        for title, case in found.items()
    }


def points(part: str) -> list[dict[str, Any]]:
    """Return the points of one curve, or none."""
    return read(SCALING).get(part, [])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: text first, then numbers."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def verdict(case: dict[str, Any]) -> str:
    """Say whether a bar is met, by the median of processor time, and whether the interval leaves doubt."""
    bar = case.get("bar")
    if bar is None:
        return "–"
    low, high = case[f"{CLOCK}_interval"]
    word = "met" if case[CLOCK] <= bar else "missed"
    return f"{word}, within the scatter" if low <= bar < high else word


def ratio(found: dict[str, Any], clock: str = CLOCK) -> str:
    """Return a ratio with its interval."""
    low, high = found[f"{clock}_interval"]
    return f"{found[clock]:.3f} <small>{low:.3f}–{high:.3f}</small>"


def size(num_bytes: float) -> str:
    """Return a number of bytes for reading."""
    power = 0
    while num_bytes >= 1000 and power < 3:
        num_bytes, power = num_bytes / 1000, power + 1
    digits = 0 if num_bytes >= 100 or power == 0 else 1
    return f"{num_bytes:.{digits}f} {('B', 'kB', 'MB', 'GB')[power]}"


def least(found: dict[str, Any]) -> str:
    """Return the floor of a case."""
    return f"{found['floor']['ratio']:.3f}" if "floor" in found else "–"


def bars() -> str:
    """Return every bar with what was measured on both models."""
    rows = []
    told_by = {model: cases(model) for model in PATHS}
    titles = list(dict.fromkeys(title for found in told_by.values() for title in found))
    barred = {title for found in told_by.values() for title, case in found.items() if case.get("bar")}
    for title in sorted(titles, key=lambda title: title not in barred):
        for model, found in told_by.items():
            case = found.get(title)
            if case is None or "wall" not in case or title.startswith(("PEFT", "set_adapters", "membrane read")):
                continue
            bar = f"{case['bar']:.2f}" if case["bar"] else "–"
            path = case.get("path", "–")
            told = [
                f"{model}, {case['steps']} steps",
                path,
                ratio(case),
                f"{case['wall']:.3f}",
                least(case),
                bar,
                verdict(case),
            ]
            rows.append([title, *told, str(case["pairs"])])
    head = ["case", "model", "path", "processor time", "wall time", "floor", "bar", "bar is", "pairs"]
    return table(head, rows)


def rivals() -> str:
    """Return what other ways to equip a pipeline cost in the same run."""
    rows = []
    for model in PATHS:
        for title, case in cases(model).items():
            if title.startswith(("PEFT", "set_adapters", "membrane read")):
                rows.append([title, model, ratio(case), f"{case['wall']:.3f}", str(case["pairs"])])
    return table(["way", "model", "processor time", "wall time", "pairs"], rows)


def findings() -> str:
    """Return which bars are met and which are missed, in one line each."""
    told: dict[str, list[str]] = {}
    for model in PATHS:
        for title, case in cases(model).items():
            if case.get("bar"):
                told.setdefault(decided(title, case), []).append(f"{title} ({model})")
            if title == "gate":
                told.setdefault(case["verdict"], []).append("the gate's time")
                told.setdefault(case["verdict_opened"], []).append("unrelated prompts")
    return "\n".join(f"- **{word.capitalize()}**: {'; '.join(titles)}." for word, titles in sorted(told.items()))


def decided(title: str, case: dict[str, Any]) -> str:
    """Say what `verdict` says; where scatter hides what an idle picture pays, the time of that alone decides."""
    word, alone = verdict(case), cases("bundled").get(IDLE_ALONE)
    if title != IDLE or alone is None or not word.endswith("scatter"):
        return word
    return "met, timed by itself" if idle_ratio(alone, case) <= case["bar"] else "missed, timed by itself"


def idle_ratio(alone: dict[str, Any], case: dict[str, Any]) -> float:
    """Return the ratio that follows from what an idle call and an idle picture pay, timed by themselves."""
    return 1 + (alone["call_us"] * case["steps"] + alone["picture_us"]) / (case["cpu_bare_s"] * 1e6)


def idle() -> str:
    """Return what an idle call pays, timed by itself, over the bare calls of both models."""
    alone = cases("bundled").get(IDLE_ALONE)
    if alone is None:
        return "Not measured yet."
    rows = []
    for model in PATHS:
        case = cases(model).get(IDLE)
        if case is not None:
            told = [f"{alone['call_us']:.0f} µs", f"{alone['picture_us']:.0f} µs", f"{case['cpu_bare_s']:.2f} s"]
            rows.append([f"{model}, {case['steps']} steps", *told, f"{idle_ratio(alone, case):.5f}"])
    return table(["picture", "a call pays", "a picture pays", "the bare picture", "ratio that follows"], rows)


def gate_bars() -> str:
    """Return the two bars of the gate."""
    case = cases("bundled").get("gate")
    if case is None:
        return "Not measured yet."
    opened = f"{case['opened']} of {case['unrelated_prompts']} ({100 * case['opened_share']:.1f} %)"
    return table(
        ["figure", "measured", "bar", "bar is"],
        [
            [
                "γ of 16 prompts against 10,000 concepts, one thread, after encoding",
                f"{case['milliseconds']:.1f} ms",
                f"{case['bar_milliseconds']:.0f} ms",
                case["verdict"],
            ],
            [
                "unrelated prompts that open anything",
                opened,
                f"{100 * case['bar_opened']:.0f} %",
                case["verdict_opened"],
            ],
        ],
    )


def concepts_table() -> str:
    """Return the curve over active concepts."""
    rows = [
        [
            f"{p['concepts']} on {p['acting_rows']} rows",
            p["path"],
            ratio(p),
            least(p),
            f"{p['first_extra_s']:.2f} s",
            size(p["device_bytes"]),
            size(p["membrane_bytes"]),
        ]
        for p in points("concepts")
    ]
    head = [
        "active concepts",
        "path",
        "processor time",
        "floor",
        "first picture, more",
        "held on the device",
        "membranes",
    ]
    return table(head, rows)


def rows_table() -> str:
    """Return the curve over rows."""
    rows = [
        [f"{p['rows']} rows, {p['concepts_a_row']} concepts each", ratio(p), least(p), f"{p['left_us_a_site']:.0f} µs"]
        for p in points("rows")
    ]
    return table(["call", "processor time", "floor", "above the floor, a site and call"], rows)


def width_table() -> str:
    """Return the curve over the width of the denoiser."""
    rows = [
        [
            f"{p['width']} ({p['weights'] / 1e6:.1f} million weights)",
            ratio(p),
            f"{p['floor']['operations']:.3f}",
            least(p),
            f"{p['left_us_a_site']:.0f} µs",
        ]
        for p in points("width")
    ]
    return table(["width", "processor time", "operations alone", "floor", "above the floor, a site and call"], rows)


def gate_table() -> str:
    """Return the gate's curve."""
    rows = [
        [
            f"{p['concepts']:,}",
            f"{p['milliseconds']:.2f} ms",
            f"{p['product_milliseconds']:.2f} ms",
            f"{p['first_batch_milliseconds'] / 1000:.2f} s",
            f"{1e3 * p['fill_s'] / p['concepts']:.2f} ms",
            size(p["resident_bytes"]),
            size(p["resident_bytes"] / p["concepts"]),
        ]
        for p in points("gate")
    ]
    head = [
        "concepts",
        "16 prompts",
        "of it the product alone",
        "the first 16",
        "to add one",
        "memory of the process",
        "a concept",
    ]
    return table(head, rows)


def bank_table() -> str:
    """Return the curve over the size of a packed bank."""
    rows = [
        [
            f"{p['concepts']:,}",
            size(p["disk_bytes"]),
            size(p["disk_bytes"] / p["concepts"]),
            f"{p['open_s']:.2f} s",
            f"{1e3 * p['read_one_s']:.1f} ms",
            # Less than a page of memory is not told from none.
            size(p["resident_bytes"]) if p["resident_bytes"] > 0 else "–",
        ]
        for p in points("bank")
    ]
    head = ["membranes", "on disk", "each", "to open", "to read one", "memory of the process, opened"]
    return table(head, rows)


def fleet() -> str:
    """Return what the largest measured bank means for a server, and the same for membranes of Stable Diffusion."""
    gates, banks = points("gate"), points("bank")
    if not gates or not banks:
        return "Not measured yet."
    gate, bank = gates[-1], banks[-1]
    kind = "measured" if gate["concepts"] == FLEET else f"from {gate['concepts']:,}, in proportion"
    scale = FLEET / gate["concepts"]
    each, sd15 = bank["disk_bytes"] / bank["concepts"], 4 * SD15_PAIRS
    rows = [
        ["γ of 16 prompts, one thread", f"{gate['milliseconds'] * scale:.0f} ms", kind],
        ["memory of the process for names, gates and index", size(gate["resident_bytes"] * scale), kind],
        ["processor time to fill the index", f"{gate['fill_s'] * scale:.0f} s", kind],
        ["disk, membranes as they ship with the bundled model", size(each * FLEET), f"{size(each)} each, measured"],
        ["disk, membranes on all sites of SD 1.x, fp32", size(sd15 * FLEET), f"{SD15_PAIRS:,} numbers each, computed"],
        ["the same in fp16", size(sd15 / 2 * FLEET), "computed"],
        ["mapped, read", "only what prompts open", "at most `host_bytes` kept, 1 GiB unless told otherwise"],
        ["device, nothing active", "0", "no tensor of a membrane is there"],
        ["device, 16 active in a call, SD 1.x, fp32", size(16 * sd15), "computed"],
    ]
    return table([f"{FLEET:,} concepts", "", "how known"], rows)


def hardware() -> str:
    """Return what was measured where."""
    lines = [_line(f"`scaling.py`, {part}", found) for part, found in read(SCALING).items()]
    for model in PATHS:
        for title, case in cases(model).items():
            lines.append(_line(f"`run_paths.py`, {model}, {title}", [case]))
    head = ["figures", "processor", "threads", "memory", "load", "latents", "steps", "torch"]
    return table(head, lines)


def _line(title: str, found: Sequence[dict[str, Any]]) -> list[str]:
    at, size_ = found[0]["machine"], found[0]["latent_size"]
    loads = sorted(one["machine"]["load"][0] for one in found)
    load = f"{loads[0]:.1f}" if len(loads) == 1 else f"{loads[0]:.1f} to {loads[-1]:.1f}"
    processor = f"{at['processor']}, {at['cores']} cores"
    memory, latents = f"{at['memory_gib']} GiB", f"{size_}×{size_}"
    threads = " or ".join(str(count) for count in sorted({one["machine"]["threads"] for one in found}))
    return [title, processor, threads, memory, load, latents, str(found[0]["steps"]), at["torch"]]


SECTIONS = {
    "bars": bars,
    "findings": findings,
    "idle": idle,
    "rivals": rivals,
    "gate_bars": gate_bars,
    "concepts": concepts_table,
    "rows": rows_table,
    "width": width_table,
    "gate": gate_table,
    "bank": bank_table,
    "fleet": fleet,
    "hardware": hardware,
}


def filled(text: str) -> str:
    """Return a page with every marked section written anew."""
    return MARKED.sub(lambda found: f"{found[1]}{SECTIONS[found[2]]()}\n{found[3]}", text)


def write_page() -> None:
    """Write every marked section of the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def draw_picture() -> None:
    """Draw all curves beside their floors."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
        _concepts(axes[0, 0])
        _ratios(axes[0, 1], points("rows"), "rows", "rows, four concepts of its own each")
        _ratios(axes[0, 2], points("width"), "width", "width of the denoiser, 16 concepts a row")
        _gate(axes[1, 0])
        _host(axes[1, 1])
        _device(axes[1, 2])
        figure.savefig(PICTURE, dpi=110)
        pyplot.close(figure)


def _ratios(axis: Any, found: list[dict[str, Any]], key: str, label: str) -> None:
    x = [p[key] for p in found]
    _line_with_interval(axis, x, found, MEASURED, "measured")
    axis.plot(x, [p["floor"]["ratio"] for p in found], "--", color=LEAST, label="floor")
    _ratio_axis(axis, x, label)


def _concepts(axis: Any) -> None:
    for which, colour in (("all", MEASURED), ("conditional", SIDE)):
        found = [p for p in points("concepts") if p["acting_rows"] == which]
        x = [p["concepts"] for p in found]
        _line_with_interval(axis, x, found, colour, f"{which} rows")
        axis.plot(x, [p["floor"]["ratio"] for p in found], "--", color=colour, alpha=0.5, label=f"{which} rows, floor")
    _ratio_axis(axis, x, "active concepts")


def _line_with_interval(axis: Any, x: list[float], found: list[dict[str, Any]], colour: str, label: str) -> None:
    low, high = zip(*(p[f"{CLOCK}_interval"] for p in found), strict=True)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, [p[CLOCK] for p in found], "o-", color=colour, markersize=4, label=label)


def _ratio_axis(axis: Any, x: list[float], label: str) -> None:
    axis.axhline(1, color="black", linewidth=0.6)
    axis.set_xscale("log", base=2)
    _ticks(axis, x)
    axis.set(xlabel=label, ylabel="processor time over bare")
    axis.legend(frameon=False, fontsize=8)


def _ticks(axis: Any, x: list[float]) -> None:
    """Label the points, but none so near to the one before that the numbers would touch."""
    shown = [value for value, before in zip(x, [0.0, *x], strict=False) if value >= 1.5 * before]
    axis.set_xticks(shown, [str(value) for value in shown])
    axis.minorticks_off()


def _gate(axis: Any) -> None:
    found = points("gate")
    x = [p["concepts"] for p in found]
    axis.loglog(x, [p["milliseconds"] for p in found], "o-", color=MEASURED, markersize=4, label="γ of 16 prompts")
    axis.loglog(
        x, [p["product_milliseconds"] for p in found], "--", color=LEAST, label="the product of the probes alone"
    )
    axis.axhline(20, color=BAR, linewidth=0.8, linestyle=":", label="bar at 10,000 concepts: 20 ms")
    axis.set(xlabel="concepts in the bank", ylabel="milliseconds, one thread")
    axis.legend(frameon=False, fontsize=8)


def _host(axis: Any) -> None:
    for part, key, label, colour in (
        ("bank", "disk_bytes", "on disk", MEASURED),
        ("bank", "resident_bytes", "in memory, opened", SIDE),
        ("gate", "resident_bytes", "in memory, with the index of the gate", LEAST),
    ):
        found = [p for p in points(part) if p[key] > 0]
        x, y = [p["concepts"] for p in found], [p[key] / 1e6 for p in found]
        axis.loglog(x, y, "o-", color=colour, markersize=4, label=label)
    axis.set(xlabel="concepts in the bank", ylabel="megabytes")
    axis.legend(frameon=False, fontsize=8)


def _device(axis: Any) -> None:
    for which, colour in (("all", MEASURED), ("conditional", SIDE)):
        found = [p for p in points("concepts") if p["acting_rows"] == which]
        x, y = [p["concepts"] for p in found], [p["device_bytes"] / 1e6 for p in found]
        axis.plot(x, y, "o-", color=colour, markersize=4, label=f"{which} rows")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    _ticks(axis, x)
    axis.set(xlabel="active concepts", ylabel="megabytes held on the device")
    axis.legend(frameon=False, fontsize=8)
