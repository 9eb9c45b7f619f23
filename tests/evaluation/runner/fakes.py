"""A world without networks: pictures that carry what they show in two pixels, a judge that reads them, and erasers.

A tenth of the pictures show a wrong object. Everything is a function of a module, so that worker processes find it.
"""

import hashlib
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from transformers.utils import logging as transformers_logging

from semipermeable import zoo
from semipermeable.evaluation.benchmarks import Benchmark, Case, Row, Sampler
from semipermeable.evaluation.benchmarks.emoji import target_for
from semipermeable.evaluation.judges import RealPictures
from semipermeable.evaluation.scores import moments_of
from semipermeable.evaluation.verdicts import Panel

SPEC = zoo.spec("emoji")
THINGS, STYLES = SPEC.object_names, SPEC.styles
SIDE = 8


def asked(prompt):
    """The longest object and style named in a prompt."""
    things = [name for name in THINGS if name in prompt]
    styles = [name for name in STYLES if name in prompt]
    return max(things, key=len, default=THINGS[-1]), max(styles, key=len, default=STYLES[-1])


class FakePipe:
    """Draws like a diffusers pipeline."""

    def __call__(self, prompts, *, negative_prompt, generator, num_inference_steps, guidance_scale, output_type):
        assert output_type == "pt"
        assert len(negative_prompt) == len(prompts) == len(generator)
        return SimpleNamespace(images=torch.stack([self.one(*pair) for pair in zip(prompts, generator, strict=True)]))

    def one(self, prompt, generator):
        thing, style = asked(prompt)
        picture = 0.5 + 0.1 * torch.randn(3, SIDE, SIDE, generator=generator).clamp(-3, 3)
        wrong = bool(torch.rand((), generator=generator) < 0.1)
        number = (THINGS.index(thing) + 7 * wrong) % len(THINGS)
        picture[0, 0, 0], picture[1, 0, 0] = number / 255, STYLES.index(style) / 255
        return picture


class FakeJudge:
    objects, styles = THINGS, STYLES

    def __call__(self, images):
        read = (images[:, :, 0, 0] * 255).round().long()
        return read[:, 0].clamp(max=len(THINGS) - 1), read[:, 1].clamp(max=len(STYLES) - 1)

    def features(self, images):
        """Pixel means by quadrant and channel, 12 numbers."""
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class ShuffledJudge(FakeJudge):
    """Tells every picture's verdict about another picture."""

    def __call__(self, images):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(len(images)))
        things, styles = super().__call__(images)
        return things[order], styles[order]


class FakeClip:
    """One axis for each object; a text that names none lies on an axis of its own."""

    def image_features(self, images):
        return torch.nn.functional.one_hot(FakeJudge()(images)[0], len(THINGS) + 1).float()

    def text_features(self, texts):
        named = [max((n for n in THINGS if n in text), key=len, default=None) for text in texts]
        numbers = [len(THINGS) if name is None else THINGS.index(name) for name in named]
        return torch.nn.functional.one_hot(torch.tensor(numbers), len(THINGS) + 1).float()


@dataclass
class FakeGate:
    names: list
    everywhere: float

    def openings(self, pipe, prompts):
        """Opens on what is asked for, and a little on everything else."""
        wanted = [next((name for name in self.names if name in asked(prompt)), None) for prompt in prompts]
        other = [(self.names[0], self.everywhere, "always")] if self.everywhere else []
        return [[(name, 1.0, f"name found: {name!r}")] if name else other for name in wanted]


@dataclass
class FakeErasure:
    draw: object
    config: dict
    stored_bytes: int = 1000
    gate: FakeGate | None = None

    @contextmanager
    def applied(self, pipe):
        yield lambda prompts, **how: SimpleNamespace(images=self.draw(pipe, prompts, **how))


@dataclass
class FakeEraser:
    name: str
    gated: bool = False
    calls: list = field(default_factory=list)

    def prepare(self, pipe, concepts, *, seed, progress=False):
        names = [concept.name for concept in concepts]
        gate = FakeGate(names, 0.75 if self.name == "sharp" else 0.0) if self.gated else None
        draw = lambda pipe, prompts, **how: DRAWS[self.name](pipe, prompts, names, **how)  # noqa: E731
        return FakeErasure(draw, {"seed": seed}, gate=gate)


def noop(pipe, prompts, names, **how):
    return pipe(prompts, **how).images


def white(pipe, prompts, names, **how):
    return torch.ones_like(pipe(prompts, **how).images)


def oracle(pipe, prompts, names, *, generator, **how):
    """Judge-guided rejection: whatever shows an erased concept is drawn again from other noise, without its name."""
    seeds = [g.initial_seed() for g in generator]
    images = pipe(prompts, generator=generator, **how).images
    for attempt in range(1, 20):
        things, styles = FakeJudge()(images)
        shown = [
            THINGS[t] in names or STYLES[s] in names for t, s in zip(things.tolist(), styles.tolist(), strict=True)
        ]
        for i in [i for i, bad in enumerate(shown) if bad]:
            thing, style = asked(prompts[i])
            left = [n for n in THINGS if n not in names][attempt], next(n for n in STYLES if n not in names)
            prompt = f"{left[1] if style in names else style} {left[0] if thing in names else thing}"
            images[i] = pipe.one(prompt, torch.Generator().manual_seed(seeds[i] + attempt))
    return images


def blunt(pipe, prompts, names, **how):
    """Erases half of what it should, and a fifth of what it should not; blurs the rest a little."""
    images = pipe(prompts, **how).images
    for i, prompt in enumerate(prompts):
        luck = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 10
        thing, style = asked(prompt)
        if luck < (5 if thing in names or style in names else 2):
            images[i, :2, 0, 0] = torch.tensor([(THINGS.index(thing) + 3) % len(THINGS) / 255, 0.0])
        images[i, :, 4:] = images[i, :, 4:].mean()
    return images


DRAWS = {"noop": noop, "white": white, "oracle": oracle, "blunt": blunt, "sharp": oracle}


def load(model, device, dtype):
    return FakePipe()


def loud_load(model, device, dtype):
    if transformers_logging.is_progress_bar_enabled():
        sys.stderr.write("Loading weights: 100%\n")
    return FakePipe()


def eraser(spec):
    return FakeEraser(spec, gated=spec in ("oracle", "sharp"))


def panel(benchmark, sources):
    generator = torch.Generator().manual_seed(3)
    real = torch.rand(50, 12, generator=generator)
    return Panel(judge=FakeJudge(), clip=FakeClip(), real=RealPictures(moments_of(real), real))


def shuffled_panel(benchmark, sources):
    return Panel(judge=ShuffledJudge(), missing=("bundled model 'emoji' has no CLIP judge",))


def small_benchmark(objects=("cat", "horse"), per_role=20):
    """Two objects, one at a time."""
    cases, number = [], 0
    for name in objects:
        rows = []
        others = [other for other in THINGS if other not in objects and name not in other and other not in name]
        for i in range(per_role):
            for role, thing in (("target", name), ("kept", others[i])):
                style = STYLES[i % len(STYLES)]
                prompt = SPEC.caption(thing, style, template=i % len(SPEC.templates))
                tag = "plain" if role == "target" else ("twin" if i % 2 else "other")
                rows.append(Row(number=number, prompt=prompt, role=role, tag=tag, object=thing, style=style))
                number += 1
        cases.append(Case(name=name, axis="object", targets=(target_for(SPEC, name, "object"),), rows=tuple(rows)))
    return Benchmark(
        name="small", version=1, summary="A test.", model="emoji", sampler=Sampler(batch_size=7), cases=tuple(cases)
    )


def silent(_title):
    return nullcontext(lambda _done, _total: None)
