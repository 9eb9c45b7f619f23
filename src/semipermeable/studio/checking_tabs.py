"""Tabs in which what was made is checked and carried away."""

from typing import Any

import gradio as gr

from semipermeable.studio import fragments
from semipermeable.studio.binding import Piece, choices, keep, note, shelf_key, when
from semipermeable.studio.carrying import describe, formats
from semipermeable.studio.desk import Desk
from semipermeable.studio.evaluating import concepts_tested, figures_in
from semipermeable.studio.jobs import JobState

__all__ = ["elsewhere_tab", "evaluate_tab", "export_tab"]


def elsewhere_tab(desk: Desk, pieces: list[Piece]) -> None:
    """What membranes did to the neighbours of a concept."""
    gr.Markdown("What did it change elsewhere? Neighbours of the concept, drawn before and after from the same seed.")
    with gr.Row():
        chosen = gr.Dropdown([], label="Membrane", elem_id="elsewhere-membrane", min_width=200)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
        hold = gr.Checkbox(False, label="Hold the gate open", min_width=160)
    begin = gr.Button("Redraw neighbours", variant="primary", elem_id="redraw")
    table = gr.HTML(elem_id="neighbours")
    gallery = gr.Gallery(
        label="before and after", show_label=False, columns=2, height="auto", object_fit="contain", interactive=False,
        elem_id="changed",
    )  # fmt: skip

    def start(file: str | None, seed: float | None, hold_open: bool) -> None:
        desk.begin_elsewhere(file or "", seed=int(seed or 0), steps=desk.setting("steps", 25), hold_open=hold_open)

    when(begin.click, start, [chosen, seed, hold])

    def files() -> Any:
        return [str(row.picture) for row in desk.album.elsewhere()[1]]

    pieces.append(_membranes(desk, chosen, "elsewhere_file"))
    keep(desk, pieces, seed, "elsewhere_seed", 0)
    keep(desk, pieces, hold, "elsewhere_hold", False)
    pieces.append(Piece(table, files, lambda: fragments.neighbours(*desk.album.elsewhere())))
    pieces.append(Piece(gallery, files, files))


def _membranes(desk: Desk, dropdown: gr.Dropdown, setting: str) -> Piece:
    """A dropdown that offers what is on the shelf, and remembers what was chosen."""
    note(desk, dropdown, setting, "")

    def names() -> list[tuple[str, str]]:
        return [(item.name, item.file) for item in desk.shelf.items() if item.membrane is not None]

    def update() -> Any:
        offered = names()
        files, chosen = [file for _, file in offered], desk.setting(setting, "")
        return choices(offered, chosen if chosen in files else (files[0] if files else None))

    return Piece(dropdown, names, update)


def evaluate_tab(desk: Desk, pieces: list[Piece]) -> None:
    """A quick benchmark and its report."""
    gr.Markdown(
        "A quick benchmark: one case, few seeds, judged by the bundled model's judges. It takes minutes, can be "
        "stopped, and goes on where it stopped."
    )
    with gr.Row():
        test = gr.Dropdown(
            [],
            label="Test",
            elem_id="test",
            min_width=260,
            info=f"For membranes on the shelf that erase {', '.join(concepts_tested())}. "
            "Erase one of them, or take one that comes with the model: tab Draw, Shelf.",
        )
        seeds = gr.Slider(1, 5, 1, step=1, label="Seeds", min_width=160)
    begin = gr.Button("Evaluate", variant="primary", elem_id="evaluate")
    table = gr.HTML(elem_id="figures")

    def start(title: str | None, count: float) -> None:
        desk.begin_evaluation(title or "", seeds=int(count))

    when(begin.click, start, [test, seeds])

    def titles() -> list[str]:
        return [one.title for one in desk.tests()]

    def offered() -> Any:
        found = titles()
        chosen = desk.setting("test", "")
        return choices(found, chosen if chosen in found else (found[0] if found else None))

    def key() -> Any:
        last = desk.worker.last
        folder = desk.results()
        return folder and str(
            folder
        ), last and last.kind == "evaluation" and last.state is JobState.DONE and last.number

    def shown() -> str:
        folder = desk.results()
        return fragments.figures([] if folder is None else figures_in(folder))

    note(desk, test, "test", "")
    keep(desk, pieces, seeds, "seeds", 1)
    pieces.append(Piece(test, lambda: shelf_key(desk), offered))
    pieces.append(Piece(table, key, shown))


def export_tab(desk: Desk, pieces: list[Piece]) -> None:
    """Every format, made and downloaded."""
    gr.Markdown(
        "Only the plain membrane keeps its gate: an adapter in another program, and a baked model, act on all prompts. "
        "Strengths set on the shelf are not in a file."
    )
    chosen = gr.Dropdown([], label="Membrane", elem_id="export-membrane")
    layout = gr.Radio(
        [(f"{name}: {describe(name)}", name) for name in formats()],
        value=formats()[0],
        label="Format",
        elem_id="format",
    )
    begin = gr.Button("Make the file", variant="primary", elem_id="export")
    download = gr.DownloadButton("Download", interactive=False, elem_id="download")

    def start(file: str | None, name: str) -> None:
        desk.begin_export(file or "", name)

    when(begin.click, start, [chosen, layout])

    def key() -> Any:
        path = desk.exported()
        return path and (path.name, path.stat().st_mtime_ns)

    def ready() -> Any:
        path = desk.exported()
        if path is None:
            return gr.update(label="Download", value=None, interactive=False)
        return gr.update(label=f"Download {path.name}", value=str(path), interactive=True)

    pieces.append(_membranes(desk, chosen, "export_file"))
    keep(desk, pieces, layout, "format", formats()[0])
    pieces.append(Piece(download, key, ready))
