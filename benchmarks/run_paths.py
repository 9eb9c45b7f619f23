"""What membranes cost at run time, as ratios to the bare pipeline in the same process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/run_paths.py                            # bundled model
    OMP_WAIT_POLICY=PASSIVE python benchmarks/run_paths.py --parts none,rows --steps 4 --repeats 2000 --seconds 180
    OMP_WAIT_POLICY=PASSIVE python benchmarks/run_paths.py --model sd15 --latent-size 32 --steps 2 --parts rows,rivals
    OMP_WAIT_POLICY=PASSIVE python benchmarks/run_paths.py --model sd15 --latent-size 16 --steps 2 --parts own

A bare pipeline and an equipped one that share the denoiser draw in turn (`timing.paired`); a ratio is the median over
pairs, of processor time and of wall time. Every case first checks its latents: what must equal the bare ones does, bit
for bit; what must differ differs and equals the side path within a tolerance. Membranes that never act have pairs at a
few sites only, since they are never read. The wait policy keeps threads that wait for each other from spinning, where
other programs want the cores. Where the machine is noisy, many pairs of short pictures decide more than few pairs of
long ones, and are stricter: what a picture pays once is spread over fewer steps.
Every case is printed and written to benchmarks/results/run_paths_<model>.json at once; the next run keeps the cases
of the parts that it does not measure.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from floor import call_cost, machine_rates
from gate_roc import unrelated_prompts
from scaling_page import AT_FULL_SIZE, CLOCK, IDLE, IDLE_ALONE, verdict
from timing import MODELS, drawer, load_model, machine, paired, random_membrane, sibling, summary, timed

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.equip.bank import Bank, BankGate
from semipermeable.equip.gating import gated_concept
from semipermeable.files.bank import pack
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane, Provenance
from semipermeable.permeability import Decision, Trace, Transport

RESULTS = Path(__file__).parent / "results"
CONTROL = "the same pipeline, nothing attached"
ALL_ROWS = "one active on all rows"
CONDITIONAL = "one active on conditional rows"
OWN = "16 rows, 16 concepts each"
HUNDRED = "100 active on every row"
BARS = {IDLE: 1.01, ALL_ROWS: 1.02, CONDITIONAL: 1.05, OWN: 1.15, HUNDRED: 1.30}
GATE_BAR_MS = 20.0
OPENED_BAR = 0.01
TOLERANCE = 2e-3
SYLLABLES = ("ka", "lo", "mi", "ne", "ru", "sta", "vel", "tor", "qui", "zan", "pre", "dol")


class ByPrompt:
    """A rule that opens the concepts named for a prompt."""

    def __init__(self, opened: dict[str, set[str]]) -> None:
        self.opened = opened

    def decide(self, prompts: Sequence[Any], concept: Any) -> list[Decision]:
        name = concept.concept.name
        return [Decision(float(name in self.opened.get(p.text, ())), "given") for p in prompts]


class Bench:
    """Times one pipeline against its bare sibling."""

    def __init__(self, pipe: Any, options: argparse.Namespace) -> None:
        self.pipe, self.bare = pipe, sibling(pipe)
        self.size, self.steps, self.repeats = options.latent_size, options.steps, options.repeats
        self.seconds = options.seconds
        self.cost = call_cost(pipe.unet, self.size)
        self.rates = machine_rates(512)

    def draw(self, pipe: Any, prompts: Sequence[str], guidance: float) -> Callable[[], torch.Tensor]:
        return drawer(pipe, self.size, self.steps, prompts, guidance)

    def compare(
        self, attached: Callable[[], Any], prompts: Sequence[str], guidance: float, pairs: int
    ) -> dict[str, Any]:
        """Median ratios of equipped to bare runs, after the outputs have been checked.

        Args:
            attached: attaches.
            prompts: one per row.
            guidance: above 1 there is an unconditional row per prompt.
            pairs: that act on every conditional row.
        """
        draw, draw_bare = self.draw(self.pipe, prompts, guidance), self.draw(self.bare, prompts, guidance)
        bare = draw_bare()
        error = None
        if pairs:
            with attached() as guard:
                guard._binding._fold = False
                side = draw()
        with attached() as guard:
            out = draw()
            assert torch.equal(out, bare) is not bool(pairs), "outputs are not what they must be"
            if pairs:
                error = float((side - out).abs().max() / side.abs().max())
                assert error < TOLERANCE, f"the paths differ by {error}"
            draw()
            found = paired(draw_bare, draw, self.repeats, self.seconds)
            taken = guard.paths._asdict()
        path = max(taken, key=lambda name: taken[name])
        rows = len(prompts) * (2 if guidance > 1 else 1)
        # A sampler guided by classifier-free guidance sees twice the rows; unconditional ones do not act.
        call = found["cpu_bare_s"] / torch.get_num_threads() / self.steps
        floor = self.floor(path, pairs, len(prompts), rows, call)
        sites = len(self.cost.sites)
        left = (found[CLOCK] - floor["ratio"]) * call / sites * 1e6
        return found | {"path": path, "error": error, "rows": rows, "floor": floor, "left_us_a_site": round(left, 2)}

    def floor(self, path: str, pairs: int, acting: int, rows: int, call: float) -> dict[str, Any]:
        """The least that the case costs, by operations alone and in seconds of this machine."""
        kept = (self.steps - 1) / self.steps
        saved = self.cost.saved_flops() * kept
        if path == "idle":
            return {"operations": 1.0, "ratio": 1.0}
        if path == "folded":
            operations = 1 - saved / self.cost.flops
            return {"operations": round(operations, 4), "ratio": round(1 - saved * rows / self._per_s() / call, 4)}
        operations = self.cost.share(pairs, acting / rows) + self.cost.saved_flops() * (1 - kept) / self.cost.flops
        added = self.cost.side_seconds(pairs, acting, self.rates) - saved * rows / self._per_s()
        return {"operations": round(operations, 4), "ratio": round(1 + added / call, 4)}

    def _per_s(self) -> float:
        return self.rates["flops_per_s"]


def bank_of_thousand(bench: Bench, folder: Path) -> Bank:
    """A packed bank of "cat", which has pairs at every site, and 999 membranes that no prompt here asks for."""
    packed = folder.parent / "bank.safetensors"
    if not packed.exists():
        unet = bench.pipe.unet
        for number in range(999):
            spm.save(random_membrane(unet, f"filler {number}", number, every=40), folder / f"{number}.safetensors")
        spm.save(random_membrane(unet, "cat", 5000), folder / "cat.safetensors")
        pack(folder, packed)
    return Bank(packed)


def none_cases(bench: Bench, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Nothing to see: two bare pipelines, and a bank of a thousand of which none acts."""
    draw, other = (bench.draw(pipe, ["a bird"], 4.0) for pipe in (bench.bare, bench.pipe))
    assert torch.equal(draw(), other())
    yield CONTROL, paired(draw, other, bench.repeats, bench.seconds)
    bank = bank_of_thousand(bench, folder)
    yield IDLE, bench.compare(lambda: spm.attach(bench.pipe, bank), ["a bird"], 4.0, 0)


def rows_cases(bench: Bench, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of a thousand that acts, then a hundred that all act."""
    pipe, unet, bank = bench.pipe, bench.pipe.unet, bank_of_thousand(bench, folder)
    yield ALL_ROWS, bench.compare(lambda: spm.attach(pipe, bank), ["a cat"], 1.0, 1)
    yield CONDITIONAL, bench.compare(lambda: spm.attach(pipe, bank), ["a cat"], 4.0, 1)
    hundred = [random_membrane(unet, f"h{number}", 6000 + number) for number in range(100)]
    yield HUNDRED, bench.compare(lambda: spm.attach(pipe, hundred, "open", strength=0.1), ["a"], 1.0, 100)
    title = "100 active on conditional rows"
    yield title, bench.compare(lambda: spm.attach(pipe, hundred, "open", strength=0.1), ["a"], 4.0, 100)


def own_case(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sixteen rows with sixteen concepts of their own."""
    pipe, rows = bench.pipe, 16
    prompts = [f"picture {row}" for row in range(rows)]
    own = [[random_membrane(pipe.unet, f"r{row}c{c}", 7000 + 16 * row + c) for c in range(16)] for row in range(rows)]
    rule = ByPrompt({prompt: {m.name for m in several} for prompt, several in zip(prompts, own, strict=True)})
    everything = [membrane for several in own for membrane in several]
    yield OWN, bench.compare(lambda: spm.attach(pipe, everything, rule, strength=0.2), prompts, 1.0, 16)


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
    """Read and set anew for each prompt, as the reference code does; diffusers with PEFT and k adapters at once."""
    pipe, repeats = bench.pipe, bench.repeats
    files = []
    for number in range(max(counts)):
        file = folder / f"lora{number}.safetensors"
        spm.export(random_membrane(pipe.unet, f"l{number}", 9000 + number), file, "diffusers", denoiser=pipe.unet)
        files.append(file)
    one = folder / "one.safetensors"
    spm.save(random_membrane(pipe.unet, "one", 1), one)
    draw, draw_bare = bench.draw(pipe, ["a cat"], 1.0), bench.draw(bench.bare, ["a cat"], 1.0)

    def reload() -> None:
        with spm.attach(pipe, one, "open"):
            draw()

    reload()
    yield "membrane read and attached for each prompt", paired(draw_bare, reload, repeats, bench.seconds)

    def loaded() -> None:
        with loras(pipe, files[:1]):
            draw()

    loaded()
    yield "PEFT, adapter loaded for each prompt", paired(draw_bare, loaded, repeats, bench.seconds)
    bare = draw_bare()
    for count in counts:
        # PEFT puts its layers into the shared denoiser, so bare runs come before and after, not between.
        before = [timed(draw_bare) for _ in range(repeats)]
        with loras(pipe, files[:count]) as names:
            pipe.set_adapters(names)
            assert not torch.equal(draw(), bare)
            equipped = [timed(draw) for _ in range(repeats)]
            switch = [timed(lambda names=names: pipe.set_adapters(names)) for _ in range(repeats)]
        after = [timed(draw_bare) for _ in range(repeats)]
        both = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(before, after, strict=True)]
        yield f"PEFT, {count} adapters", summary(list(zip(equipped, both, strict=True)))
        yield f"set_adapters of {count}, in pictures", summary(list(zip(switch, both, strict=True)))


def batches(number: int) -> list[list[str]]:
    """Return batches of 16 prompts that name concepts of the bundled model in ever new words."""
    subjects = spm.zoo.membranes()[:16]
    return [[f"a {'flat' if n else 'neon'} icon of a {name}, no. {n}" for name in subjects] for n in range(number + 1)]


def idle_cost(pipe: Any, repeats: int) -> dict[str, Any]:
    """What an idle call and an idle picture pay, timed by themselves: a ratio of pictures cannot show so little.

    Returns:
        Microseconds of what surrounds a denoiser call, and of what watching `encode_prompt` adds to a picture.
    """
    bare, prompt = sibling(pipe), ["a bird"]
    with spm.attach(pipe, random_membrane(pipe.unet, "cat", 5000), "closed") as guard:
        drawer(pipe, 16, 1, prompt, 4.0)()
        positive, negative = pipe.encode_prompt(prompt, "cpu", 1, True)[:2]
        call = {"encoder_hidden_states": torch.cat([negative, positive])}
        latents = torch.zeros(2, pipe.unet.config.in_channels, 16, 16)

        def idle() -> None:
            for _ in range(1000):
                with guard._gated("unet", (latents, 1), call) as stand_in:
                    assert stand_in is None

        before = guard.paths.idle
        calls = sorted(timed(idle)[0] for _ in range(repeats))
        assert guard.paths == (before + 1000 * repeats, 0, 0)

        def encoded(one: Any) -> Callable[[], None]:
            return lambda: [one.encode_prompt(prompt, "cpu", 1, True) for _ in range(20)] and None

        found = paired(encoded(bare), encoded(pipe), repeats)
        watch = (found["cpu_equipped_s"] - found["cpu_bare_s"]) / 20
    return {"call_us": round(calls[len(calls) // 2] * 1e3, 2), "picture_us": round(watch * 1e6, 1)}


def bank_of(host: Any, number: int) -> Bank:
    """Return a bank in memory: the gates of the bundled membranes, and copies of some under made-up names.

    Copied are those whose probe is on, so that the index has all there can be to multiply, and that stay closed on the
    prompts of `batches`: a bank of that many different concepts has few that a prompt means, and a copy of an open gate
    would be one more.
    """
    draw, encoder_hash = random.Random(0), host.text_encoder_hash()
    real = [spm.zoo.membrane(name) for name in spm.zoo.membranes()]
    rule, prompts = Transport(), host.encode([prompt for batch in batches(1) for prompt in batch])
    probing = [m for m in real if m.gate and m.gate.settings["threshold"] is not None]
    closed = [m for m in probing if not any(d.gamma for d in rule.decide(prompts, gated_concept(host, m)))]
    made: set[str] = set()
    while len(made) < number:
        made.add("".join(draw.choices(SYLLABLES, k=3)) + f" {''.join(draw.choices(SYLLABLES, k=2))}")
    bank, pairs = Bank(tempfile.mkdtemp()), {"site": (torch.ones(2, 1), torch.ones(1, 2))}
    told = Provenance(text_encoder_hash=encoder_hash)
    for membrane in real[:number]:
        bank.add(Membrane(pairs, membrane.concept, told, membrane.gate))
    for place, name in enumerate(sorted(made)[: max(0, number - len(real))]):
        bank.add(Membrane(pairs, Concept(name), told, closed[place % len(closed)].gate))
    return bank


def remembering(host: Any) -> Callable[[Sequence[str]], list[Any]]:
    """Let a host encode every text once: what is timed then is the decision."""
    known: dict[str, Any] = {}
    encode = host.encode

    def remembered(texts: Sequence[str]) -> list[Any]:
        new = [text for text in texts if text not in known]
        known.update(zip(new, encode(new), strict=True)) if new else None
        return [known[text] for text in texts]

    host.encode = remembered
    return remembered


def gate_time(host: Any, denoiser: Any, bank: Bank, repeats: int) -> dict[str, Any]:
    """γ for 16 prompts against a bank, after encoding: every batch names 16 of its concepts in new words."""
    encode = remembering(host)
    gate = BankGate(host, denoiser, bank, Transport(), 1.0, "open", Trace())
    taken = []
    for batch in batches(repeats):
        encode(batch)
        taken.append(timed(lambda batch=batch: gate.decide(batch)))
    candidates = [len(found) for found in gate._candidates(encode(batch))]
    tokens = sum(len(prompt.token_ids) + 1 for prompt in encode(batch))
    states = torch.ones(tokens, encode(batch)[0].states.shape[1])
    probes = torch.ones(states.shape[1], len(bank))
    product = min(timed(lambda: states @ probes)[0] for _ in range(5))
    milliseconds = sorted(1000 * seconds for seconds, _ in taken[1:])
    return {
        "concepts": len(bank),
        "milliseconds": round(milliseconds[len(milliseconds) // 2], 3),
        "first_batch_milliseconds": round(1000 * taken[0][0], 3),
        "product_milliseconds": round(1000 * product, 3),
        "tokens": tokens,
        "candidates_a_prompt": round(sum(candidates) / len(candidates), 2),
    }


def gate_case(pipe: Any, repeats: int) -> dict[str, Any]:
    """The gate at 10,000 concepts: its time, that it decides as the rule alone does, and how many prompts it opens."""
    host = host_for(pipe)
    bank = bank_of(host, 10_000)
    found = gate_time(host, pipe.unet, bank, repeats)
    gate = BankGate(host, pipe.unet, bank, Transport(), 1.0, "open", Trace())
    rule, encode = Transport(), host.encode
    asked = batches(0)[0]
    decided = gate.decide(asked)
    for name, concept in gate._gated(list(bank.names)[::50]).items():
        for prompt, decision in zip(asked, rule.decide(encode(asked), concept), strict=True):
            assert decision.gamma == decided[prompt].get(name, Decision(0.0, "")).gamma, (prompt, name)
    names = [told for name in spm.zoo.membranes() for told in spm.zoo.membrane(name).concept.names]
    unrelated = unrelated_prompts(names)
    decisions: dict[str, dict[str, Decision]] = {}
    for start in range(0, len(unrelated), 64):
        decisions |= gate.decide(unrelated[start : start + 64])
    opened = [text for text in unrelated if any(d.gamma for d in decisions[text].values())]
    return found | {
        "real_gates": len(spm.zoo.membranes()),
        "unrelated_prompts": len(unrelated),
        "opened": len(opened),
        "opened_share": round(len(opened) / len(unrelated), 5),
        "opened_prompts": opened[:40],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="emoji")
    parser.add_argument("--latent-size", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--steps", type=int, default=20, help="of one picture; a picture also has a fixed cost")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of runs of a case")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a case, after which no further pair begins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="none,rows,own,rivals,idle,gate")
    parser.add_argument("--adapters", type=int, nargs="*", default=[1, 4, 16], help="numbers of PEFT adapters")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = options.out or RESULTS / f"run_paths_{options.model}.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    found |= {"model": MODELS[options.model], "cases": found.get("cases", {})}
    pipe = load_model(options.model, options.latent_size)
    parts = options.parts.split(",")

    def keep(title: str, result: dict[str, Any]) -> None:
        barred = options.model == "sd15" or title not in AT_FULL_SIZE
        told = {"bar": BARS.get(title) if barred else None} if CLOCK in result else {}
        run = {"latent_size": options.latent_size, "steps": options.steps, "machine": machine(torch.get_num_threads())}
        found["cases"][title] = result | told | run
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "membranes"
        folder.mkdir()
        bench = Bench(pipe, options)
        cases: list[Iterator[tuple[str, dict[str, Any]]]] = []
        cases += [none_cases(bench, folder)] if "none" in parts else []
        cases += [rows_cases(bench, folder)] if "rows" in parts else []
        cases += [own_case(bench)] if "own" in parts else []
        cases += [rivals(bench, Path(name), options.adapters)] if "rivals" in parts else []
        for case in cases:
            for title, result in case:
                keep(title, result)
                shown = found["cases"][title]
                low, high = result[f"{CLOCK}_interval"]
                bar = f"  bar {shown['bar']} {verdict(shown)}" if shown["bar"] else ""
                least = f"  floor x{result['floor']['ratio']:.3f}" if "floor" in result else ""
                print(f"{title:42} cpu x{result['cpu']:.3f} [{low:.3f}, {high:.3f}]", end="")
                print(f"  wall x{result['wall']:.3f}  {result['pairs']} pairs{least}{bar}", flush=True)
    if "idle" in parts:
        torch.set_num_threads(1)
        keep(IDLE_ALONE, result := idle_cost(pipe, options.repeats))
        print(IDLE_ALONE, result, flush=True)
    if "gate" in parts and options.model == "emoji":
        torch.set_num_threads(1)
        result = gate_case(pipe, options.repeats)
        met = {True: "met", False: "missed"}
        result["bar_milliseconds"], result["bar_opened"] = GATE_BAR_MS, OPENED_BAR
        result["verdict"] = met[result["milliseconds"] <= GATE_BAR_MS]
        result["verdict_opened"] = met[result["opened_share"] <= OPENED_BAR]
        keep("gate", result)
        print("gate", result, flush=True)


if __name__ == "__main__":
    main()
