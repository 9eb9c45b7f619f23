"""Draw the committed tables: every experiment that has no result yet.

    python benchmarks/bench.py                      # all tables; hours
    python benchmarks/bench.py --tables quick       # a few minutes
    python benchmarks/bench.py --tables main --workers 2
    python benchmarks/bench.py --benchmarks emoji-styles --erasers uce rece   # two rows of one benchmark

Stop it at any time; the same command goes on. What is run stands in `experiments/`, results go to `results/`, pictures
and trained artefacts to `out/bench`. Membranes that took an hour to train are kept in `results/artefacts` with their
recipes, and are taken from there.
"""

import argparse
import shutil
from pathlib import Path

from semipermeable.cli.options import progress_bar, silence_libraries
from semipermeable.errors import SemipermeableError
from semipermeable.evaluation.experiments import Folders, run_experiments

HOME = Path(__file__).resolve().parent.parent


def main():
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=[], help="folders of experiments/; none is all but quick")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="names of benchmarks; none is all")
    parser.add_argument("--erasers", nargs="*", default=[], help="spec strings of erasers; none is all")
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
    artefacts = folders.out / "artefacts"
    artefacts.mkdir(parents=True, exist_ok=True)
    for kept in (HOME / "results" / "artefacts").glob("*"):
        if not (artefacts / kept.name).exists():
            shutil.copy(kept, artefacts)
    chosen = {"tables": tables, "benchmarks": arguments.benchmarks, "erasers": arguments.erasers}
    try:
        for path in run_experiments(folders, bar=progress_bar, workers=arguments.workers, **chosen):
            print(path)
    except SemipermeableError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
