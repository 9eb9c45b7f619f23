"""Rates and their intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipermeable.rates import Rate, rate_of, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score without continuity correction), and none.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_against_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_contains_the_share_and_is_symmetric_in_failure(pair):
    successes, n = pair
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    mirrored = wilson_interval(n - successes, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_more_pictures_narrow_the_interval():
    widths = [high - low for low, high in (wilson_interval(n // 4, n) for n in (16, 64, 256))]
    assert widths == sorted(widths, reverse=True)


def test_rate_counts():
    rate = rate_of([True, False, True, True])
    assert (rate.successes, rate.n, rate.value) == (3, 4, 0.75)
    assert str(rate).startswith("0.750 [0.")


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_impossible_rates(successes, n):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        Rate(successes, n)
