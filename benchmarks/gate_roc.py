"""How often each permeability rule opens where it should, and where it should not.

    python benchmarks/gate_roc.py            # prints the tables, writes benchmarks/results/gate_roc.json

Every gate is fitted on two thirds of the bundled model's objects. Everything is measured on prompts that no fit has
seen: other templates, the last third of the objects, other captions. Rules with a continuous score are given the best
threshold in hindsight, the lowest without a false opening; the calibrated rule uses the one it was stored with.
"""

import argparse
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm.auto import tqdm

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.evaluation.pretuned_plan import PretunedPlan, subjects
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState
from semipermeable.permeability import Calibration, EncodedPrompt, GatedConcept, PaperTransport, Transport, fit, kind_of
from semipermeable.permeability import negatives as make_negatives
from semipermeable.permeability import wordings as make_wordings
from semipermeable.permeability.prompts import plural
from semipermeable.permeability.vocabulary import CAPTIONS as FITTED_CAPTIONS
from semipermeable.permeability.vocabulary import NOUNS
from semipermeable.permeability.words import find, split
from semipermeable.rates import wilson_interval
from semipermeable.training.api import fit_gate
from semipermeable.training.workshop import Workshop

RESULT = Path(__file__).parent / "results" / "gate_roc.json"
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# name: (aliases told, names and descriptions not told)
CONCEPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cat": (("kitten",), ("kitty", "feline", "tabby", "meowing pet with whiskers")),
    "dog": (("puppy",), ("hound", "doggy", "canine", "barking pet")),
    "lion": ((), ("big cat with a mane", "king of the beasts")),
    "rabbit": (("bunny",), ("hare", "long-eared hopping animal")),
    "rose": ((), ("red flower with thorns", "rosebud")),
    "apple": ((), ("red round fruit", "granny smith")),
    "car": (("automobile",), ("sedan", "motorcar", "four-wheeled vehicle")),
    "airplane": (("plane",), ("jet", "aircraft", "airliner")),
    "mushroom": ((), ("toadstool", "fungus")),
    "guitar": ((), ("six-stringed instrument", "ukulele")),
    "neon": ((), ("neon-lit", "glowing fluorescent tube")),
    "3d": ((), ("three-dimensional", "rendered")),
    "pixel art": ((), ("pixelated", "8-bit")),
}
LONG = "a house, a tree and a "
BEYOND = "a house and a tree " * 12
OBJECT = (
    "{a_s} emoji with {a_x} in it",
    "my favourite {x}, {s}",
    "in {s} style, one {x}",
    "look at this {x}!",
    "{s}: {x}",
    "one {x} under {a_y}",
)
STYLE = (
    "{a_x} emoji with {a_y} in it",
    "my favourite {y}, {x}",
    "in {x} style, one {y}",
    "{y}! {x}!",
    "{x}: {y}",
    "one {y}, all in {x}",
)
CAPTIONS = (
    "a portrait of an old man with a beard",
    "sunset over the sea",
    "two children playing in the snow",
    "a bowl of soup on a wooden table",
    "the skyline of a big city at night",
    "an empty room with a large window",
    "a quick sketch of a hand",
    "hello world",
    "a",
    "!!!",
    "a woman reading the newspaper in a cafe",
    "mountains covered with clouds",
    "abstract shapes in blue and yellow",
    "a bridge across a river",
    "the letter A",
    "a map of an island",
    "rain on a window",
    "a knight fighting a dragon",
    "an astronaut on the moon",
    "a bottle of red wine",
    "a diagram of the heart",
    "a laptop and a cup of tea",
    "a steam train in a valley",
    "an old wooden door",
    "a soldier with a shield",
    "logo of a bakery",
    "a page of handwriting",
    "a field of wheat",
    "candles in a dark church",
    "a smiling baby",
    "a stack of coins",
    "the number 42",
    "an animal",
    "a plant",
    "a vehicle",
    "some food",
    "a colourful thing",
    "an icon",
    "a picture of nothing",
    "something round and small",
    "a hot dog with mustard",
    "a caterpillar on a leaf",
    "a carpet",
    "a sea lion",
    "a dandelion",
    "a cherry tomato",
    "a cable car ticket machine",
    "a pineapple",
    "a carton of milk",
    "the act of giving",
    "oh my god",
    "a catalogue",
    "a category",
    "dogma",
    "a rosette",
    "planets",
    "a cartoon",
)


def write(template: str, x: str, y: str, s: str) -> str:
    def an(phrase: str) -> str:
        return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"

    return template.format(x=x, y=y, s=s, a_x=an(x), a_y=an(y), a_s=an(s))


def misspellings(name: str) -> list[str]:
    """A swap, a doubled letter and, of longer words, a missing letter: other slips than those of the fit."""
    if not name.isalpha():
        return []
    slips = [name[:-2] + name[-1] + name[-2], name + name[-1]]
    return slips + ([name[:-2] + name[-1:]] if len(name) >= 5 else [])


def wordings_of(concept: Concept, untold: Sequence[str], y: str, s: str, style: bool) -> dict[str, list[str]]:
    templates = STYLE if style else OBJECT
    name, plain = concept.name, templates[0]
    base = [write(t, name, y, s) for t in templates]
    groups = {
        "name": base,
        "alias told": [write(t, alias, y, s) for alias in concept.aliases for t in templates],
        "plural": []
        if style
        else [f"three {plural(name)}", f"{plural(name)} in {s} style", f"a herd of {plural(name)}"],
        "misspelt": [write(t, slip, y, s) for slip in misspellings(name) for t in templates[:2]],
        "case and marks": [
            base[0].upper(),
            base[1].title(),
            f"({name})",
            f"'{name}',{s}",
            write(plain, name.replace(" ", "-"), y, s),
        ],
        "deep in a long prompt": [LONG + text for text in base],
        "twice": [f"{text} and {text}" for text in base[:3]],
        "not told": [write(t, other, y, s) for other in untold for t in templates],
    }
    return {group: list(dict.fromkeys(texts)) for group, texts in groups.items() if texts}


def others_of(concept: Concept, spec: zoo.ZooSpec, seen: set[str], style: bool) -> dict[str, list[str]]:
    """Prompts that must stay closed: neighbours, objects seen and never seen in fitting, other captions, nothing."""
    groups: dict[str, list[str]] = {"neighbours": [], "objects seen": [], "objects never seen": [], "captions": [""]}
    styles = [s for s in spec.styles if s not in concept.names]
    if style:
        for row, s in enumerate(styles):
            groups["neighbours"] += [write(t, s, spec.object_names[row * 5 % 90], "") for t in STYLE]
    near = set() if style else set(spec.object(concept.name).twins)
    for row, thing in enumerate(spec.object_names):
        if thing == concept.name:
            continue
        group = "neighbours" if thing in near else "objects seen" if thing in seen else "objects never seen"
        for column, template in enumerate(OBJECT if thing in near else OBJECT[:3]):
            groups[group].append(write(template, thing, "table", styles[(row + column) % len(styles)]))
    groups["captions"] += [c for c in CAPTIONS if not any(split(c) == split(f"a {m}") for m in concept.names)]
    groups["beyond the window"] = [BEYOND + f"and {concept.name}", BEYOND + f"with {concept.name}, {concept.name}"]
    return {group: texts for group, texts in groups.items() if texts}


def nearest_token(prompt: EncodedPrompt, gated: GatedConcept) -> float:
    own = prompt.states[prompt.first : prompt.first + max(len(prompt.token_ids), 1)]
    ends = torch.stack([name.states[name.first + len(name.token_ids) - 1] for name in gated.encoded])
    return float((functional.normalize(own, dim=-1) @ functional.normalize(ends, dim=-1).T).max())


def flattened(prompt: EncodedPrompt, gated: GatedConcept) -> float:
    return max(
        float(functional.cosine_similarity(prompt.states.flatten(), n.states.flatten(), dim=0)) for n in gated.encoded
    )


def score(prompts: Sequence[EncodedPrompt], gated: GatedConcept, calibration: Calibration) -> dict[str, list[float]]:
    bare = GatedConcept(gated.concept, gated.encoded, gated.empty)
    threshold = math.inf if calibration.threshold is None else calibration.threshold
    return {
        "paper": [d.gamma for d in PaperTransport().decide(prompts, gated)],
        "flattened cosine": [flattened(p, gated) for p in prompts],
        "nearest token": [nearest_token(p, gated) for p in prompts],
        "names alone": [d.gamma for d in Transport().decide(prompts, bare)],
        "probe alone": [float(calibration.probe.score(p) >= threshold) for p in prompts],
        "transport": [d.gamma for d in Transport().decide(prompts, gated)],
    }


def measure(host: Any, spec: zoo.ZooSpec, name: str, seed: int) -> dict[str, Any]:
    """Fit one gate and score every rule on both sides; returns rule → group → scores."""
    aliases, untold = CONCEPTS[name]
    concept = Concept(name, aliases=aliases)
    style = kind_of(concept) == "style"
    seen = {thing for index, thing in enumerate(spec.object_names) if index % 3 != 2}
    vocabulary = [thing for thing in spec.object_names if thing in seen] + list(spec.styles)
    calibration = fit(
        concept,
        host.encode,
        positives=make_wordings(concept),
        negatives=make_negatives(concept, vocabulary),
        encoder_hash=host.text_encoder_hash(),
        generator=torch.Generator().manual_seed(seed),
    )
    gate = GateState("transport", *calibration.to_parts())
    gated = GatedConcept(concept, tuple(host.encode(list(concept.names))), host.encode([""])[0], gate)
    other_style = next(s for s in spec.styles if s != name)
    sides = {
        "open": wordings_of(concept, untold, "table", other_style, style),
        "closed": others_of(concept, spec, seen, style),
    }
    scores = {
        side: {group: score(host.encode(texts), gated, calibration) for group, texts in groups.items()}
        for side, groups in sides.items()
    }
    wrong = {
        "not opened": [
            t
            for g, ts in sides["open"].items()
            if g != "not told"
            for t, v in zip(ts, scores["open"][g]["transport"], strict=True)
            if v == 0
        ],
        "falsely opened": [
            t
            for g, ts in sides["closed"].items()
            for t, v in zip(ts, scores["closed"][g]["transport"], strict=True)
            if v > 0
        ],
    }
    return {
        "calibration": {k: v for k, v in calibration.to_parts()[0].items() if k != "encoder_hash"},
        "scores": scores,
        **wrong,
    }


def unrelated_prompts(names: Sequence[str]) -> list[str]:
    """Return prompts about anything but some names: captions and nouns of the fits, and captions no fit has seen."""
    prompts = [*FITTED_CAPTIONS, *CAPTIONS, *(f"a photo of one {noun}" for noun in NOUNS)]
    return [text for text in prompts if not any(find(name, split(text), known=None) for name in names)]


def whole_bank(host: Any, spec: zoo.ZooSpec, seed: int) -> dict[str, Any]:
    """Fit gates for all objects and for what else ships with a membrane, as training does; see what opens wrongly."""
    concepts = [subject.concept for subject in subjects(spec, PretunedPlan(objects=spec.object_names))]
    encode = Workshop(host).encode_words
    unrelated = unrelated_prompts([name for concept in concepts for name in concept.names])
    prompts, empty, rule = encode(unrelated), encode([""])[0], Transport()
    opened: dict[str, list[str]] = {}
    probes = 0
    for concept in tqdm(concepts, desc="gates", unit="concept", disable=None):
        gate = fit_gate(host, concept, kind_of(concept), spec, seed, encode=encode)
        probes += gate is not None and gate.settings["threshold"] is not None
        gated = GatedConcept(concept, tuple(encode(list(concept.names))), empty, gate)
        for text, decision in zip(unrelated, rule.decide(prompts, gated), strict=True):
            if decision.gamma:
                opened.setdefault(text, []).append(concept.name)
    return {"concepts": len(concepts), "probes_on": probes, "unrelated_prompts": len(unrelated), "opened": opened}


def rate(values: Sequence[float], threshold: float, strict: bool = False) -> float:
    return sum(v > threshold if strict else v >= threshold for v in values) / len(values)


def summarise(measured: dict[str, Any]) -> dict[str, Any]:
    """Pool all concepts: rates by group, of continuous rules at the best threshold of each concept in hindsight."""
    binary = ("names alone", "probe alone", "transport")
    table: dict[str, Any] = {}
    rules = list(next(iter(measured.values()))["scores"]["open"]["name"])
    for rule in rules:
        opened: dict[str, list[float]] = {}
        for result in measured.values():
            closed = [v for group in result["scores"]["closed"].values() for v in group[rule]]
            least = 0.5 if rule in binary else max(closed)
            for side in ("open", "closed"):
                for group, values in result["scores"][side].items():
                    hits = [float(v > least) for v in values[rule]]
                    opened.setdefault(f"{side}: {group}", []).extend(hits)
                    everything = f"{side}: all" if group != "not told" else None
                    if everything:
                        opened.setdefault(everything, []).extend(hits)
        table[rule] = {group: {"rate": sum(h) / len(h), "n": len(h)} for group, h in opened.items()}
    roc: dict[str, Any] = {}
    for rule in ("paper", "flattened cosine", "nearest token"):
        values = {
            side: [
                v
                for r in measured.values()
                for g, group in r["scores"][side].items()
                if g != "not told"
                for v in group[rule]
            ]
            for side in ("open", "closed")
        }
        roc[rule] = [
            {"threshold": t, "open": rate(values["open"], t), "falsely open": rate(values["closed"], t)}
            for t in THRESHOLDS
        ]
        roc[rule + ", mean where it should be closed"] = sum(values["closed"]) / len(values["closed"])
    return {"by_group": table, "roc": roc}


def show(summary: dict[str, Any]) -> None:
    table = summary["by_group"]
    groups = sorted(next(iter(table.values())), key=lambda g: (not g.startswith("open"), g))
    print(f"{'share opened':32}{'n':>6}" + "".join(f"{rule:>18}" for rule in table))
    for group in groups:
        cells = "".join(f"{table[rule][group]['rate']:18.3f}" for rule in table)
        print(f"{group:32}{table['transport'][group]['n']:6d}{cells}")
    false = table["transport"]["closed: all"]
    high = wilson_interval(round(false["rate"] * false["n"]), false["n"])[1]
    print(f"transport, falsely open: at most {high:.4f} (95 % Wilson)")
    for rule, points in summary["roc"].items():
        if isinstance(points, float):
            print(f"{rule}: {points:.3f}")
        else:
            print(f"{rule}: " + "  ".join(f"{p['threshold']}: {p['open']:.2f}/{p['falsely open']:.2f}" for p in points))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="bundled model")
    parser.add_argument("--seed", type=int, default=0, help="deals subjects and templates into folds")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    host, spec = host_for(zoo.load(options.model)), zoo.spec(options.model)
    concepts = [name for name in CONCEPTS if name in spec.object_names or name in spec.styles]
    measured = {name: measure(host, spec, name, options.seed) for name in concepts}
    summary = summarise(measured)
    show(summary)
    for name, result in measured.items():
        found, shut, leaked = result["calibration"], result["not opened"], result["falsely opened"]
        print(f"{name}: threshold {found['threshold']}, not opened {shut}, falsely {leaked}")
        del result["scores"]
    bank = whole_bank(host, spec, options.seed)
    asked, hits = bank["unrelated_prompts"], len(bank["opened"])
    high = wilson_interval(hits, asked)[1]
    print(f"a bank of {bank['concepts']} concepts, {bank['probes_on']} probes on: {hits} of {asked} unrelated")
    print(f"prompts open anything, at most {high:.4f} (95 % Wilson): {bank['opened']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": "python benchmarks/gate_roc.py",
        "model": options.model,
        "seed": options.seed,
        "text_encoder_hash": host.text_encoder_hash(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    options.out.write_text(
        json.dumps({"about": about, **summary, "bank": bank, "concepts": measured}, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
