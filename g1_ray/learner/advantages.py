"""Advantages over a group: the part of GRPO that needs no torch, as batches are made where there is none."""

import numpy as np
from numpy.typing import NDArray

EPS = 1e-4
"""What is added to a group's standard deviation."""


def group_advantages(returns: NDArray[np.floating], divide_by_std: bool) -> NDArray[np.float32]:
    """Advantages [..., G] of the returns [..., G] of groups.

    (r - mean) / (std + 1e-4) with the unbiased std: GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2; without the
    division: Dr. GRPO, arXiv 2503.20783, equation 3.
    """
    centred = returns - returns.mean(-1, keepdims=True)
    if divide_by_std:
        centred = centred / (returns.std(-1, ddof=1, keepdims=True) + EPS)
    return centred.astype(np.float32)
