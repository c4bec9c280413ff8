"""From scores to predicted classes: the one place that does it, so that no two numbers about a run differ in how they break ties."""

from __future__ import annotations

import numpy as np


def ranked(scores: np.ndarray) -> np.ndarray:
    """Scores (..., C), logits or probabilities -> (..., C) class indices, the likeliest first; of equal scores the lowest index first."""
    return np.argsort(-scores, axis=-1, kind="stable")
