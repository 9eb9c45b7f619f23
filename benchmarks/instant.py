"""Seconds of membranes made in one workshop: the first, with all that is shared, and those after it.

    python benchmarks/instant.py cat dog neon rose
    python benchmarks/instant.py cat dog neon rose --preset fast --threads 2

Per concept: wall time, processor time of all threads (which other programs on the machine stretch less), the part of
it that is the least squares, and how many texts had to be encoded. Loading the model is not counted, the gate is.
Writes `benchmarks/results/instant.json`, or the other preset's name.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

from semipermeable import TrainConfig, __version__, erase, zoo
from semipermeable.hosts import host_for
from semipermeable.training import Workshop, captions_for, enrich


def main():
    """Time every concept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", default="instant")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe, config = zoo.load("emoji"), TrainConfig.from_preset(given.preset)
    encoded, rows = [0], []
    host = host_for(pipe)
    encode = host.encode

    def counting(texts):
        encoded[0] += len(texts)
        return encode(texts)

    host.encode = counting
    workshop = Workshop(host)
    for name in given.concepts:
        encoded[0], wall, busy = 0, time.perf_counter(), time.process_time()
        membrane = erase(pipe, name, config=config, workshop=workshop, progress=False)
        row = {"concept": name, "wall": time.perf_counter() - wall, "processor": time.process_time() - busy}
        row |= {"texts": encoded[0], "sites": len(membrane.pairs), "load_average": os.getloadavg()[0]}
        busy = time.process_time()
        workshop.closed_form(captions_for(enrich(name, workshop.spec), workshop.spec), config)
        rows.append({**row, "least_squares": time.process_time() - busy})
        print(
            {key: round(value, 2) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
    versions = {"semipermeable": __version__, "torch": torch.__version__}
    result = {"threads": given.threads, "machine": platform.machine(), "versions": versions, "rows": rows}
    out = given.out or Path(__file__).parent / "results" / f"{given.preset}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
