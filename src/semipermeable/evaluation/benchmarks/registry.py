"""The one list of benchmarks, by name."""

from collections.abc import Callable, Mapping

from semipermeable.errors import UnknownNameError, closest
from semipermeable.evaluation.benchmarks.emoji import many, neighbours, objects, styles
from semipermeable.evaluation.benchmarks.plan import Benchmark
from semipermeable.evaluation.benchmarks.wordings import wordings

__all__ = ["benchmark", "benchmark_names"]

_BUILDERS: Mapping[str, Callable[[], Benchmark]] = {
    "emoji-objects": objects,
    "emoji-styles": styles,
    "emoji-neighbours": neighbours,
    "emoji-wordings": wordings,
    "emoji-many": many,
}


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks."""
    return list(_BUILDERS)


def benchmark(name: str) -> Benchmark:
    """Return a benchmark.

    Args:
        name: "emoji-objects", or with its version, "emoji-objects@1".

    Raises:
        UnknownNameError: if there is none of that name or version; close names are suggested.
    """
    plain, _, version = name.partition("@")
    if plain not in _BUILDERS:
        raise UnknownNameError(closest(plain, _BUILDERS, what="benchmark"))
    found = _BUILDERS[plain]()
    if version and version != str(found.version):
        raise UnknownNameError(
            f"benchmark {plain!r} has version {found.version} here, not {version!r}; drop the version"
        )
    return found
