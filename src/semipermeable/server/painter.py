"""The pipeline and the membranes in it: decides γ for every row, and draws rows with different policies in one call.

γ of row r and membrane c is decided before the call, from the row's text by the rule of the row's own plan; it is 0 for
every membrane that the plan does not hold. The strengths are then given to the attachment row by row: two rows with the
same text may differ. A row's result does not depend on the strengths of the others (SPM, Eq. 9: the sum at a site is
taken row by row), up to rounding that the number of rows in a call may change.

Every row's noise comes from a generator made from its seed alone. Used by one thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image

from semipermeable.equip import Attachment, attach
from semipermeable.equip.gating import gate_for, gated_concept
from semipermeable.errors import AttachError, CalibrationError, SemipermeableError
from semipermeable.files.foreign import resolve_foreign
from semipermeable.generation.drawing import batch_size_for
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.permeability import Decision, EncodedPrompt, GatedConcept, resolve
from semipermeable.server.jobs import CallShape
from semipermeable.server.library import Shelved
from semipermeable.server.painting import Abandoned, Asked, Facts, Painted, Standing
from semipermeable.server.planning import Acting, Plan
from semipermeable.sites import resolve_sites

__all__ = ["Abandoned", "Painter", "Row"]

_MAX_CACHED = 4096


class Row:
    """One picture of a call: prompt, negative prompt, seed, and what must be in force."""

    __slots__ = ("decisions", "negative", "plan", "prompt", "seed")

    def __init__(self, prompt: str, negative: str, seed: int, plan: Plan, decisions: tuple[Decision, ...]) -> None:
        self.prompt = prompt
        self.negative = negative
        self.seed = seed
        self.plan = plan
        self.decisions = decisions


class Painter:
    """A loaded pipeline that draws rows.

    Args:
        pipe: the pipeline; it belongs to the painter from now on.
        batch_rows: most rows of one call; None chooses by the model's size.
    """

    def __init__(self, pipe: Any, batch_rows: int | None = None) -> None:
        self._pipe = pipe
        self._host = host_for(pipe)
        self._denoiser = self._host.denoiser
        self._guard: Attachment | None = None
        self._columns: tuple[Shelved, ...] = ()
        self._concepts: OrderedDict[str, GatedConcept] = OrderedDict()
        self._decided: OrderedDict[tuple[str, str, str], Decision] = OrderedDict()
        self._empty, self._wordless = self._host.encode(["", "?"])
        self.batch_rows = batch_rows or batch_size_for(pipe)

    @property
    def most_calls(self) -> int:
        """One: the pipeline belongs to one thread."""
        return 1

    def calls(self, waiting: int) -> int:  # noqa: ARG002 - see `Paints`
        """Return 1."""
        return 1

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height of the model's own pictures, in pixels."""
        _, height, width = self._host.latent_shape()
        scale = int(self._pipe.vae_scale_factor)
        return width * scale, height * scale

    @property
    def facts(self) -> Facts:
        """What the server must know of the model; hashes its weights."""
        halvings = len(getattr(self._denoiser.config, "block_out_channels", (0,))) - 1
        return Facts(
            model_hash=self._host.base_hash(),
            native_size=self.native_size,
            unit=int(self._pipe.vae_scale_factor) * 2**halvings,
            most_steps=int(getattr(self._pipe.scheduler.config, "num_train_timesteps", 1000)),
            batch_rows=self.batch_rows,
        )

    def standing(self) -> Standing:
        """Return that pictures can be drawn: the model is here."""
        return Standing(True)

    def fit(self, membrane: Membrane) -> Membrane:
        """Return a membrane with the denoiser's site names; safe to call from another thread.

        Raises:
            SiteError: if it does not belong to this denoiser.
            CalibrationError: if "transport" cannot read its gate: by that rule any request may add it.
        """
        resolved = resolve_foreign(membrane, self._denoiser) if membrane.foreign_names else membrane
        resolve_sites(self._denoiser, dict(resolved.pairs))
        self._check_gate(resolved)
        return resolved

    def hold(self, membranes: Iterable[Shelved]) -> None:
        """Attach exactly these membranes; nothing happens if they are attached already.

        Raises:
            AttachError, SiteError: if they cannot be; the pipeline then refuses to draw until this succeeds.
        """
        wanted = tuple(membranes)
        if self._columns == wanted and (self._guard is None) == (not wanted):
            return
        if self._guard is not None:
            self._guard.detach()
        self._guard, self._columns = None, ()
        if wanted:
            self._guard = attach(self._pipe, [one.membrane for one in wanted], "closed", on_unknown="error")
            self._columns = wanted

    def decide(self, texts: Sequence[str], plans: Sequence[Plan]) -> list[tuple[Decision, ...]]:
        """Return γ of every membrane of every row's plan.

        Args:
            texts: one prompt per row.
            plans: one plan per row.

        Raises:
            CalibrationError, PermeabilityError: if a rule cannot decide.
        """
        open_questions: dict[tuple[str, str], tuple[Acting, list[str]]] = {}
        for text, plan in zip(texts, plans, strict=True):
            for acting in plan.acting:
                if self._key(text, acting) not in self._decided:
                    question = (acting.shelved.sha256, repr(acting.rule))
                    asked = open_questions.setdefault(question, (acting, []))[1]
                    if text not in asked:
                        asked.append(text)
        encoded: dict[str, EncodedPrompt] = {}
        missing = list(dict.fromkeys(text for _, asked in open_questions.values() for text in asked))
        for prompt in self._host.encode(missing):
            encoded[prompt.text] = prompt
        answers: dict[tuple[str, str, str], Decision] = {}
        for acting, asked in open_questions.values():
            concept = self._concept(acting.shelved)
            decisions = resolve(acting.rule).decide([encoded[text] for text in asked], concept)
            for text, decision in zip(asked, decisions, strict=True):
                answers[self._key(text, acting)] = decision
        found = [
            tuple(answers.get(key) or self._decided[key] for key in (self._key(text, acting) for acting in plan.acting))
            for text, plan in zip(texts, plans, strict=True)
        ]
        self._decided.update(answers)
        while len(self._decided) > _MAX_CACHED:
            self._decided.popitem(last=False)
        return found

    def paint(self, rows: Sequence[Row], shape: CallShape, unwanted: Callable[[], bool]) -> list[Image.Image | None]:
        """Draw rows in one pipeline call; None where a row's pixels are not finite numbers.

        Args:
            rows: what to draw; the membranes of their plans must be held.
            shape: steps, guidance and size of all.
            unwanted: asked between two steps; the call stops when it says yes.

        Raises:
            AttachError: if a membrane of a plan is not attached, or did not act.
            Abandoned: if the call was stopped.
        """
        strengths = self._strengths(rows)

        def on_step(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            if unwanted():
                raise Abandoned
            return values

        negatives = [row.negative or self._host.default_negative for row in rows]
        arguments: dict[str, Any] = {
            "num_inference_steps": shape.steps,
            "width": shape.width,
            "height": shape.height,
            "generator": [torch.Generator().manual_seed(row.seed) for row in rows],
            "output_type": "pt",
            "callback_on_step_end": on_step,
            **self._host.draw_arguments(shape.guidance, negatives if any(negatives) and shape.guidance > 1 else None),
        }
        prompts = [row.prompt for row in rows]
        if self._guard is None:
            pixels = self._pipe(prompts, **arguments).images
        else:
            with self._guard.given(strengths):
                pixels = self._pipe(prompts, **arguments).images
        finite: list[bool] = torch.isfinite(pixels).flatten(1).all(1).tolist()
        data = (pixels.float().cpu().permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return [Image.fromarray(picture) if whole else None for picture, whole in zip(data, finite, strict=True)]

    def draw(
        self, shelf: Iterable[Shelved], rows: Sequence[Asked], shape: CallShape, unwanted: Callable[[], bool]
    ) -> list[Painted]:
        """Hold the shelf, decide γ, and draw: see `Paints.draw`.

        Raises:
            AttachError: if a membrane of the shelf cannot be attached, or one of a plan did not act.
            CalibrationError, PermeabilityError: if a rule cannot decide.
            Abandoned: if the call was stopped.
        """
        try:
            self.hold(shelf)
        except SemipermeableError as error:
            raise AttachError(f"membranes in force cannot be attached: {error}") from error
        decisions = self.decide([row.prompt for row in rows], [row.plan for row in rows])
        full = [
            Row(row.prompt, row.negative, row.seed, row.plan, decided)
            for row, decided in zip(rows, decisions, strict=True)
        ]
        images = self.paint(full, shape, unwanted)
        return [Painted(image, decided) for image, decided in zip(images, decisions, strict=True)]

    def close(self) -> None:
        """Give the pipeline its bare denoiser back."""
        if self._guard is not None:
            self._guard.detach()
        self._guard, self._columns = None, ()

    def _strengths(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return γ^power · strength, shape (rows, membranes attached), zero where a plan does not hold a membrane."""
        strengths = torch.zeros(len(rows), len(self._columns))
        column_of = {id(one): column for column, one in enumerate(self._columns)}
        for index, row in enumerate(rows):
            for acting, decision in zip(row.plan.acting, row.decisions, strict=True):
                column = column_of.get(id(acting.shelved))
                if column is None:
                    raise AttachError(f"the membrane of {acting.shelved.concept!r} is required and not attached")
                power = acting.shelved.membrane.gate_power
                strengths[index, column] = decision.gamma**power * acting.strength
        return strengths

    def _check_gate(self, membrane: Membrane) -> None:
        # In a prompt without words no name is found, so the probe is asked. The names are not encoded for it: the text
        # encoder belongs to the thread that draws.
        names = (self._empty,) * len(membrane.concept.names)
        concept = GatedConcept(membrane.concept, names, self._empty, gate_for(self._host, membrane))
        try:
            resolve("transport").decide([self._wordless], concept)
        except CalibrationError as error:
            raise CalibrationError(f"the rule 'transport' cannot read its gate, as a server must: {error}") from error

    def _concept(self, shelved: Shelved) -> GatedConcept:
        if shelved.sha256 not in self._concepts:
            while len(self._concepts) >= _MAX_CACHED:
                self._concepts.popitem(last=False)
            self._concepts[shelved.sha256] = gated_concept(self._host, shelved.membrane)
        return self._concepts[shelved.sha256]

    @staticmethod
    def _key(text: str, acting: Acting) -> tuple[str, str, str]:
        return text, acting.shelved.sha256, repr(acting.rule)
