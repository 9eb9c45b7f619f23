"""Shares of successes and how sure they are.

A rate is `successes / n`. Its 95 % Wilson score interval, with z = 1.96 and p̂ the rate, is

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)

which, unlike the normal interval, keeps a width at 0 and 1 (Wilson 1927; Brown, Cai and DasGupta 2001).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Z95", "Rate", "rate_of", "wilson_interval"]

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of successes.

    Args:
        successes: how many.
        n: of how many; at least 1.

    Raises:
        ValueError: if n is not positive or successes lies outside [0, n].
    """

    successes: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.successes <= self.n:
            raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1, found {self.successes} of {self.n}")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.successes / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.successes, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate.

    Args:
        successes: in [0, n].
        n: of how many; of none the interval is [0, 1].
        z: normal quantile; 1.96 gives 95 %.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding may push the ends a hair outside [0, 1], or off the share they must contain.
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + spread) / scale)
    return low, high


def rate_of(hits: Iterable[bool]) -> Rate:
    """Return the share of true values; at least one value is needed."""
    counted = [bool(hit) for hit in hits]
    return Rate(sum(counted), len(counted))
