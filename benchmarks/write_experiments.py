"""Write a file for every experiment of the tables that has none; files that exist are left as they are.

    python benchmarks/write_experiments.py

Rivals run at the settings of their papers and, where `tune_rivals.py` found others, at those. What trains for a quarter
of an hour or more per concept at its paper's settings has a table of its own, on three objects and two styles, those
of the ablations, whose long trainings it shares; trained rivals erase at most five concepts at once. Beyond objects and
styles each rival is asked once, at the better of its settings: tuned where a search found others, SLD at its strongest.
"""

from pathlib import Path

from semipermeable.evaluation.benchmarks import benchmark
from semipermeable.evaluation.erasers.tuned import tuned_settings
from semipermeable.evaluation.experiments import Experiment
from semipermeable.evaluation.results import file_slug

HOME = Path(__file__).resolve().parent.parent / "experiments"
CHEAP = [
    "noop",
    "negative-prompt",
    *(f"{gate}sld:{strength}" for gate in ("", "gated-") for strength in ("weak", "medium", "strong", "max")),
    *("uce", "rece", "mace-closed-form", "speed", "gated-uce", "prompt-substitution", "gated-negative-prompt"),
    *("spm", "spm-open", "spm:instant", "spm-open:instant"),
]
TRAINED = ["esd-x", "esd-u", "concept-ablation", "leco", "spm-paper", "spm-reference"]
AIMED = ["uce", "rece", "mace-closed-form", "speed", "gated-uce", "prompt-substitution"]
"""Erasers that read the surrogate and are not trained: they are asked once more with the one that "fast" takes."""
_GROUP = "sibling_surrogate=false"
_ETAS = [f"negative_guidance={eta},style_negative_guidance={eta}" for eta in (0.0, 0.5, 1.0, 2.0, 3.0)]
ABLATIONS = [
    *("noop", "spm", "spm-paper"),
    *(f"spm-open:{_GROUP},rank={rank}" for rank in (1, 2, 4, 8)),
    *(f"spm-open:{_GROUP},{eta}" for eta in _ETAS),
    *(f"spm-open:{_GROUP},{eta},closed_form_spare=0.99" for eta in _ETAS[-2:]),
    *(f"{rule}:{_GROUP},num_anchors={anchors}" for rule in ("spm-open", "spm") for anchors in (0, 8)),
    *(f"{rule}:{_GROUP},num_anchors={anchors},closed_form=false" for rule in ("spm-open", "spm") for anchors in (0, 8)),
]
"""The paper's Table 3 (dimension), Table 5 (η; where it is large with the wording spared too) and Table 4 (anchoring
and transport, with and without our start), with the paper's kind of surrogate, a broader word; the preset "fast" beside
the paper's own 3,000 steps."""

_LONG_RUNS = f"{_GROUP},num_trajectories=3,sampling_steps=12"
BEFORE = [
    f"spm-open:{_GROUP}",
    f"spm-open:learning_rate=0.001,negative_guidance=1.5,style_negative_guidance=0.7,{_LONG_RUNS}",
    f"spm-open:learning_rate=0.004,negative_guidance=0.7,style_negative_guidance=0.7,{_LONG_RUNS}",
    f"spm-open:instant,learning_rate=0.001,negative_guidance=1.0,style_negative_guidance=0.7,{_LONG_RUNS}",
    f"spm-open:instant,learning_rate=0.001,negative_guidance=0.7,style_negative_guidance=0.7,{_LONG_RUNS}",
]
"""The preset "fast" before, before that, and before that; the preset "instant" before, and before that. Each names all
that it changes, so that it goes on meaning the same when a preset moves again."""


def tuned(names):
    """The variants of some erasers that the search found."""
    return [f"{name}:tuned" for name in names if name in tuned_settings()]


def once(names):
    """Each eraser at the better of its settings; of SLD the strongest."""
    weaker = tuple(f"sld:{strength}" for strength in ("weak", "medium", "strong"))
    for name in names:
        if not name.endswith(weaker):
            yield from tuned([name]) or [name]


def with_siblings(specs):
    """The same erasers towards siblings."""
    return [f"{spec},sibling" if ":" in spec else f"{spec}:sibling" for spec in specs]


def planned():
    """All experiments, with the folder of each."""
    cheap, better = [*CHEAP, *tuned(CHEAP)], list(once(CHEAP))
    for name in ("emoji-objects", "emoji-styles"):
        yield from ((name, "main", spec, 3, ()) for spec in [*cheap, *BEFORE, *tuned(TRAINED)])
    # Styles and memorised pictures have no siblings.
    for name in ("emoji-objects", "emoji-neighbours", "emoji-wordings", "emoji-many"):
        yield from ((name, "main", spec, 3, ()) for spec in with_siblings(once(AIMED)))
    for name in ("emoji-neighbours", "emoji-wordings", "emoji-memorised"):
        yield from ((name, "main", spec, 3, ()) for spec in [*better, *tuned(TRAINED)])
    yield from (("emoji-many", "main", spec, 3, ()) for spec in better)
    few = ["noop", "spm", "spm-open", *tuned(["uce", *TRAINED])]
    yield from (("emoji-many", "few", spec, 3, ("1-at-once", "5-at-once")) for spec in few)
    yield from (("emoji-objects", "ablation", spec, 2, ("horse", "apple", "car")) for spec in ABLATIONS)
    yield from (("emoji-styles", "ablation", spec, 2, ("3d", "pencil-sketch")) for spec in ABLATIONS)
    published = ["noop", "spm", "spm-open", *TRAINED]
    yield from (("emoji-objects", "published", spec, 3, ("horse", "apple", "car")) for spec in published)
    yield from (("emoji-styles", "published", spec, 3, ("3d", "pencil-sketch")) for spec in published)
    quick = ["noop", "negative-prompt", "uce", "gated-uce", "spm:instant", "spm-open:instant", "spm"]
    yield from (("emoji-objects", "quick", spec, 1, ("horse",)) for spec in quick)


def main():
    """Write what is missing."""
    keys = {}
    for name, table, spec, seeds, cases in planned():
        key = keys.setdefault(name, benchmark(name).key)
        path = HOME / table / key / f"{file_slug(spec)}.toml"
        if path.exists():
            continue
        experiment = Experiment(table=table, benchmark=key, eraser=spec, seeds=seeds, cases=cases)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(experiment.to_toml(), encoding="utf-8")
        print(path.relative_to(HOME.parent))


if __name__ == "__main__":
    main()
