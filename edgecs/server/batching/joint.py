"""The width of joint calls: how many tokens of each answer one call computes."""

from __future__ import annotations

from collections.abc import Sequence

from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.session.answer import Answer


def most_drafted(together: int, costs: CostModel | None) -> int:
    """The most draft tokens of each of some answers in a joint call.

    costs: call times of the target; None: joint calls have no drafts.
    """
    return WIDEST // together - 1 if costs and costs.known else 0


def joint_width(answers: Sequence[Answer], costs: CostModel | None) -> int:
    """The width of each request in a joint call, see `best_joint_width`."""
    paths = [answer.promised for answer in answers]
    if not costs or not any(paths):
        return 1
    depth = max(len(answer.context) for answer in answers)
    return best_joint_width(paths, costs.times(depth))


def best_joint_width(paths: Sequence[Sequence[float]], times: Sequence[float]) -> int:
    """The width per request with the most expected tokens per second in a joint call.

    paths: for every request, the probability that its draft is right up to each token.
    times: seconds of a call by number of tokens, inf if unknown. All requests of a call
    count as equally wide: `LlamaLM` pads the narrower ones.

    >>> times = [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 1.9, 2.1]
    >>> best_joint_width([[0.9, 0.8], [0.1]], times), best_joint_width([[0.1]], times)
    (2, 1)
    """
    count = len(paths)
    best, width, expected = 0.0, 1, float(count)
    for each in range(1, len(times) // count + 1):
        if each > 1:
            more = [path[each - 2] for path in paths if len(path) > each - 2]
            if not more:
                break
            expected += sum(more)
        rate = expected / times[count * each - 1]
        if rate > best:
            best, width = rate, each
    return width
