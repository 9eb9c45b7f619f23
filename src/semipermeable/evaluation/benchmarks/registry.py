"""The one list of benchmarks, by name: those of the bundled model, and those of real ones."""

from collections.abc import Callable, Mapping

from semipermeable.errors import UnknownNameError, closest
from semipermeable.evaluation.benchmarks.emoji import many, neighbours, objects, styles
from semipermeable.evaluation.benchmarks.memorised import memorised
from semipermeable.evaluation.benchmarks.plan import Benchmark
from semipermeable.evaluation.benchmarks.published import PUBLISHED, Request
from semipermeable.evaluation.benchmarks.wordings import wordings

__all__ = ["benchmark", "benchmark_names", "published_names"]

_BUILDERS: Mapping[str, Callable[[], Benchmark]] = {
    "emoji-objects": objects,
    "emoji-styles": styles,
    "emoji-neighbours": neighbours,
    "emoji-wordings": wordings,
    "emoji-many": many,
    "emoji-memorised": memorised,
}


def benchmark_names() -> list[str]:
    """Return the names of the bundled model's benchmarks."""
    return list(_BUILDERS)


def published_names() -> list[str]:
    """Return the names of the real models' benchmarks."""
    return list(PUBLISHED)


def benchmark(name: str, request: Request | None = None) -> Benchmark:
    """Return a benchmark.

    Args:
        name: "emoji-objects", or with its version, "emoji-objects@2".
        request: what a benchmark of a real model is built from; None is nothing.

    Raises:
        UnknownNameError: if there is none of that name or version; close names are suggested.
        ConfigError: if the request does not fit, or a prompt file cannot be used.
    """
    plain, _, version = name.partition("@")
    asked = request or Request()
    if plain in PUBLISHED:
        found = PUBLISHED[plain](asked)
    elif plain in _BUILDERS:
        asked.unused(plain, "prompts", "concepts", "limit")
        found = _BUILDERS[plain]()
    else:
        raise UnknownNameError(closest(plain, [*_BUILDERS, *PUBLISHED], what="benchmark"))
    if version and version != str(found.version):
        raise UnknownNameError(
            f"benchmark {plain!r} has version {found.version} here, not {version!r}; drop the version"
        )
    return found
