"""The acceptance rule: follow the draft along the target's own choices.

`verify` takes a draft, the logits of its nodes and the rule that chooses a token; it
returns the accepted nodes and the next token. It is independent of models, caches and
text. One rule serves chains and trees, greedy and sampled choices, and all drafters.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Choose, Draft, Laws, Row, Rows, Verdict
from edgecs.errors import ConfigError
from edgecs.sampling.cascade_rules import Mixture


def verify(
    draft: Draft,
    rows: Rows,
    choose: Choose,
    context: Context,
    ends: Container[int] = (),
    lenience: float = 1.0,
    mixes: Mixture | None = None,
) -> Verdict:
    """Accepts drafted tokens while they are the choices of `choose`.

    Every choice is made on the row of the path accepted so far, so the result is that
    of token-by-token decoding. A token in `ends` is not accepted, even if it was
    drafted: nothing follows the end of an answer.

    lenience: above 1, drafted tokens that `choose.keeps` are accepted as well, the
    first of several (CS Drafting, section 4.1). Only for inner reviewers: the result is
    no longer that of token-by-token decoding.

    mixes: the choices are those of a cascade rule, which needs `rows.beside`; the
    result is that of token-by-token decoding with this rule.

    >>> import numpy as np
    >>> from edgecs.sampling.chain import greedy
    >>> rows = Rows(np.eye(5, dtype=np.float32)[[3, 1, 4]], fed=3)
    >>> verify(Draft.chain([3, 2], "mag"), rows, greedy, Context([0]))
    Verdict(path=(0,), token=1)
    """
    if not len(draft):  # most rounds
        return Verdict((), _choice(rows, -1, choose, context.tokens, mixes))
    children = draft.children()
    path: list[int] = []
    here, view = -1, context
    while True:
        row = rows.logits[here + 1]
        token = _choice(rows, here, choose, view.tokens, mixes)
        child = children.get((here, token))
        if child is None and lenience > 1:
            child = _kept(draft, here, row, view, choose, lenience)
            token = token if child is None else int(draft.tokens[child])
        if child is None or token in ends:
            return Verdict(tuple(path), token)
        path.append(child)
        here, view = child, view.with_tail((token,))


def _choice(
    rows: Rows, node: int, choose: Choose, tokens: Tokens, mixes: Mixture | None
) -> int:
    """The choice after a node; -1: after the context."""
    row = rows.logits[node + 1]
    if mixes is None:
        return choose(row, tokens)
    if rows.beside is None or not isinstance(choose, Laws):
        raise ConfigError(
            "a cascade rule needs rows of a small model and a choice that states its "
            "law (sampling.chain.chooser)"
        )
    return mixes.choose(choose, row, rows.beside[node + 1], tokens)


def _kept(
    draft: Draft, here: int, row: Row, view: Context, choose: Choose, lenience: float
) -> int | None:
    """The first drafted node after `here` that a lenient reviewer keeps."""
    for node in np.flatnonzero(draft.parents == here).tolist():
        token, q = int(draft.tokens[node]), float(draft.confidences[node])
        if choose.keeps(row, view.tokens, token, q, lenience):
            return int(node)
    return None
