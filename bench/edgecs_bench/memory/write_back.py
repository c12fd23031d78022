"""Replays write-back: drafts from what the target said after tokens that it rejected.

    python -m edgecs_bench.memory.write_back [--curve flat]

A call computes rows after rejected tokens too. Their best tokens belong to a text that
was not written but may be written later (Ouroboros, arXiv 2402.13720; Lookahead, arXiv
2402.02057). Here they are a source beside Max-Gram and the target's bigrams, apart from
the text, with a calibration of its own. Answers are the beginnings that were recorded
by `edgecs_bench.memory.rejections`; drafts that are not Max-Gram's teach nothing. Each
row that is read takes PRICE. The last line is JSON: the speed over that without
write-back, in the tuning half and the reported one.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.copies import DEPTH, DEPTHS, GRAM, bucket_count
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import Source
from edgecs_bench.hardware.curves import Curve
from edgecs_bench.memory.rejections import FOLDER, Said, read_rejections
from edgecs_bench.memory.scenarios import FOLDER as TRACES
from edgecs_bench.memory.traces import Answer, read_answers
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.replay import Player
from edgecs_bench.simulation.replay_drafter import Watch
from edgecs_bench.simulation.replay_options import curves_of

# measured: numpy's argmax of 49,152 and 151,936 logits takes 5 and 16 us in a cache.
PRICE = 15e-6  # seconds for a row
ROWS = 4  # rejected tokens of a round whose rows are read
_RUNS = (2, 3, 5)  # how often in a row the same token was said
_FEW = 6  # tokens of a proposal
_SHORT_FROM = bucket_count(_RUNS)
_DEPTHS_FROM = 2 * _SHORT_FROM
# Fitted to the tuning half by `edgecs_bench.prior: fit`, with all recorded rows.
_AFTER_THREE, _AFTER_TWO = (0.0, -0.2, 0.6, 0.6), (-0.5, -0.7, 0.6, 0.3)


class WriteBack:
    """Proposes what the target said after the same GRAM tokens, or one fewer.

    >>> source = WriteBack(Watch())
    >>> source.learn([7, 1, 2], 3)
    >>> source.continuation(Context([9, 7, 1, 2]), 4)
    [3]
    """

    name = "write-back"
    buckets = _DEPTHS_FROM + bucket_count(DEPTHS)
    prior: Sequence[float] = (
        *_AFTER_THREE,
        *_AFTER_TWO,
        *(0.0,) * bucket_count(DEPTHS),
    )
    is_vague = False

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}  # token, its run
        self._buckets: list[Sequence[int]] = []  # of the last proposal
        self._prompt, self._said = 0, Said()
        self.rows = 0  # that were read

    def hear(self, answer: Answer, said: Said) -> None:
        """Start the next answer."""
        self._prompt, self._said = len(answer.prompt), said

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """At most k tokens, each of which the target said after those before it."""
        tokens = self.continuation(context, k)
        return Draft.chain(tokens, self.name) if tokens else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose`."""
        end, found, known = context.tokens[-GRAM:].tolist(), list[int](), self._next
        self._buckets = []
        while len(found) < min(k, _FEW):
            said, first = known.get((*end,)), 0
            if said is None:
                said, first = known.get((*end[1:],)), _SHORT_FROM
            if said is None:
                break
            token, run = said
            depth = _DEPTHS_FROM + DEPTH[len(found)]
            self._buckets.append((first + bisect_right(_RUNS, run), depth))
            found.append(token)
            end = [*end[1:], token]
        return found

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Buckets of each token: length of the gram with its run, and position."""
        return iter(self._buckets[: len(tokens)])

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Learn what was recorded after rejected tokens of Max-Gram."""
        first, at = len(verdict.path), len(context) - self._prompt
        if first >= len(draft) or draft.sources[first] != "mag":
            return
        said = self._said[at] if at < len(self._said) else []
        text = [*context.tokens[-GRAM:].tolist(), *draft.tokens.tolist()]
        end = len(text) - len(draft) + first + 1  # of the tokens before the row
        for token in said[: min(ROWS, len(draft) - first)]:
            self.learn(text[max(0, end - GRAM) : end], token)
            self._watch.pass_by(PRICE)
            self.rows += 1
            end += 1

    def learn(self, end: Sequence[int], token: int) -> None:
        """Learn what the target said after the last tokens of a text, at most GRAM."""
        for gram in {(*end,), (*end[1:],)}:
            old = self._next.get(gram)
            self._next[gram] = token, old[1] + 1 if old and old[0] == token else 1


def played(
    answers: Sequence[tuple[Answer, Said]], curve: Curve, *, written_back: bool
) -> tuple[dict[bool, float], int]:
    """Milliseconds by half (True: the tuning half), and the rows that were read."""
    watch = Watch()
    source = WriteBack(watch)
    extra: list[Source] = [source] if written_back else []
    sources: list[Source] = [MaxGram(), *extra, Bigrams()]
    player = Player(curve, (), sources=sources, watch=watch)
    spent = {True: 0.0, False: 0.0}
    for answer, said in answers:
        source.hear(answer, said)
        spent[answer.tuning] += player.play(answer.trace())
    return spent, source.rows


def compared(answers: Sequence[tuple[Answer, Said]], curve: Curve) -> dict[str, float]:
    """The speed with write-back over that without it, by half; the rows it reads."""
    alone, _ = played(answers, curve, written_back=False)
    spent, rows = played(answers, curve, written_back=True)
    halves = {"tuning": True, "reported": False}
    found = {
        name: round(alone[half] / spent[half], 4)
        for name, half in halves.items()
        if spent[half]
    }
    return {**found, "rows": rows}


def recorded(traces: Path, rejections: Path) -> list[tuple[Answer, Said]]:
    """The recorded beginnings of answers, those for tuning first."""
    _, answers = read_answers(traces)
    known = read_rejections(rejections)
    found = [
        (_beginning(answers[number], len(said)), said)
        for number, said in sorted(known.items())
        if number < len(answers) and len(said) > 1
    ]
    return sorted(found, key=lambda pair: not pair[0].tuning)


def _beginning(answer: Answer, size: int) -> Answer:
    return answer._replace(output=answer.output[:size], ranked=answer.ranked[:size])


@click.command()
@click.option("--traces", type=click.Path(path_type=Path), default=TRACES)
@click.option("--rejections", type=click.Path(path_type=Path), default=FOLDER)
@click.option("--curve", "names", multiple=True, help="Only these curves.")
def main(traces: Path, rejections: Path, names: tuple[str, ...]) -> None:
    """Replay answers with and without write-back."""
    files = [rejections] if rejections.is_file() else sorted(rejections.glob("*.gz"))
    answers = [
        pair
        for file in files
        for pair in recorded(traces if traces.is_file() else traces / file.name, file)
    ]
    if not answers:
        raise click.UsageError(f"{rejections} has no recorded answer")
    curves = {one.name: compared(answers, one) for one in curves_of(None, names)}
    table([{"curve": name, **row} for name, row in curves.items()])
    finish({"answers": len(answers), "curves": curves})


if __name__ == "__main__":
    main()
    sys.exit(0)
