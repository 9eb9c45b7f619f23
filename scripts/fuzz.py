"""Fuzz the readers of what others write: `python scripts/fuzz.py policies|membranes SECONDS [FOLDER]`.

Atheris (libFuzzer) mutates valid examples and follows the branches of this package's own readers. Every input must
parse or be refused with one of this package's errors; anything else stops the run, and the input is written to
FOLDER, by default `out/fuzz/`. Continuous integration runs it for seconds (`tests/server/test_fuzz.py`), `make fuzz`
for minutes.
"""

import resource
import sys
import tempfile
from pathlib import Path

import atheris

_SERVER = ("tables", "policies", "keys")
_INSTRUMENTED = [*(f"semipermeable.server.{name}" for name in _SERVER), "semipermeable.files", "semipermeable.membrane"]
with atheris.instrument_imports(include=_INSTRUMENTED):
    from semipermeable.errors import PolicyError, SemipermeableError
    from semipermeable.files import load
    from semipermeable.server.policies import parse_policies

OUT = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(__file__).parent.parent / "out" / "fuzz"
_HASH = b"scrypt:16384:8:1:" + b"A" * 22 + b"==:" + b"A" * 43 + b"="
POLICIES = b"""[[policy]]
name = "kids"
membranes = ["cat", "*"]
permeability = {cat = "open"}
strength = {cat = 1.5}
fail = "closed"
[[tenant]]
name = "acme"
policy = "kids"
keys = [{id = "0123456789ab", hash = "HASH"}]
""".replace(b"HASH", _HASH)


def policies(data: bytes) -> None:
    """Parse, or refuse."""
    try:
        found = parse_policies(data)
    except PolicyError:
        return
    if any(tenant.policy not in found.policies for tenant in found.tenants.values()):
        raise AssertionError("a tenant without a policy")


def membranes(data: bytes) -> None:
    """Load, or refuse."""
    path = OUT / "membranes" / "input.safetensors"
    path.write_bytes(data)
    try:
        load(path)
    except SemipermeableError:
        return


def example_membrane() -> bytes:
    """Return a small valid file."""
    import torch

    from semipermeable.concept import Concept
    from semipermeable.files import save
    from semipermeable.membrane import Membrane

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.safetensors"
        save(Membrane({"a": (torch.ones(2, 1), torch.ones(1, 3))}, Concept("cat", aliases=("kitty",))), path)
        return path.read_bytes()


def main() -> None:
    """Fuzz one reader for some seconds."""
    what, seconds = sys.argv[1], int(sys.argv[2])
    target, example = {"policies": (policies, POLICIES), "membranes": (membranes, None)}[what]
    corpus = OUT / what / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "example").write_bytes(example if example is not None else example_membrane())
    # A process begins with the peak of the one that started it: the limit counts from there.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + 2048
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={OUT / what}/", "-max_len=8192", "-print_final_stats=1"]
    options.append(f"-rss_limit_mb={most}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
