"""The two runs of a claim compared image by image, from their predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitlab.claims.declarations import Claim
from vitlab.errors import UserError
from vitlab.ranking import ranked
from vitlab.stats import Pair, pair


def compare(claim: Claim, predictions: Sequence[Path | None], confidence: float) -> Pair | None:
    """Compare the claim's two runs image by image, from their predictions.npz.

    Returns None where the claim has one arm, where predictions are missing, are about different images, or do not have its metric. Raises
    UserError for a damaged file.
    """
    if len(predictions) != 2 or claim.relative:
        return None
    first, second = (correct(path, claim.metric_of(arm)) for path, arm in zip(predictions, claim.arms, strict=True))
    if first is None or second is None or not np.array_equal(first[0], second[0]):
        return None
    return pair(first[1], second[1], confidence)


def correct(path: Path | None, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (N,) labels, and (N,) bool: whether the run has each test image right, by the logits that `metric`, a top-1, is computed from.

    None where it cannot be had. Raises UserError for a damaged file.
    """
    named = re.fullmatch(r"test_(?:(\w+)_)?top1", metric)
    if path is None or named is None or not path.is_file():
        return None
    name = named[1]
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = name if name in ("raw", "ema") else "ema" if "logits_ema" in stored else "raw"
            heads = stored["heads"].tolist()
            if f"logits_{weights}" not in stored or name not in (None, "raw", "ema", *heads):
                return None
            logits = stored[f"logits_{weights}"]  # (H, N, C)
            scores = logits[heads.index(name)] if name in heads else logits.mean(0)
            return stored["labels"], ranked(scores)[:, 0] == stored["labels"]
    except Exception as e:  # zipfile, zlib and NumPy raise nearly anything on a damaged file
        remedy = "train the run anew with --force, or delete it in MLflow, then 'vitlab sync'"
        raise UserError(f"{path}: no readable predictions ({str(e) or type(e).__name__}); {remedy}") from None
