"""Intervals for means."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.mean >= 100 else 1 if self.mean >= 10 else 2
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000) -> Mean:
    """The mean of independent runs with its percentile bootstrap interval (Efron 1979). Same values, same interval."""
    data = np.asarray(values, np.float64)
    if not len(data):
        raise ValueError("no values to take the mean of")
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [data[rng.integers(0, len(data), (500, len(data)))].mean(1) for _ in range(-(-resamples // 500))]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(data.mean()), float(low), float(high))
