"""Acceptance of drafted tokens by edgecs's shared noise and by ratios, on real rows.

    python -m edgecs_bench.simulation.acceptance -m TARGET.gguf --draft SMALL.gguf \
        --prompts FILE.jsonl [--limit N] [-n TOKENS] [--temp T] [-k K] [--json]
    python -m edgecs_bench.simulation.acceptance --random [VOCABULARY]

The target answers each prompt. At every position of the answer the laws of both models
give the chance that a drafted token is accepted: by shared noise, and by a ratio, which
is the most that any rule can reach. At every K-th position the small model draws K
tokens, and the laws along them give the expected accepted tokens by tokens and by
blocks. --random takes random laws instead of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Draft, LanguageModel, Law, Laws, score_one
from edgecs.decoding.ratio import Position, chances
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load, load_drafter
from edgecs.sampling.settings import Sampling
from edgecs_bench.run.runner import encoder
from edgecs_bench.suite.prompts import read_prompts

_ROUNDS = 400  # of random laws
_APART = 0.6  # weight of the target's law in a drafter's, in random laws


def shared_rate(p: Law, q: Law) -> float:
    """The chance that two draws with the same Gumbel noise are the same token.

    The sum over v of 1 / (sum over u of max(p_u / p_v, q_u / q_v)). In order of p / q,
    tokens before v contribute p_u / p_v and the others q_u / q_v.
    """
    both = np.flatnonzero((p > 0) & (q > 0))
    if not both.size:
        return 0.0
    order = both[np.argsort(-p[both] / q[both], kind="stable")]
    one, other = p[order], q[order]
    outside = 1 - one.sum(), 1 - other.sum()  # tokens that only one of them can draw
    before = np.cumsum(one) + max(0.0, float(outside[0]))
    after = other.sum() - np.cumsum(other) + max(0.0, float(outside[1]))
    return float((1 / (before / one + after / other)).sum())


def ratio_rate(p: Law, q: Law) -> float:
    """The chance that a draw from q is accepted by its ratio: 1 - TV(p, q)."""
    return float(np.minimum(p, q).sum())


def expected_tokens(at: Sequence[Position]) -> float:
    """Expected accepted tokens of a draft by tokens."""
    return float(np.cumprod([min(1.0, one.ratio) for one in at]).sum())


def expected_block(at: Sequence[Position]) -> float:
    """Expected accepted tokens of a draft by blocks."""
    stays = np.cumprod([1 - chance for chance in reversed(chances(at))])
    return float((1 - stays).sum())


class Acceptance(NamedTuple):
    """The mean chances of a token, and the mean accepted tokens of a draft."""

    positions: int
    shared: float
    ratio: float
    drafts: int
    length: int  # tokens of a draft
    tokens: float
    blocks: float

    def lines(self) -> list[str]:
        """The numbers in words."""
        return [
            f"one drafted token, {self.positions} positions: shared noise accepts "
            f"{self.shared:.3f}, a ratio {self.ratio:.3f}",
            f"{self.drafts} drafts of {self.length}: {self.tokens:.3f} tokens accepted "
            f"by tokens, {self.blocks:.3f} by blocks",
        ]


Sample = tuple[list[tuple[Law, Law]], list[list[Position]]]
"""The laws (p, q) at positions of an answer, and drafts with theirs."""


def summed_up(samples: Sequence[Sample], length: int) -> Acceptance:
    """Means over answers. Raises ClickException if there are no drafts."""
    pairs = [pair for laws, _ in samples for pair in laws]
    drafts = [draft for _, several in samples for draft in several]
    if not drafts:
        raise click.ClickException("no answer has room for a draft: give more tokens")
    return Acceptance(
        len(pairs),
        float(np.mean([shared_rate(p, q) for p, q in pairs])),
        float(np.mean([ratio_rate(p, q) for p, q in pairs])),
        len(drafts),
        length,
        float(np.mean([expected_tokens(draft) for draft in drafts])),
        float(np.mean([expected_block(draft) for draft in drafts])),
    )


def measured(
    target: LanguageModel,
    small: LanguageModel,
    choose: Laws,
    prompt: Sequence[int],
    most: int,
    length: int,
) -> Sample:
    """One answer of the target, and a draft of the small model at every K-th token."""
    laws: list[tuple[Law, Law]] = []
    drafts: list[list[Position]] = []
    context = Context(prompt)
    for n in range(most):
        if n % length == 0 and n + length <= most:
            drafts.append(_draft(target, small, choose, context, length))
        row, other = (score_one(model, context).logits[0] for model in (target, small))
        laws.append(
            (choose.law(row, context.tokens), choose.law(other, context.tokens))
        )
        context.append((choose(row, context.tokens),))
    return laws, drafts


def _draft(
    target: LanguageModel,
    small: LanguageModel,
    choose: Laws,
    context: Context,
    length: int,
) -> list[Position]:
    drawn, tokens, laws = choose.reseeded(len(context)), list[int](), list[Law]()
    for _ in range(length):
        here = context.with_tail(tokens)
        row = score_one(small, here).logits[0]
        laws.append(drawn.law(row, here.tokens))
        tokens.append(drawn(row, here.tokens))
    rows = score_one(target, context, Draft.chain(tokens[:-1], "small")).logits
    whole = context.with_tail(tokens).tokens
    found = []
    for i, (token, q) in enumerate(zip(tokens, laws, strict=True)):
        p = drawn.law(rows[i], whole[: len(context) + i])
        found.append(Position(token, p, q, 0))
    return found


def simulated(vocabulary: int, length: int, seed: int = 0) -> Sample:
    """Random laws: a drafter's is the target's, mixed with another one."""
    random = np.random.default_rng(seed)
    drafts = []
    for _ in range(_ROUNDS):
        draft = []
        for _ in range(length):
            p, other = random.dirichlet(np.full(vocabulary, 0.3), size=2)
            q = _APART * p + (1 - _APART) * other
            token = int(random.choice(vocabulary, p=q / q.sum()))
            draft.append(Position(token, p, q, 0))
        drafts.append(draft)
    return [(one.p, one.q) for draft in drafts for one in draft], drafts


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path))
@click.option("--draft", type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(1), default=3, show_default=True)
@click.option("-n", "most", type=click.IntRange(1), default=32, show_default=True)
@click.option("--temp", type=click.FloatRange(0.01), default=1.0, show_default=True)
@click.option("-s", "--seed", type=int, default=0, show_default=True)
@click.option("-k", "length", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option("--random", "vocabulary", type=click.IntRange(2), help="Random laws.")
@click.option("--json", "as_json", is_flag=True)
def main(
    model: Path | None,
    draft: Path | None,
    prompts: Path | None,
    limit: int,
    most: int,
    temp: float,
    seed: int,
    length: int,
    vocabulary: int | None,
    as_json: bool,
) -> None:
    """Compare the acceptance of shared noise, of ratios, and of blocks."""
    if vocabulary:
        found = summed_up([simulated(vocabulary, length, seed)], length)
    elif model and draft and prompts:
        sampling = Sampling(temperature=temp, seed=seed)
        answers = _answers(model, draft, prompts, limit, sampling, most, length)
        found = summed_up([*answers], length)
    else:
        raise click.UsageError("give -m, --draft and --prompts, or --random")
    for line in [json.dumps(found._asdict())] if as_json else found.lines():
        click.echo(line)


def _answers(
    model: Path,
    draft: Path,
    prompts: Path,
    limit: int,
    sampling: Sampling,
    most: int,
    length: int,
) -> Iterator[Sample]:
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(n_ctx=4096)))
        small = closing.enter_context(load_drafter(draft, loaded))
        choose, encode = loaded.rule(sampling)(0).target, encoder(loaded)
        assert isinstance(choose, Laws)
        for prompt in read_prompts([prompts], (), limit)[:limit]:
            ids = encode(prompt.text)
            yield measured(loaded.target, small.model, choose, ids, most, length)


if __name__ == "__main__":
    main()
