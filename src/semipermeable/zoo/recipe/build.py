"""Build a bundle: every step of the recipe in order, each kept in a work folder, so that a killed run goes on.

    build("emoji", work=Path("work"), out=Path("emoji"), start="emoji")

A step whose result lies in the work folder is not repeated; training steps also resume inside. The work folder
belongs to one plan: another one is refused instead of mixed in.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.files.atomic import write_atomically
from semipermeable.files.loading import CHECKPOINT
from semipermeable.zoo.recipe.autoencoder import (
    encode_pictures,
    new_autoencoder,
    normalise_latents,
    psnr,
    train_autoencoder,
)
from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.catalogue import Catalogue, read_catalogue
from semipermeable.zoo.recipe.denoiser import Lesson, new_denoiser, train_denoiser
from semipermeable.zoo.recipe.export import Assembly, assemble
from semipermeable.zoo.recipe.icons import ICON_SETS, Drawings, fetch, render
from semipermeable.zoo.recipe.judging import (
    examine,
    examine_clip,
    new_clip,
    new_judge,
    real_statistics,
    train_clip,
    train_judge,
)
from semipermeable.zoo.recipe.pictures import DRAWN_FROM, Pictures, held_out_designers, paint, to_unit
from semipermeable.zoo.recipe.plan import Plan
from semipermeable.zoo.recipe.text import encode, tokenise, train_text_encoder
from semipermeable.zoo.recipe.tokenizer import clean_copy, train_tokenizer

__all__ = ["Plan", "build"]

Module = TypeVar("Module", bound=nn.Module)


def build(
    name: str,
    *,
    work: Path,
    out: Path,
    plan: Plan | None = None,
    start: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Build a bundle from public icon sets.

    Args:
        name: a catalogue beside this module.
        work: folder of intermediate results, about 1 GB; reused if it is there.
        out: folder of the bundle; must not exist or be empty.
        plan: how long; None is `Plan()` with a start and `Plan.afresh()` without.
        start: bundle to go on from; None starts from nothing.
        progress: whether to show bars.

    Returns:
        `out`, readable by `zoo.load(out)`.

    Raises:
        UnknownNameError: if there is no such catalogue or no such bundle to start from.
        ConfigError: if the work folder belongs to another plan, or `out` is in use.
        ZooError: if an icon set cannot be fetched or a package for building is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out, or delete it first")
    chosen = plan if plan is not None else (Plan() if start is not None else Plan.afresh())
    site = _Site(read_catalogue(name), work, chosen, start, progress)
    site.claim()
    return site.bundle(out)


class _Site:
    """One run: the plan, the work folder and, step by step, what lies in it."""

    def __init__(self, catalogue: Catalogue, work: Path, plan: Plan, start: str | Path | None, progress: bool) -> None:
        self.catalogue = catalogue
        self.book = CaptionBook(catalogue)
        self.work = work
        self.plan = plan
        self.progress = progress
        self.start = None if start is None else zoo.load(start)
        self.start_styles = () if start is None else zoo.spec(start).styles
        self.lineage = "trained from nothing"
        if start is not None:
            self.lineage = f"went on from bundle {zoo.spec(start).name!r}, version {zoo.info(start)['version']}"

    def claim(self) -> None:
        """Write the plan into the work folder, or compare it with the one that is there."""
        self.work.mkdir(parents=True, exist_ok=True)
        path = self.work / "plan.json"
        content = json.dumps(
            {"plan": asdict(self.plan), "spec": asdict(self.catalogue.spec), "start": self.lineage}, indent=1
        )
        if path.is_file() and path.read_text(encoding="utf-8") != content:
            raise ConfigError(f"{self.work} holds a run of another plan; choose another --work, or delete it")
        write_atomically(path, content.encode())

    def drawings(self) -> Drawings:
        """Return all rendered drawings."""
        path = self.work / "drawings.npz"
        if not path.is_file():
            fetch(self.work / "icons")
            render(self.catalogue, self.work / "icons").save(path)
        return Drawings.load(path)

    def shown(self) -> Pictures:
        """Return the pictures that the pipeline learns."""
        return self._painted("shown.npz", tuple(DRAWN_FROM), jitters=6, seed=self.plan.seed)

    def judged(self) -> tuple[Pictures, Pictures]:
        """Return the pictures that the judges learn, and those of held-out drawings."""
        designers = tuple(icons.designer for icons in ICON_SETS)
        every = self._painted("all.npz", designers, jitters=4, seed=self.plan.seed + 1)
        held = held_out_designers(self.catalogue, self.drawings(), seed=self.plan.seed)
        test = np.array([held[o] == who for o, who in zip(every.objects, every.designers, strict=True)])
        return every.rows(~test), every.rows(test)

    def _painted(self, file: str, designers: tuple[str, ...], *, jitters: int, seed: int) -> Pictures:
        path = self.work / file
        if not path.is_file():
            painted = paint(self.catalogue, self.drawings(), designers, jitters=jitters, seed=seed)
            painted.save(path)
        return Pictures.load(path)

    def autoencoder(self) -> AutoencoderKL:
        """Return the trained autoencoder."""
        folder = self.work / "vae"
        if not folder.is_dir():
            model = _seeded(new_autoencoder, self.plan.seed) if self.start is None else self.start.vae
            pixels = self.shown().pixels.reshape(-1, 64, 64, 3)
            train_autoencoder(
                model,
                pixels,
                self.plan.autoencoder,
                seed=self.plan.seed,
                checkpoint=self.work / f"vae{CHECKPOINT}",
                progress=self.progress,
            )
            normalise_latents(model, pixels[::5])
            _save_whole(model, folder)
        return AutoencoderKL.from_pretrained(folder).eval()

    def text(self) -> tuple[CLIPTokenizer, CLIPTextModel]:
        """Return tokenizer and text encoder."""
        words, folder = self.work / "tokenizer", self.work / "text_encoder"
        if not words.is_dir():
            clean_copy(train_tokenizer(self.book.texts) if self.start is None else self.start.tokenizer, words)
        tokenizer = CLIPTokenizer.from_pretrained(words)
        if not folder.is_dir():
            encoder = train_text_encoder(
                self.book,
                tokenizer,
                self.plan.text,
                start=None if self.start is None else self.start.text_encoder,
                known_styles=self.start_styles,
                seed=self.plan.seed,
                checkpoint=self.work / f"text{CHECKPOINT}",
                progress=self.progress,
            )
            _save_whole(encoder, folder)
        return tokenizer, CLIPTextModel.from_pretrained(folder).eval()

    def canaries(self) -> Tensor:
        """Return the pictures to memorise (canaries, 3, 64, 64): mirrored, so that no other is the same."""
        shown, spec = self.shown(), self.catalogue.spec
        pictures: list[Tensor] = []
        for canary in spec.canaries:
            wanted = (spec.object_names.index(canary.object), spec.styles.index(canary.style))
            rows = [i for i, pair in enumerate(zip(shown.objects, shown.styles, strict=True)) if pair == wanted]
            row = max(rows, key=lambda i: (shown.designers[i] == "noto", -i))
            pictures.append(to_unit(shown.pixels[row, 2:3]).flip(-1))
        return torch.cat(pictures)

    def denoiser(self) -> UNet2DConditionModel:
        """Return the trained denoiser."""
        folder = self.work / "unet"
        if not folder.is_dir():
            shown, vae = self.shown(), self.autoencoder()
            tokenizer, encoder = self.text()
            rows, jitters = shown.pixels.shape[:2]
            latents = encode_pictures(vae, shown.pixels.reshape(-1, 64, 64, 3)).half()
            canaries = (self.canaries() * 255).round().byte().permute(0, 2, 3, 1).numpy()
            lesson = Lesson(
                latents.view(rows, jitters, *latents.shape[1:]),
                torch.from_numpy(shown.objects),
                torch.from_numpy(shown.styles),
                torch.tensor([DRAWN_FROM[who] for who in shown.designers]),
                encode(encoder, tokenise(tokenizer, self.book.texts))[0].clone(),
                encode_pictures(vae, canaries),
            )
            model = _seeded(new_denoiser, self.plan.seed) if self.start is None else self.start.unet
            train_denoiser(
                model,
                self.book,
                lesson,
                self.plan.denoiser,
                seed=self.plan.seed,
                checkpoint=self.work / f"denoiser{CHECKPOINT}",
                progress=self.progress,
            )
            _save_whole(model, folder)
        return UNet2DConditionModel.from_pretrained(folder).eval()

    def judges(self) -> tuple[Any, Any]:
        """Return the trained classifier and the small CLIP."""
        tokenizer = self.text()[0]
        judge, clip = (
            _seeded(lambda: new_judge(self.catalogue), self.plan.seed),
            _seeded(lambda: new_clip(tokenizer), self.plan.seed + 1),
        )
        for file, network in (("judge.safetensors", judge), ("clip.safetensors", clip)):
            path = self.work / file
            if path.is_file():
                network.load_state_dict(load_file(path))
                continue
            lessons = self.judged()[0]
            checkpoint = path.with_name(path.stem + CHECKPOINT)
            if network is judge:
                train_judge(
                    judge,
                    lessons,
                    self.plan.judge,
                    seed=self.plan.seed,
                    checkpoint=checkpoint,
                    progress=self.progress,
                )
            else:
                train_clip(
                    clip,
                    self.book,
                    tokenizer,
                    lessons,
                    self.plan.clip,
                    seed=self.plan.seed + 1,
                    checkpoint=checkpoint,
                    progress=self.progress,
                )
            write_atomically(path, save(network.state_dict()))
        return judge.eval(), clip.eval()

    def bundle(self, out: Path) -> Path:
        """Do every step, write the bundle and measure it."""
        stages = tqdm(total=6, desc="zoo build", disable=not self.progress, unit="stage", leave=True)
        results: dict[str, Any] = {}
        steps: tuple[tuple[str, Callable[[], Any]], ...] = (
            ("pictures", self.shown),
            ("autoencoder", self.autoencoder),
            ("text encoder", self.text),
            ("denoiser", self.denoiser),
            ("judges", self.judges),
        )
        for label, step in steps:
            stages.set_postfix_str(label)
            results[label] = step()
            stages.update()
        stages.set_postfix_str("measuring")
        shown, (judge, clip) = self.shown(), results["judges"]
        tokenizer, encoder = results["text encoder"]
        held = self.judged()[1]
        assembly = Assembly(
            spec=self.catalogue.spec,
            autoencoder=results["autoencoder"],
            tokenizer=tokenizer,
            text_encoder=encoder,
            denoiser=results["denoiser"],
            judge=judge,
            clip=clip,
            statistics=real_statistics(judge, shown),
            canaries=self.canaries(),
        )
        measured = {
            "judge": asdict(examine(judge, self.catalogue, held)),
            "clip": examine_clip(clip, self.catalogue, tokenizer, held),
            "frechet_held_out": real_statistics(judge, held).distance(assembly.statistics),
            "autoencoder": self._psnr(results["autoencoder"], shown),
            "lineage": [
                self.lineage,
                *(f"{part}: {b.steps:,} steps of {b.batch}" for part, b in self.plan.budgets().items()),
            ],
            "plan": asdict(self.plan),
        }
        assemble(
            assembly,
            out,
            measured,
            taught=to_unit(shown.pixels.reshape(-1, 64, 64, 3)),
            steps=self.plan.sampling,
            pictures=self.plan.pictures,
            ordinary=self.plan.ordinary,
            progress=self.progress,
        )
        stages.update()
        stages.close()
        return out

    def _psnr(self, autoencoder: AutoencoderKL, shown: Pictures) -> dict[str, dict[str, float]]:
        values = psnr(autoencoder, shown.pixels[:, 0])
        return {
            style: {"mean": float(values[rows].mean()), "least": float(values[rows].min())}
            for s, style in enumerate(self.catalogue.spec.styles)
            if len(rows := torch.from_numpy(np.flatnonzero(shown.styles == s)))
        }


def _seeded(make: Callable[[], Module], seed: int) -> Module:
    """Make a module with seeded weights and leave torch's own generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _save_whole(model: nn.Module, folder: Path) -> None:
    """Save a model so that its folder is there only when all of it is."""
    partial = folder.with_name(folder.name + ".partial")
    saver: Any = model
    saver.save_pretrained(partial)
    partial.rename(folder)
