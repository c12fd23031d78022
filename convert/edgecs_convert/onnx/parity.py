"""The difference between an exported drafter and its source, on a small text."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import score_one
from edgecs.engines.onnx.decoder import OnnxModel


class Parity(NamedTuple):
    """largest: difference of a logit of a common token. same: share of rows with the
    same first choice.
    """

    largest: float
    same: float


def parity(folder: Path, rows: NDArray[np.float32], tokens: Tokens) -> Parity:
    """Compares a drafter with the rows [n, vocabulary] of its source.

    tokens: [n] of the text, shorter than the drafter's window.
    """
    model = OnnxModel(folder, rows.shape[1], threading.Event())
    context = Context(tokens[:1])
    largest, same = 0.0, 0
    try:
        for i, row in enumerate(rows):
            got = score_one(model, context).logits[0]
            known = np.isfinite(got)
            largest = max(largest, float(np.abs(got[known] - row[known]).max()))
            same += int(got.argmax() == row.argmax())
            context.append(tokens[i + 1 : i + 2])
    finally:
        model.close()
    return Parity(largest, same / len(rows))
