"""How parts of the page follow a desk, and how what happens on the page reaches it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from semipermeable.studio.desk import Desk
from semipermeable.studio.jobs import sentence

__all__ = ["Piece", "choices", "follow", "keep", "note", "shelf_key", "when"]

_TICK = 1.0
"""Seconds between two looks at the desk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of the page that follows the desk.

    Args:
        component: what is filled.
        key: what it depends on, cheap to compute and JSON-like; nothing is sent while it stays the same.
        fill: the component's new value, or an update.
    """

    component: Any
    key: Callable[[], Any]
    fill: Callable[[], Any]


def follow(page: gr.Blocks, pieces: list[Piece]) -> gr.State:
    """Fill every piece when the page is opened, and again whenever what it shows has changed.

    Returns:
        What the page shows; empty until it was filled.
    """
    seen = gr.State({})
    outputs = [seen, *(piece.component for piece in pieces)]

    def look(known: dict[str, Any]) -> list[Any]:
        now = {str(number): repr(piece.key()) for number, piece in enumerate(pieces)}
        changed = [now[str(number)] != known.get(str(number)) for number in range(len(pieces))]
        if not any(changed):
            return [gr.skip()] * len(outputs)
        values = (piece.fill() if new else gr.skip() for piece, new in zip(pieces, changed, strict=True))
        return [now, *values]

    page.load(look, seen, outputs, show_progress="hidden", api_visibility="private")
    gr.Timer(_TICK).tick(look, seen, outputs, show_progress="hidden", api_visibility="private")
    return seen


def _said(act: Callable[..., Any]) -> Callable[..., Any]:
    """Show whatever goes wrong as a sentence."""

    def run(*values: Any) -> Any:
        try:
            return act(*values)
        except Exception as error:
            raise gr.Error(sentence(error), duration=15, print_exception=False) from error

    return run


def when(trigger: Any, act: Callable[..., Any], inputs: list[Any] | None = None) -> None:
    """Do something when something happens; what happens meanwhile is not lost, its last value is taken."""
    trigger(_said(act), inputs, None, show_progress="hidden", api_visibility="private", trigger_mode="always_last")


def keep(desk: Desk, pieces: list[Piece], component: Any, name: str, default: Any) -> None:
    """Let a field survive a reload: what is entered is remembered at once, and stands there when the page is opened.

    Args:
        desk: remembers it.
        pieces: of the page.
        component: the field.
        name: of the setting.
        default: of the field; "" and 0 stand for an empty one.
    """
    note(desk, component, name, default)
    # On loading only: what a person is typing must not be overwritten.
    pieces.append(Piece(component, lambda: 0, lambda: desk.setting(name, default)))


def note(desk: Desk, component: Any, name: str, default: Any) -> None:
    """Remember what is entered into a field; see `keep`.

    Gradio reports text that is typed, but not text that is pasted: so what stands in a text field is taken once more
    when it is left. `change` would not do, since it also reports what the page itself fills in.
    """

    def entered(value: Any) -> None:
        desk.remember(**{name: default if value is None else value})

    when(component.input, entered, [component])
    if isinstance(component, gr.Textbox):
        when(component.blur, entered, [component])


def choices(names: list[Any], value: Any) -> Any:
    """Return an update of what a dropdown offers and shows."""
    return gr.update(choices=names, value=value)


def shelf_key(desk: Desk) -> Any:
    """What the shelf's rows depend on; switches and strengths are set in the page itself."""
    return [(item.file, item.name, item.problem) for item in desk.shelf.items()]
