"""What membranes cost at run time, as ratios to the bare pipeline in the same process.

    python benchmarks/run_paths.py                                  # bundled model
    python benchmarks/run_paths.py --model sd15 --latent-size 32    # random UNet of Stable Diffusion 1.5 size

Bare and equipped runs alternate; a ratio is the median over pairs of runs, of processor time and of wall time. Every
case first checks its pictures: what must equal the bare ones does, bit for bit; what must differ differs, and equals
the side path within a tolerance. Membranes that never act have pairs at a few sites only, since they are never read.
Prints a table and writes benchmarks/results/run_paths_<model>.json.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.equip.bank import Bank, BankGate
from semipermeable.files.bank import pack
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState, Membrane, Provenance
from semipermeable.permeability import Decision, Trace, Transport, fit, negatives, wordings
from semipermeable.permeability.vocabulary import CAPTIONS, NOUNS
from semipermeable.rank1 import pair_shapes
from semipermeable.sites import find_sites

RESULTS = Path(__file__).parent / "results"
BARS = {
    "bank of 1,000, none active": 1.01,
    "one active on all rows": 1.02,
    "one active on conditional rows": 1.05,
    "16 rows, 16 concepts each": 1.15,
    "100 active on every row": 1.30,
}
TOLERANCE = 2e-3
SYLLABLES = ("ka", "lo", "mi", "ne", "ru", "sta", "vel", "tor", "qui", "zan", "pre", "dol")


def random_membrane(denoiser: Any, name: str, seed: int, every: int = 1) -> Membrane:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, (site, found) in enumerate(find_sites(denoiser).items()):
        if index % every == 0:
            u_shape, v_shape = pair_shapes(found.layer)
            scale = 0.3 / v_shape[1] ** 0.5
            u = torch.randn(u_shape, generator=generator) * scale
            pairs[site] = (u, torch.randn(v_shape, generator=generator) * scale)
    return Membrane(pairs, Concept(name))


def load_model(name: str, latent_size: int) -> Any:
    pipe = spm.zoo.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    if name == "emoji":
        return pipe
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=latent_size, cross_attention_dim=768, attention_head_dim=8).eval()
    config = pipe.text_encoder.config.to_dict() | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "num_hidden_layers": 2,
    }
    text_encoder = CLIPTextModel(type(pipe.text_encoder.config)(**config)).eval()
    parts = pipe.components | {"unet": unet, "text_encoder": text_encoder}
    large = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    large.set_progress_bar_config(disable=True)
    return large


class ByPrompt:
    """A rule that opens the concepts named for a prompt."""

    def __init__(self, opened: dict[str, set[str]]) -> None:
        self.opened = opened

    def decide(self, prompts: Sequence[Any], concept: Any) -> list[Decision]:
        name = concept.concept.name
        return [Decision(float(name in self.opened.get(p.text, ())), "given") for p in prompts]


class Bench:
    def __init__(self, pipe: Any, latent_size: int, steps: int, repeats: int) -> None:
        self.pipe, self.size, self.steps, self.repeats = pipe, latent_size, steps, repeats

    def draw(self, prompts: Sequence[str], guidance: float) -> torch.Tensor:
        rows = len(prompts)
        shape = (rows, self.pipe.unet.config.in_channels, self.size, self.size)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        options = {"num_inference_steps": self.steps, "guidance_scale": guidance, "latents": latents}
        return self.pipe(list(prompts), output_type="latent", **options).images

    def pairs(
        self, attached: Callable[[], Any], prompts: Sequence[str], guidance: float, changes: bool
    ) -> dict[str, Any]:
        """Median ratios of equipped to bare runs, after the outputs have been checked."""
        bare = self.draw(prompts, guidance)
        with attached() as guard:
            out = self.draw(prompts, guidance)
            paths = guard.paths._asdict()
            assert torch.equal(out, bare) is not changes, "outputs are not what they must be"
        error = None
        if changes:
            with attached() as guard:
                guard._binding._fold = False
                side = self.draw(prompts, guidance)
            error = float((side - out).abs().max() / side.abs().max())
            assert error < TOLERANCE, f"the paths differ by {error}"
        ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
        for repeat in range(self.repeats):
            taken = {}
            for kind in ("bare", "equipped") if repeat % 2 else ("equipped", "bare"):
                if kind == "bare":
                    taken[kind] = timed(lambda: self.draw(prompts, guidance))
                    continue
                with attached() as guard:
                    self.draw(prompts, guidance)
                    taken[kind] = timed(lambda: self.draw(prompts, guidance))
            for index, clock in enumerate(ratios):
                ratios[clock].append(taken["equipped"][index] / taken["bare"][index])
        found: dict[str, Any] = {clock: statistics.median(values) for clock, values in ratios.items()}
        return found | {"all": ratios, "paths": paths, "error": error}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def rows_cases(bench: Bench, folder: Path, rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    pipe, unet = bench.pipe, bench.pipe.unet
    for number in range(999):
        spm.save(random_membrane(unet, f"filler {number}", number, every=40), folder / f"{number}.safetensors")
    cat = random_membrane(unet, "cat", 5000)
    spm.save(cat, folder / "cat.safetensors")
    pack(folder, folder.parent / "bank.safetensors")
    bank = Bank(folder.parent / "bank.safetensors")
    yield "bank of 1,000, none active", bench.pairs(lambda: spm.attach(pipe, bank), ["a bird"], 4.0, False)
    yield "one active on all rows", bench.pairs(lambda: spm.attach(pipe, bank), ["a cat"], 1.0, True)
    yield "one active on conditional rows", bench.pairs(lambda: spm.attach(pipe, bank), ["a cat"], 4.0, True)
    hundred = [random_membrane(unet, f"h{number}", 6000 + number) for number in range(100)]
    yield (
        "100 active on every row",
        bench.pairs(lambda: spm.attach(pipe, hundred, "open", strength=0.1), ["a"], 1.0, True),
    )
    yield (
        "100 on conditional rows",
        bench.pairs(lambda: spm.attach(pipe, hundred, "open", strength=0.1), ["a"], 4.0, True),
    )
    prompts = [f"picture {row}" for row in range(rows)]
    own = [[random_membrane(unet, f"r{row}c{c}", 7000 + 16 * row + c) for c in range(16)] for row in range(rows)]
    rule = ByPrompt({prompt: {m.name for m in several} for prompt, several in zip(prompts, own, strict=True)})
    everything = [membrane for several in own for membrane in several]
    name = "16 rows, 16 concepts each" if rows == 16 else f"{rows} rows, 16 concepts each"
    yield name, bench.pairs(lambda: spm.attach(pipe, everything, rule, strength=0.2), prompts, 1.0, True)


@contextmanager
def loras(pipe: Any, files: Sequence[Path]) -> Iterator[list[str]]:
    names = []
    for number, file in enumerate(files):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"lora{number}")
        names.append(f"lora{number}")
    try:
        yield names
    finally:
        pipe.unload_lora_weights()


def rivals(bench: Bench, folder: Path, counts: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reload per prompt (as the reference code does), and diffusers with PEFT and k adapters at once."""
    pipe = bench.pipe
    files = []
    for number in range(max(counts)):
        file = folder / f"lora{number}.safetensors"
        spm.export(random_membrane(pipe.unet, f"l{number}", 9000 + number), file, "diffusers", denoiser=pipe.unet)
        files.append(file)

    def reload() -> None:
        with spm.attach(pipe, folder / "one.safetensors", "open"):
            bench.draw(["a cat"], 1.0)

    spm.save(random_membrane(pipe.unet, "one", 1), folder / "one.safetensors")
    bare = [timed(lambda: bench.draw(["a cat"], 1.0)) for _ in range(bench.repeats)]
    again = [timed(reload) for _ in range(bench.repeats)]
    yield "reload per prompt", medians(again, bare)
    for count in counts:
        with loras(pipe, files[:count]) as names:
            pipe.set_adapters(names)
            bench.draw(["a cat"], 1.0)
            equipped = [timed(lambda: bench.draw(["a cat"], 1.0)) for _ in range(bench.repeats)]
            switch = [timed(lambda: pipe.set_adapters(names)) for _ in range(bench.repeats)]
        bare = [timed(lambda: bench.draw(["a cat"], 1.0)) for _ in range(bench.repeats)]
        yield f"PEFT, {count} adapters", medians(equipped, bare)
        yield f"set_adapters of {count}, in pictures", medians(switch, bare)


def medians(some: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> dict[str, Any]:
    pairs = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(some, others, strict=True)]
    return {"cpu": statistics.median(p[0] for p in pairs), "wall": statistics.median(p[1] for p in pairs)}


def gate_case(pipe: Any, num_fits: int, repeats: int) -> dict[str, Any]:
    """γ for 16 prompts against 10,000 concepts, after encoding; `num_fits` gates are fitted, the others are copies."""
    import random

    host = host_for(pipe)
    draw, encoder_hash = random.Random(0), host.text_encoder_hash()
    nouns = list(dict.fromkeys(NOUNS))
    gates = []
    for name in nouns[:: max(1, len(nouns) // num_fits)][:num_fits]:
        concept, generator = Concept(name), torch.Generator().manual_seed(0)
        examples = {"positives": wordings(concept), "negatives": negatives(concept)}
        found = fit(concept, host.encode, **examples, encoder_hash=encoder_hash, generator=generator)
        gates.append((name, GateState("transport", *found.to_parts())))
    bank = Bank(tempfile.mkdtemp())
    names = dict(gates)
    made = {"".join(draw.choices(SYLLABLES, k=3)) + f" {''.join(draw.choices(SYLLABLES, k=2))}" for _ in range(30_000)}
    for number, name in enumerate(sorted(made)[: 10_000 - len(names)]):
        names[name] = gates[number % len(gates)][1]
    pairs = {"site": (torch.ones(2, 1), torch.ones(1, 2))}
    for name, gate in names.items():
        bank.add(Membrane(pairs, Concept(name), Provenance(text_encoder_hash=encoder_hash), gate))
    known: dict[str, Any] = {}
    encode = host.encode

    def remembered(texts: Sequence[str]) -> list[Any]:
        new = [text for text in texts if text not in known]
        known.update(zip(new, encode(new), strict=True)) if new else None
        return [known[text] for text in texts]

    host.encode = remembered
    gate = BankGate(host, pipe.unet, bank, Transport(), 1.0, "open", Trace())
    subjects = [name for name, _ in gates][:16] or ["cat"]
    batches = [[f"a {paint} icon of a {s}" for s in (subjects * 16)[:16]] for paint in ("neon", *["flat"] * repeats)]
    batches = [[f"{text}, no. {number}" for text in batch] for number, batch in enumerate(batches)]
    taken = []
    for batch in batches:
        remembered(batch)
        taken.append(timed(lambda batch=batch: gate.decide(batch)))
    rule = Transport()
    concepts = gate._gated(list(names)[:200])
    for batch in batches[:1]:
        found = gate.decide(batch)
        for name, concept in concepts.items():
            for prompt, decision in zip(batch, rule.decide(remembered(batch), concept), strict=True):
                default = Decision(0.0, "")
                assert decision.gamma == found[prompt].get(name, default).gamma, (prompt, name)
    opened = sum(any(d.gamma for d in decisions.values()) for decisions in gate.decide(list(CAPTIONS)).values())
    cpu = [1000 * seconds for seconds, _ in taken[1:]]
    return {
        "milliseconds": statistics.median(cpu),
        "first_batch_milliseconds": 1000 * taken[0][0],
        "concepts": len(names),
        "fitted_gates": len(gates),
        "captions": len(CAPTIONS),
        "captions_that_open_something": opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["emoji", "sd15"], default="emoji")
    parser.add_argument("--latent-size", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--steps", type=int, default=20, help="of one picture; a picture also has a fixed cost")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fits", type=int, default=8, help="gates that are really fitted")
    parser.add_argument("--parts", default="rows,rivals,gate")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = load_model(options.model, options.latent_size)
    bench = Bench(pipe, options.latent_size, options.steps, options.repeats)
    found: dict[str, Any] = {}
    parts = options.parts.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "membranes"
        folder.mkdir()
        cases: list[Iterator[tuple[str, dict[str, Any]]]] = []
        cases += [rows_cases(bench, folder, options.rows)] if "rows" in parts else []
        cases += [rivals(bench, Path(name), (1, 4))] if "rivals" in parts else []
        for case in cases:
            for title, result in case:
                found[title] = result | {"bar": BARS.get(title)}
                bar = f"  bar {BARS[title]}" if title in BARS else ""
                print(
                    f"{title:35} cpu x{result['cpu']:.3f}  wall x{result['wall']:.3f}{bar}  {result.get('paths', '')}",
                    flush=True,
                )
    if "gate" in parts and options.model == "emoji":
        torch.set_num_threads(1)
        found["gate"] = gate_case(pipe, options.fits, options.repeats)
        print("gate", found["gate"], flush=True)
    machine = {"load": os.getloadavg(), "torch": torch.__version__, "python": platform.python_version()}
    told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    target = options.out or RESULTS / f"run_paths_{options.model}.json"
    target.write_text(json.dumps({"options": told, "machine": machine, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
