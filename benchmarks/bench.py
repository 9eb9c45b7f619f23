"""Draw the committed tables: every experiment that has no result yet.

    python benchmarks/bench.py                      # all tables; hours
    python benchmarks/bench.py --tables quick       # a few minutes
    python benchmarks/bench.py --tables main --workers 2
    python benchmarks/bench.py --benchmarks emoji-styles --erasers uce rece   # two rows of one benchmark
    python benchmarks/bench.py --list               # what has no result yet, in the order in which it would be run
    python benchmarks/bench.py --hours              # what the results that are there took
    python benchmarks/bench.py --results out/bench/results      # all of them anew, which is `make bench`
    python benchmarks/bench.py --compare out/bench/results      # what came out otherwise than in the committed ones
    python benchmarks/bench.py --compare out/bench/results --benchmarks emoji-styles      # of one benchmark alone

Stop it at any time; the same command goes on. What is run stands in `experiments/`, results go to `results/`, pictures
and trained artefacts to `out/bench`. Membranes that took half an hour or more to train are kept in `results/artefacts`
with their recipes, and are taken from there.
"""

import argparse
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from semipermeable.cli.options import progress_bar, silence_libraries
from semipermeable.errors import ConfigError, SemipermeableError
from semipermeable.evaluation.experiments import Folders, about, run_experiments, unfinished

HOME = Path(__file__).resolve().parent.parent


def main():
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=[], help="folders of experiments/; none is all but quick")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="names of benchmarks; none is all")
    parser.add_argument("--erasers", nargs="*", default=[], help="spec strings of erasers; none is all")
    parser.add_argument("--list", action="store_true", help="say what has no result yet, and run nothing")
    parser.add_argument("--hours", action="store_true", help="say how long the committed results took, and run nothing")
    parser.add_argument("--compare", type=Path, help="say how the results of this folder differ, and run nothing")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--experiments", type=Path, default=HOME / "experiments")
    parser.add_argument("--results", type=Path, default=HOME / "results")
    parser.add_argument("--out", type=Path, default=HOME / "out" / "bench")
    arguments = parser.parse_args()
    silence_libraries()
    folders = Folders(experiments=arguments.experiments, results=arguments.results, out=arguments.out)
    tables = arguments.tables or [
        path.name for path in sorted(arguments.experiments.iterdir()) if path.is_dir() and path.name != "quick"
    ]
    chosen = {"tables": tables, "benchmarks": arguments.benchmarks, "erasers": arguments.erasers}
    try:
        if arguments.hours:
            show_hours(arguments.results, **chosen)
        elif arguments.compare:
            show_differences(arguments.results, arguments.compare, **chosen)
        elif arguments.list:
            show_unfinished(folders, **chosen)
        else:
            run_unfinished(folders, arguments.workers, **chosen)
    except SemipermeableError as error:
        parser.error(str(error))


def show_unfinished(folders, **chosen):
    """Print a line for each experiment without a result."""
    waiting = [one for _, group in unfinished(folders, **chosen) for one in group]
    for one in waiting:
        print(f"{one.table}/{one.benchmark}  {one.eraser}")
    print(f"{len(waiting)} without a result", file=sys.stderr)


def show_hours(results, tables, **chosen):
    """Print hours of one core for drawing and for training, a line for each table; a training of two tables once."""
    trained, total = set(), defaultdict(float)
    for name, result in read_results(results, tables, **chosen).items():
        table, costs = name.parts[0], result["costs"]
        total[table, "drawing"] += costs["pictures"] * costs["busy_seconds_per_picture"]
        for erasure in result["erasures"].values():
            made = json.dumps({key: value for key, value in erasure.items() if key not in ("eraser", "rule")})
            total[table, "training"] += 0 if made in trained else costs["prepare_seconds"]
            trained.add(made)
    for table in tables:
        print(*(f"{what} {total[table, what] / 3600:6.1f} h" for what in ("drawing", "training")), table, sep="   ")
    print(f"{sum(total.values()) / 7200:.1f} h with --workers 2 on two cores")


def show_differences(committed, drawn, tables, **chosen):
    """Print, for each result that both folders have, pictures that were judged otherwise, and UA, IRA and CRA."""
    before, after = read_results(committed, tables, **chosen), read_results(drawn, tables)
    both = [name for name in before if name in after]
    if not both:
        raise ConfigError(f"{drawn} holds no result of these tables; draw some: bench.py --results {drawn}")
    equal = 0
    for name in both:
        theirs, ours = before[name], after[name]
        if any(theirs[key] != ours.get(key) for key in ("experiment", "benchmark_digest")):
            print(f"{name}  is not of the same experiment")
            continue
        seen = list(zip(verdicts(theirs), verdicts(ours), strict=True))
        otherwise = sum(one != other for one, other in seen)
        equal += not otherwise
        figures = (
            f"{key.upper()} {theirs['figures'][key]['value']:.3f} {ours['figures'][key]['value']:.3f}"
            for key in ("ua", "ira", "cra")
        )
        print(f"{name}  {otherwise} of {len(seen)} judged otherwise", *figures, sep="   ")
    print(f"{equal} of {len(both)} results have every verdict as committed")


def read_results(folder, tables, benchmarks=(), erasers=()):
    """Return every result of some tables, by TABLE/BENCHMARK/ERASER, in that order within a table.

    Benchmarks may be named with their version or without; of none and of no eraser are all.
    """
    paths = (path for table in tables for path in sorted((folder / table).glob("*/*/result.json")))
    found = {path.parent.relative_to(folder): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return dict(about(found.items(), benchmarks, erasers, named=lambda one: (one[0].parts[1], one[1]["eraser"])))


def verdicts(result):
    """Return of each picture what was seen in it: object, style, memorised picture."""
    seen = (result["columns"][key] for key in ("object", "style", "picture"))
    return list(zip(*(column for column in seen if column), strict=True))


def run_unfinished(folders, workers, **chosen):
    """Run them, beginning with what was trained before."""
    artefacts = folders.out / "artefacts"
    artefacts.mkdir(parents=True, exist_ok=True)
    for kept in (HOME / "results" / "artefacts").glob("*"):
        if not (artefacts / kept.name).exists():
            shutil.copy(kept, artefacts)
    for path in run_experiments(folders, bar=progress_bar, workers=workers, **chosen):
        print(path)


if __name__ == "__main__":
    main()
