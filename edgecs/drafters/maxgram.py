"""Max-Gram (MaG), the statistical drafter at the bottom of every cascade.

CS Drafting (arXiv 2312.11462, section 4.1): find the longest suffix of the text that
occurred before and propose the tokens that followed it. Two changes to the paper: the
newest of the longest matches is taken, not the oldest, and the search uses an index
over committed tokens, so its cost does not depend on the length of the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.drafters.copies import COPIED, GRAM, LONGEST, Copy, Opinion, copied
from edgecs.drafters.priors import packaged
from edgecs.drafters.source import LOOKED_AT

# chosen: limits the time of a search in repetitive text.
CANDIDATES = 32  # occurrences of the last GRAM tokens that are compared, newest first
# chosen: older ones hardly ever show another token.
FOLLOWED = 12  # occurrences of GRAM tokens whose successors are compared

_Gram = tuple[int, int, int]
"""Position of the last token of a gram's newest occurrence; occurrences in a row, up to
the newest, with the same successor; occurrences. (Plain, as opinions are.)"""


class MaxGram:
    """Copies the tokens after the longest earlier occurrence of the current suffix.

    An occurrence ends at a committed token that has a committed successor, so the
    text never matches itself. With L the length of the longest match, counted up to
    LONGEST, the result is that of an exhaustive search (newest of the longest) when
    L < GRAM, or when one of the longest matches is among the newest CANDIDATES
    occurrences of the last GRAM tokens; otherwise a shorter match may be taken. The
    copy continues into the text it has itself proposed, so periodic text is continued
    indefinitely.

    min_match: shorter matches are not used. bigram_fill: where nothing matches,
    propose the token that the target last chose, in any conversation, after the same
    token (also at rejected positions, whose logits are computed anyway).

    >>> context = Context([5, 6, 7, 8, 5, 6])
    >>> MaxGram().propose(context, 4).tokens.tolist()
    [7, 8, 5, 6]
    """

    buckets = COPIED

    def __init__(
        self, *, min_match: int = 1, bigram_fill: bool = False, name: str = "mag"
    ) -> None:
        self.name = name
        self.min_match = min_match
        self._bigrams: dict[int, int] | None = {} if bigram_fill else None
        self.prior: Sequence[float] = packaged()["copied"]
        self._start(None)

    def _start(self, context: Context | None) -> None:
        self._context = context  # its committed tokens are indexed
        self._ids: list[int] = []
        # A gram is indexed, by the position of its last token, when its successor
        # arrives: the newest occurrence of each gram, and for GRAM the one before it.
        self._grams: dict[tuple[int, ...], _Gram] = {}
        self._before: list[int] = []  # [position]: earlier occurrence, or -1
        self._matched = 0  # match length of the last proposal
        self._run = 0  # how often in a row the same token followed the match
        self._end: tuple[int, ...] = ()  # the GRAM tokens before the last proposal

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """At most k tokens that followed the longest earlier occurrence.

        The tail of the context takes part in the match but is not indexed.
        """
        drafted = self.continuation(context, k)
        return Draft.chain(drafted, self.name) if drafted else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        """The tokens of `propose` without a Draft: most are never drafted."""
        self.sync(context)
        text = self._ids[-LONGEST:]
        offset = len(self._ids) - len(text)
        if len(context) > len(self._ids):
            text += context.tokens[len(self._ids) :].tolist()
        self._end = tuple(text[-GRAM:])
        drafted: list[int] = []
        self._matched = 0
        while len(drafted) < k:
            at = self._find(text)
            if at is not None:
                self._copy(at + 1, k, offset, text, drafted)
                break
            fill = self._bigrams.get(text[-1]) if self._bigrams and text else None
            if fill is None:
                break
            text.append(fill)
            drafted.append(fill)
        return drafted

    @property
    def is_vague(self) -> bool:
        """Whether the last proposal is based on a match of one token.

        That token was followed by the proposed one, but not twice in a row.
        """
        return self._matched == 1 and self._run == 1

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Buckets of tokens of the last proposal, see `copies`."""
        return islice(copied(self.copy(tokens[:LOOKED_AT])), len(tokens))

    def copy(self, tokens: Sequence[int]) -> Copy:
        """The evidence for the last proposal.

        tokens: its first tokens. The opinions are computed lazily, one per token, and
        have to be read before the next proposal.
        """
        return Copy(self._matched, self._opinions(self._end, tokens))

    def _opinions(
        self, here: tuple[int, ...], tokens: Sequence[int]
    ) -> Iterator[tuple[Opinion | None, ...]]:
        ids, find = self._ids, self._grams.get
        for token in tokens:
            said: list[Opinion | None] = [None] * GRAM
            for n in range(1, len(here) + 1):
                gram = find(here[-n:])
                if gram is None:  # then no longer gram occurred either
                    break
                newest, run, times = gram
                said[n - 1] = ids[newest + 1] == token, run, times
            yield tuple(said)
            here = (*here[-GRAM + 1 :], token)

    def followers(self, end: Sequence[int]) -> list[tuple[int, int]]:
        """Tokens that followed `end`, 1 to GRAM tokens, and how often.

        The most frequent one comes first; of equal ones the newest. The newest FOLLOWED
        occurrences of GRAM tokens count, and of fewer tokens the newest alone.
        """
        gram = self._grams.get(tuple(end))
        if gram is None:
            return []
        at, run, _ = gram
        if len(end) < GRAM:
            return [(self._ids[at + 1], run)]
        times: dict[int, int] = {}
        for _ in range(FOLLOWED):
            token = self._ids[at + 1]
            times[token] = times.get(token, 0) + 1
            at = self._before[at]
            if at < 0:
                break
        return sorted(times.items(), key=itemgetter(1), reverse=True)

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Learn the target's bigrams from a round, if `bigram_fill` is set."""
        if self._bigrams is None or not len(context):
            return
        parents = [int(context.tokens[-1]), *draft.tokens.tolist()]
        for token, row in zip(parents, rows.logits, strict=True):
            self._bigrams[token] = int(row.argmax())

    def commit(self, tokens: Sequence[int]) -> None:
        """Add committed tokens to the index."""
        ids, grams, before = self._ids, self._grams, self._before
        for token in tokens:
            last, end = len(ids) - 1, tuple(ids[-GRAM:])
            for n in range(1, len(end) + 1):
                gram = end[-n:]
                old = grams.get(gram)
                if old is None:
                    grams[gram] = last, 1, 1
                    continue
                newest, run, times = old
                if n == GRAM:
                    before[last] = newest
                run = run + 1 if ids[newest + 1] == token else 1
                grams[gram] = last, run, times + 1
            ids.append(token)
            before.append(-1)

    def sync(self, context: Context) -> None:
        """Add the tokens that a context has committed since the last call."""
        if context.root is not self._context:
            self._start(context.root)
        done = len(self._ids)
        if done < context.committed:
            self.commit(context.tokens[done : context.committed].tolist())

    def _find(self, text: list[int]) -> int | None:
        """Where the longest earlier occurrence of the end of `text` ends, or None."""
        at = self._find_long(text) if len(text) >= GRAM else None
        if at is not None:
            return at
        for n in range(min(GRAM - 1, len(text)), self.min_match - 1, -1):
            gram = self._grams.get(tuple(text[-n:]))
            if gram is not None:
                self._matched, self._run = n, gram[1]
                return gram[0]
        return None

    def _find_long(self, text: list[int]) -> int | None:
        ids, before = self._ids, self._before
        gram = self._grams.get(tuple(text[-GRAM:]))
        at = gram[0] if gram else -1
        longest = min(LONGEST, len(text))
        more, found = max(self.min_match, GRAM), None  # length that beats the best
        wanted = text[-more:]
        for _ in range(CANDIDATES):
            if at < 0 or more > longest:
                break
            # One slice comparison shows whether this occurrence beats the best one.
            if at + 1 >= more and ids[at + 1 - more : at + 1] == wanted:
                while more < min(longest, at + 1) and ids[at - more] == text[-1 - more]:
                    more += 1
                more, found = more + 1, at
                wanted = text[-more:]
            at = before[at]
        self._matched = more - 1 if found is not None else 0
        return found

    def _copy(
        self, start: int, k: int, offset: int, text: list[int], out: list[int]
    ) -> None:
        """Append the text from position `start` on until `out` has k tokens.

        `text` holds the end of the text, from absolute position `offset` on, and grows
        with the copy; earlier positions are read from the index.
        """
        end = start + k - len(out)
        copied = self._ids[start:end]
        text += copied
        out += copied
        for at in range(start + len(copied), end):
            text.append(text[at - offset])
            out.append(text[-1])
