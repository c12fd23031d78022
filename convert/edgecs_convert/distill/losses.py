"""How far a drafter's law is from the target's: the losses of training.

The target's law is known by its best logits alone, and only some of these are tokens
that the drafter has. It is made a law again over those. The acceptance of a draft is
1 - TVD; forward KL is what teaches from far away (DistillSpec, arXiv 2310.08461).
TVD++ (arXiv 2403.00858) tames the noise of TVD's sampled gradient; here the sum is
over all tokens that matter, so there is no such noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgecs_convert.distill.recipe import Divergence

_TINY = 1e-9


def divergence(kind: Divergence, said: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
    """The mean over n texts' positions, a scalar.

    said: [n, vocabulary], the drafter's logits. rows, logits: [n, k], the target's best
    tokens as rows of the drafter, -inf for those that it lacks; one is known at least.
    """
    law = logits.softmax(-1)
    logs = said.gather(1, rows) - said.logsumexp(-1, keepdim=True)
    return _KINDS[kind](law, logs).mean()


def _fkl(law: Tensor, logs: Tensor) -> Tensor:
    """Cross-entropy, which is forward KL but for a constant."""
    return -(law * logs).sum(-1)


def _tvd(law: Tensor, logs: Tensor) -> Tensor:
    """1 - the sum of what both give to a token: nobody gives anything to the others."""
    return 1 - torch.minimum(law, logs.exp()).sum(-1)


def _jsd(law: Tensor, logs: Tensor) -> Tensor:
    """Both against their mean, half each."""
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
