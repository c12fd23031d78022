"""Run a target on prompts with different chains of drafters."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, LanguageModel, score_one
from edgecs.core.faults import refuse
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.static_schedule import Clock
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import Calibration, Evidence
from edgecs.planning.ahead import Ahead
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.planner import Planner
from edgecs.session.session import Session
from edgecs.text.detokenizer import Tokenizer
from edgecs.tuning.comparison import MAG, Chain, Run

_NO_EVIDENCE: Evidence = ()


class ChainDrafter(NamedTuple):
    """A drafter in the comparison."""

    name: str
    model: LanguageModel
    costs: CostModel
    agreed: Sequence[bool]  # whether it chose the target's token, see `agreeing`


class Stage:
    """Runs prompts on a target with any chain.

    known: the target's speculation profile. Every chain has its own planner; all start
    with the same acceptances, so that none benefits from another one's learning.
    tokens: most tokens in an answer. clock: returns seconds.
    """

    def __init__(
        self,
        known: SpeculationProfile,
        tokenizer: Tokenizer,
        drafters: Sequence[ChainDrafter] = (),
        *,
        tokens: int = 96,
        clock: Clock = perf_counter,
    ) -> None:
        self.known = known
        self._tokenizer = tokenizer
        self._drafters = {drafter.name: drafter for drafter in drafters}
        self._tokens, self._clock = tokens, clock
        self._acceptance = known.calibration.state()
        self._planners: dict[Chain, Planner] = {}

    def play(self, chain: Chain, prompt: Tokens) -> Run:
        """Answer a prompt greedily; raises Cancelled if the target's cancel is set.

        prompt: int32 [n].
        """
        schedule = self._planner(chain) if chain.parts else None
        target, limits = self.known.target, self.known.limits
        ids: list[int] = []
        began = 0.0
        with Session(
            target, self._tokenizer, schedule=schedule, limits=limits
        ) as session:
            for token in session.generate(prompt, max_tokens=self._tokens):
                began = began if ids else self._clock()
                ids.append(token.id)
            seconds = self._clock() - began
            if session.finish_reason == "cancelled":
                raise Cancelled("stopped while comparing chains: nothing was kept")
            refuse(session.stats.faults)
        return Run((len(ids) - 1) / seconds if seconds > 0 else 0.0, ids)

    def learnt(self) -> Calibration:
        """Acceptances after all runs.

        Those of sources come from the chain of Max-Gram alone, those of a drafter from
        the last chain that contains it.
        """
        learnt = {c: p.calibration.state() for c, p in self._planners.items()}
        state = {**learnt.get(MAG, self._acceptance)}
        state["stated"] = {**self._acceptance["stated"]}
        for chain, seen in learnt.items():
            state["stated"] |= {name: seen["stated"][name] for name in chain.drafters}
        return Calibration.from_state(state)

    def _planner(self, chain: Chain) -> Planner:
        if chain not in self._planners:
            drafters = [self._drafters[name] for name in chain.drafters]
            planner = Planner(
                self.known.costs,
                Calibration.from_state(self._acceptance),
                # No source that remembers answers: prompts are run many times.
                [MaxGram()] if chain.mag else (),
                [NamedModel(drafter.name, drafter.model) for drafter in drafters],
                longest=self.known.target.max_draft,
                ends=self._tokenizer.ends,
                clock=self._clock,
                rollback=self.known.rollback(),
                ahead=Ahead(self._tokenizer.ends, clock=self._clock)
                if chain.ahead
                else None,
            )
            for neural, drafter in zip(planner.neural, drafters, strict=True):
                neural.review.costs = drafter.costs
                _teach(neural, drafter.agreed)
            self._planners[chain] = planner
        return self._planners[chain]


def _teach(neural: NeuralSource, agreed: Sequence[bool]) -> None:
    """Initialise the share of right tokens, which would take long to learn."""
    run = 0
    for right in agreed:
        run += right
        if not right:
            neural.learn(_NO_EVIDENCE, run, decided=True)
            run = 0
    neural.learn(_NO_EVIDENCE, run, decided=False)


def agreeing(
    model: LanguageModel,
    target: LanguageModel,
    prompt: Tokens,
    answer: Sequence[int],
) -> list[bool]:
    """For each token of a target's answer, whether a drafter chooses the same token.

    Tokens outside of the drafter's context are left out. prompt: int32 [n]. For a head,
    which needs the target's hidden states, the target computes the answer again.
    """
    if not model.max_draft:
        return _agreeing_along(model, target, prompt, answer)
    context, same, most = Context(prompt), list[bool](), model.max_draft + 1
    for at in range(0, len(answer), most):
        part = answer[at : at + most]
        if len(context) + len(part) > model.n_ctx:
            break
        rows = score_one(model, context, Draft.chain(part[:-1], "answer")).logits
        same += (rows.argmax(axis=1) == part).tolist()
        context.append(part)
    model.reset()
    return same


def _agreeing_along(
    model: LanguageModel, target: LanguageModel, prompt: Tokens, answer: Sequence[int]
) -> list[bool]:
    context, same, most = Context(prompt), list[bool](), target.max_draft
    for at in range(0, len(answer), most):
        part = answer[at : at + most]
        if len(context) + len(part) > min(model.n_ctx, target.n_ctx):
            break
        score_one(target, context, Draft.chain(part, "answer"))
        for token in part:
            choice = int(score_one(model, context).logits[0].argmax())
            same.append(choice == token)
            context.append((token,))
    model.reset()
    target.reset()
    return same
