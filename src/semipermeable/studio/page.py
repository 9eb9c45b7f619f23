"""The page: gradio components bound to a desk. No state of its own but what a browser has seen already."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from semipermeable.studio import fragments
from semipermeable.studio.binding import Piece, choices, follow, when
from semipermeable.studio.checking_tabs import elsewhere_tab, evaluate_tab, export_tab
from semipermeable.studio.desk import Desk
from semipermeable.studio.making_tabs import draw_tab, erase_tab

__all__ = ["build_page"]

_TABS: dict[str, Callable[[Desk, list[Piece]], None]] = {
    "Erase": erase_tab,
    "Draw": draw_tab,
    "Elsewhere": elsewhere_tab,
    "Evaluate": evaluate_tab,
    "Export": export_tab,
}


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page of a desk."""
    pieces: list[Piece] = []
    made: dict[str, gr.Tab] = {}
    with gr.Blocks(title="spm studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        _head(desk, pieces)
        with gr.Tabs() as tabs:
            for name, fill in _TABS.items():
                with gr.Tab(name, id=name) as made[name]:
                    fill(desk, pieces)
        pieces.append(Piece(tabs, lambda: 0, lambda: gr.Tabs(selected=desk.setting("tab", next(iter(_TABS))))))
        seen = follow(page, pieces)
        for name, tab in made.items():
            when(tab.select, partial(_chosen, desk, name), [seen])
    return page


def _chosen(desk: Desk, name: str, seen: dict[str, str]) -> None:
    """Remember which tab is open; not the first one, which a page says it has chosen before it was filled."""
    if seen:
        desk.remember(tab=name)


def _head(desk: Desk, pieces: list[Piece]) -> None:
    gr.HTML(
        '<div class="spm"><h1>spm studio</h1><p class="quiet">Erase a concept, look, check, carry it away.</p></div>'
    )
    with gr.Row():
        model = gr.Dropdown(
            _models(desk), value=desk.model, label="Model", elem_id="model", scale=1, min_width=200,
            info="Bundled, named at the start, or a folder inside the studio's “models” folder.",
        )  # fmt: skip
        with gr.Column(scale=2, min_width=260):
            status = gr.HTML(elem_id="status")
            stop = gr.Button("Stop", variant="stop", size="sm", elem_id="stop")
    when(model.input, desk.choose_model, [model])
    when(stop.click, lambda: desk.worker.stop())
    pieces.append(Piece(model, lambda: (desk.model, desk.rack.choices()), lambda: choices(_models(desk), desk.model)))

    def at_work() -> Any:
        return [(job.number, job.state, job.done, job.total, job.note, job.stopping) for job in desk.worker.under_way]

    def last() -> Any:
        return desk.worker.last and desk.worker.last.number

    pieces.append(
        Piece(status, lambda: (at_work(), last()), lambda: fragments.status(desk.worker.under_way, desk.worker.last))
    )
    pieces.append(
        Piece(stop, lambda: bool(desk.worker.under_way), lambda: gr.update(interactive=bool(desk.worker.under_way)))
    )


def _models(desk: Desk) -> list[tuple[str, str]]:
    """A model on disk is shown by the last part of its path."""
    return [(Path(name).name if Path(name).exists() else name, name) for name in desk.rack.choices()]
