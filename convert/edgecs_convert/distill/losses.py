"""The losses of training: distances between drafter's and target's distribution.

Only the target's best logits are known, and only some of their tokens are in the
drafter's vocabulary; the distribution is renormalised over those. The acceptance of a
draft is 1 - TVD; forward KL works better far from the target (DistillSpec, arXiv
2310.08461). TVD++ (arXiv 2403.00858) reduces the noise of TVD's sampled gradient; here
the sum is over all tokens that matter, so there is no such noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgecs_convert.distill.recipe import Divergence

_TINY = 1e-9


def divergence(kind: Divergence, said: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    """The mean over n positions, a scalar.

    said: [n, vocabulary], the drafter's logits. rows, logits: [n, k], the target's best
    tokens as rows of the drafter, -inf for missing ones; at least one is known.
    """
    law = logits.softmax(-1)
    logs = said.gather(1, rows) - said.logsumexp(-1, keepdim=True)
    return _KINDS[kind](law, logs).mean()


def _fkl(law: Tensor, logs: Tensor) -> Tensor:
    """Cross-entropy, which is forward KL up to a constant."""
    return -(law * logs).sum(-1)


def _tvd(law: Tensor, logs: Tensor) -> Tensor:
    """1 - the sum of the common probability; the target gives 0 to other tokens."""
    return 1 - torch.minimum(law, logs.exp()).sum(-1)


def _jsd(law: Tensor, logs: Tensor) -> Tensor:
    """Half the KL divergence of each distribution from their mean."""
    mine = logs.exp() * (law > 0)  # unknown tokens share a row with a known one
    mean = (law + mine) / 2
    theirs = law * ((law + _TINY).log() - (mean + _TINY).log())
    ours = mine * ((mine + _TINY).log() - (mean + _TINY).log())
    rest = (1 - mine.sum(-1)).clamp(min=0) * math.log(2)
    return (theirs.sum(-1) + ours.sum(-1) + rest) / 2


_KINDS: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "fkl": _fkl,
    "tvd": _tvd,
    "jsd": _jsd,
}
