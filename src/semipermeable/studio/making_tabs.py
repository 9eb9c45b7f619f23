"""Tabs in which something is made: erasing, and drawing with the shelf."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from semipermeable.studio import fragments
from semipermeable.studio.binding import Piece, keep, note, shelf_key, when
from semipermeable.studio.desk import Desk
from semipermeable.studio.shelf import STRONGEST

__all__ = ["draw_tab", "erase_tab"]

_PRESETS = ("fast", "instant", "paper")


def erase_tab(desk: Desk, pieces: list[Piece]) -> None:
    """A concept, its training as it goes, stop and resume."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            concept = gr.Dropdown(
                desk.concepts(), value=None, allow_custom_value=True, label="Concept to erase", elem_id="concept",
                info="Choose what this model knows, or type anything.",
            )  # fmt: skip
            with gr.Accordion("More settings", open=False):
                aliases = gr.Textbox(label="Also called", info="Other names, separated by commas.")
                surrogate = gr.Textbox(label="Draw instead", info="Empty: a similar thing, where one is known.")
                kept = gr.Textbox(label="Keep", info="Phrases that must stay, separated by commas.")
                preset = gr.Dropdown(
                    _PRESETS,
                    value="fast",
                    label="How",
                    info="Fast; instant, from text alone, in seconds; or the paper's own 3,000 steps.",
                    elem_id="preset",
                )
                steps = gr.Number(
                    None, label="Steps", precision=0, minimum=1, info="Empty: the preset's.", elem_id="steps"
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            begin = gr.Button("Erase", variant="primary", elem_id="erase")
            resume = gr.Button("Resume", elem_id="resume")
            line = gr.HTML(elem_id="run")
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("What the model draws now: the concept, and a neighbour that must stay.")
            previews = gr.Gallery(
                label="previews", show_label=False, columns=4, height="auto", object_fit="contain",
                interactive=False, elem_id="previews",
            )  # fmt: skip
            erasing = gr.LinePlot(x="step", y="loss", title="erasing loss: the concept left", height=180)
            anchoring = gr.LinePlot(x="step", y="loss", title="anchoring loss: others moved", height=180)

    def start(name: str | None, *more: Any) -> None:
        # A browser sends None for fields that it has not drawn yet.
        called, instead, phrases, how, length, number = more
        desk.begin_erasing(
            name or "",
            aliases=called or "",
            surrogate=instead or "",
            keep=phrases or "",
            preset=how or _PRESETS[0],
            num_steps=length or None,
            seed=int(number or 0),
        )

    def go_on() -> None:
        desk.resume_erasing(desk.setting("run", "-"))

    when(begin.click, start, [concept, aliases, surrogate, kept, preset, steps, seed])
    when(resume.click, go_on)

    def facts() -> Any:
        run = desk.run
        return run and (run.stem, run.state, run.step, run.message)

    def can_resume() -> bool:
        run = desk.run
        return run is not None and run.state in ("stopped", "failed")

    def pictures() -> list[tuple[str, str]]:
        run = desk.run
        return [] if run is None else [(str(path), caption) for path, caption in desk.runs.previews(run)]

    def plot(name: str) -> Callable[[], Any]:
        def frame() -> Any:
            run = desk.run
            losses = [] if run is None else desk.runs.losses(run)
            found = pd.DataFrame({"step": [one.step for one in losses], "loss": [getattr(one, name) for one in losses]})
            # The axis is as long as the run, so that the line also shows how far it is.
            return gr.LinePlot(found, x_lim=None if run is None else [0, max(1, run.num_steps)])

        return frame

    def known() -> Any:
        return gr.update(choices=desk.concepts(), value=desk.setting("concept", "") or None)

    note(desk, concept, "concept", "")
    pieces.append(Piece(concept, desk.concepts, known))
    for component, name in ((aliases, "aliases"), (surrogate, "surrogate"), (kept, "keep")):
        keep(desk, pieces, component, name, "")
    keep(desk, pieces, preset, "preset", _PRESETS[0])
    keep(desk, pieces, seed, "erase_seed", 0)
    note(desk, steps, "num_steps", 0)
    pieces.append(Piece(steps, lambda: 0, lambda: desk.setting("num_steps", 0) or None))
    pieces.append(Piece(line, facts, lambda: fragments.run_line(desk.run)))
    pieces.append(Piece(resume, can_resume, lambda: gr.update(interactive=can_resume())))
    pieces.append(Piece(previews, pictures, pictures))
    pieces.append(Piece(erasing, facts, plot("erasing")))
    pieces.append(Piece(anchoring, facts, plot("anchoring")))


def draw_tab(desk: Desk, pieces: list[Piece]) -> None:
    """The shelf, and a prompt drawn before and after."""
    shelf_seen = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown("### Shelf")
            _shelf(desk, shelf_seen)
            add = gr.UploadButton("Add a file", file_types=[".safetensors"], size="sm", elem_id="add")
            shipped = gr.Dropdown([], label="Or one that comes with this model", elem_id="shipped")
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(desk.setting("prompt", ""), label="Prompt", elem_id="prompt", submit_btn=False)
            with gr.Row():
                seed = gr.Number(desk.setting("seed", 0), label="Seed", precision=0, minimum=0, min_width=120)
                steps = gr.Slider(
                    1, 50, desk.setting("steps", 25), step=1, label="Steps", min_width=160, elem_id="draw-steps"
                )
            hold = gr.Checkbox(False, label="Hold every gate open (γ = 1 on any prompt)")
            draw = gr.Button("Draw before and after", variant="primary", elem_id="draw")
            slider = gr.ImageSlider(
                label="before | after", type="filepath", height=420, max_height=420, interactive=False, elem_id="slider"
            )
            bars = gr.HTML(elem_id="bars")
    inputs = [prompt, seed, steps, hold]

    def begin(text: str, seed: float | None, steps: float, hold_open: bool) -> None:
        desk.begin_drawing(text, seed=int(seed or 0), steps=int(steps), hold_open=hold_open)

    def put(file: str) -> None:
        desk.shelf.add_file(Path(file))

    def take(name: str | None) -> None:
        if name:
            desk.take_shipped(name)

    def offered() -> Any:
        names = desk.shipped()
        return gr.update(choices=names, value=None, visible=bool(names))

    when(draw.click, begin, inputs)
    when(prompt.submit, begin, inputs)
    when(add.upload, put, [add])
    when(shipped.input, take, [shipped])

    def shown() -> Any:
        found = desk.album.drawing()
        return found and str(found.pictures[0])

    def gates() -> str:
        found = desk.album.drawing()
        return "" if found is None else fragments.bars(found.bars, found.identical, found.drift)

    def pair() -> Any:
        found = desk.album.drawing()
        return None if found is None else tuple(str(path) for path in found.pictures)

    pieces.append(Piece(shelf_seen, lambda: shelf_key(desk), lambda: repr(shelf_key(desk))))
    # Emptied again when what was chosen stands on the shelf.
    pieces.append(Piece(shipped, lambda: (desk.model, shelf_key(desk)), offered))
    pieces.append(Piece(slider, shown, pair))
    pieces.append(Piece(bars, shown, gates))
    keep(desk, pieces, prompt, "prompt", "")
    keep(desk, pieces, seed, "seed", 0)
    keep(desk, pieces, steps, "steps", 25)
    keep(desk, pieces, hold, "hold", False)


def _shelf(desk: Desk, seen: gr.State) -> None:
    @gr.render(inputs=seen, triggers=[seen.change], show_progress="hidden")
    def rows(_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        items = desk.shelf.items()
        if not items:
            gr.Markdown("The shelf is empty. Erase a concept first, or add a membrane.")
        for item in items:
            with gr.Row(elem_classes="shelf-row"):
                on = gr.Checkbox(
                    item.on, label=item.name, info=item.problem or None, interactive=True, min_width=120,
                    key=f"on-{item.file}",
                )  # fmt: skip
                strength = gr.Slider(
                    0, STRONGEST, item.strength, step=0.05, label=f"strength of {item.name}", interactive=True,
                    min_width=150, key=f"strength-{item.file}",
                )  # fmt: skip
                remove = gr.Button("Remove", size="sm", min_width=80, key=f"remove-{item.file}")
            _bind_row(desk, item.file, on, strength, remove)


def _bind_row(desk: Desk, file: str, on: gr.Checkbox, strength: gr.Slider, remove: gr.Button) -> None:
    def switch(value: bool) -> None:
        desk.shelf.switch(file, on=value)

    def scale(value: float) -> None:
        desk.shelf.switch(file, strength=value)

    def take_off() -> None:
        desk.shelf.remove(file)

    when(on.input, switch, [on])
    when(strength.input, scale, [strength])
    when(remove.click, take_off)
