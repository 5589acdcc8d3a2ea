import numpy as np
import pytest

from benchmarks.samples import Spread, paired_ratios, percentile, short


@pytest.mark.parametrize("percent", [0, 37.5, 50, 95, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_percentiles_are_those_of_numpy(percent: float, count: int):
    values = np.random.default_rng(count).normal(size=count).tolist()
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_a_spread_keeps_median_and_range():
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)


def test_ratios_pair_the_repetitions_that_both_have():
    assert paired_ratios({0: 2.0, 1: 9.0, 3: 6.0}, {0: 4.0, 2: 1.0, 3: 2.0}) == [0.5, 3.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.51234, "0.5123"), (51.234, "51.23"), (51234.0, "51234"), (-2.5, "-2.500")],
)
def test_numbers_are_shown_with_four_digits(value: float, text: str):
    assert short(value) == text
