"""From scores to predicted classes. It is done here only, so that all numbers about a run break ties in the same way."""

from __future__ import annotations

import numpy as np


def ranked(scores: np.ndarray) -> np.ndarray:
    """Return class indices (..., C), the likeliest first, for scores (..., C), logits or probabilities.

    Of equal scores the lowest index is first.
    """
    return np.argsort(-scores, axis=-1, kind="stable")
