"""How cost grows: time and memory against active concepts, rows, width of the denoiser and size of the bank.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/scaling.py --parts concepts,rows,width   # two threads, a quiet machine
    python benchmarks/scaling.py --parts gate,bank                                     # one thread, processor time
    python benchmarks/scaling.py --write                                               # the page and its picture

Times are ratios to a bare pipeline in the same process, in turn with it, outputs checked (`run_paths.Bench`); beside
each stands the least that the arithmetic allows (`floor`). Every point is written to benchmarks/results/scaling.json at
once, and points that are not measured stay as they are. `--write` fills docs/scaling.md from that file and those of
`run_paths.py`, and draws docs/images/scaling.png; it measures nothing.
"""

import argparse
import ctypes
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from run_paths import Bench, ByPrompt, bank_of, gate_time
from scaling_page import PAGE, PICTURE, SCALING, draw_picture, write_page
from timing import load_model, machine, random_membrane, with_unet

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.equip.bank import Bank
from semipermeable.files.bank import pack
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane

CONCEPTS = (1, 4, 16, 40, 48, 100, 256)
ROWS = (1, 2, 4, 8, 16)
OWN = 4
WIDTHS = (64, 128, 256, 512)
GATES = (100, 1_000, 10_000, 100_000)
BANKS = (10, 100, 1_000, 10_000)


def first_call(bench: Bench, attached: Callable[[], Any], guidance: float, usual: float) -> dict[str, Any]:
    """What is paid once for a new set of strengths: seconds beyond a usual picture, and device memory held after it."""
    draw = bench.draw(bench.pipe, ["a"], guidance)
    with attached() as guard:
        began = time.perf_counter()
        draw()
        taken = time.perf_counter() - began
        held = sum(plan.num_bytes for plan in guard._binding._plans.values())
    return {"first_extra_s": round(max(0.0, taken - usual), 3), "device_bytes": held}


def concepts(pipe: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """K concepts, all active: on every row, and on conditional rows only."""
    bench = Bench(pipe, options)
    several = [random_membrane(pipe.unet, f"c{number}", 6000 + number) for number in range(max(options.at or CONCEPTS))]
    for count in options.at or CONCEPTS:

        def attached(count: int = count) -> Any:
            return spm.attach(pipe, several[:count], "open", strength=1 / (4 + count / 4))

        for rows, guidance in (("all", 1.0), ("conditional", 4.0)):
            found = bench.compare(attached, ["a"], guidance, count)
            held = sum(u.numel() + v.numel() for m in several[:count] for u, v in m.pairs.values()) * 4
            found |= first_call(bench, attached, guidance, found["wall_equipped_s"])
            yield {"concepts": count, "acting_rows": rows, "membrane_bytes": held} | found


def rows(pipe: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """R rows, each with concepts that no other row has."""
    bench = Bench(pipe, options)
    for count in options.at or ROWS:
        yield {"rows": count, "concepts_a_row": OWN} | own_rows(bench, count, OWN)


def own_rows(bench: Bench, count: int, each: int) -> dict[str, Any]:
    """Time so many rows with so many concepts of their own each."""
    prompts = [f"picture {row}" for row in range(count)]
    unet = bench.pipe.unet
    own = [[random_membrane(unet, f"r{row}c{c}", 7000 + 64 * row + c) for c in range(each)] for row in range(count)]
    rule = ByPrompt({prompt: {m.name for m in mine} for prompt, mine in zip(prompts, own, strict=True)})
    everything = [membrane for mine in own for membrane in mine]

    def attached() -> Any:
        guard = spm.attach(bench.pipe, everything, rule, strength=0.2)
        guard._binding._fold = False  # one row alone would fold, and the curve is of the side path
        return guard

    return bench.compare(attached, prompts, 1.0, each)


def width(pipe: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Random UNets whose layers all have one width: 16 concepts of its own in each of 4 rows."""
    from diffusers import UNet2DConditionModel

    for channels in options.at or WIDTHS:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=options.latent_size,
            block_out_channels=(channels, channels),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=256,
            attention_head_dim=8,
        ).eval()
        bench = Bench(with_unet(pipe, unet), options)
        weights = sum(parameter.numel() for parameter in unet.parameters())
        yield {"width": channels, "weights": weights, "concepts_a_row": 16} | own_rows(bench, 4, 16)


def gate(pipe: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """γ of 16 prompts against N concepts after encoding; memory of what is kept of them."""
    host = host_for(pipe)
    bank_of(host, 64)  # what is loaded once shall not count
    for count in options.at or GATES:
        before, began = resident(), time.process_time()
        bank = bank_of(host, count)
        taken = time.process_time() - began
        encode = host.encode
        found = gate_time(host, pipe.unet, bank, options.repeats)
        host.encode = encode
        yield found | {"fill_s": round(taken, 3), "resident_bytes": resident() - before}
        del bank


def bank(_pipe: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A packed file of N membranes, copies of those that come with the model: bytes on disk and in memory, opening."""
    real = [spm.zoo.membrane(name) for name in spm.zoo.membranes()]
    for count in options.at or BANKS:
        with tempfile.TemporaryDirectory() as name:
            folder, file = Path(name) / "members", Path(name) / "bank.safetensors"
            folder.mkdir()
            for number in range(count):
                like = real[number % len(real)]
                copy = Membrane(like.pairs, Concept(f"concept {number}"), like.provenance, like.gate)
                spm.save(copy, folder / f"{number}.safetensors")
            pack(folder, file)
            before, began = resident(), time.process_time()
            opened = Bank(file)
            taken = time.process_time() - began
            began = time.process_time()
            opened.read("concept 1")
            read = time.process_time() - began
            held = resident() - before
            yield {
                "concepts": len(opened),
                "disk_bytes": file.stat().st_size,
                "open_s": round(taken, 4),
                "read_one_s": round(read, 5),
                "resident_bytes": held,
            }


def resident() -> int:
    """Memory of this process that is its own: files that are mapped do not count, nor what was freed before."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    told = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    return (int(told[1]) - int(told[2])) * os.sysconf("SC_PAGE_SIZE")


PARTS = {"concepts": concepts, "rows": rows, "width": width, "gate": gate, "bank": bank}
SINGLE = ("gate", "bank")
X = {"concepts": "concepts", "rows": "rows", "width": "width", "gate": "concepts", "bank": "concepts"}


def key_of(part: str, point: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a point of a curve from the others."""
    return point[X[part]], point.get("acting_rows", "")


def measure(options: argparse.Namespace) -> None:
    """Measure the parts asked for, saving each point."""
    pipe = load_model("emoji", options.latent_size)
    for part in options.parts.split(","):
        torch.set_num_threads(1 if part in SINGLE else options.threads)
        for point in PARTS[part](pipe, options):
            run = {name: getattr(options, name) for name in ("latent_size", "steps")}
            run["machine"] = machine(torch.get_num_threads())
            found: dict[str, Any] = json.loads(SCALING.read_text()) if SCALING.exists() else {}
            others = [other for other in found.get(part, []) if key_of(part, other) != key_of(part, point)]
            found[part] = sorted([*others, point | run], key=lambda one, part=part: key_of(part, one))
            SCALING.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            shown = {name: value for name, value in point.items() if not name.endswith("ratios")}
            print(part, shown, flush=True)


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help=f"what to measure, of {', '.join(PARTS)}")
    parser.add_argument("--at", type=int, nargs="*", default=[], help="measure these points of the curve only")
    parser.add_argument("--latent-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a point, after which no further pair begins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="fill docs/scaling.md and draw its picture")
    options = parser.parse_args()
    if options.parts:
        measure(options)
    if options.write:
        draw_picture()
        write_page()
        print(PICTURE, PAGE)


if __name__ == "__main__":
    main()
