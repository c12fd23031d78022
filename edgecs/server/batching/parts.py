"""How much of a prompt is read between two rounds of other answers.

A part delays the next token of all other answers, so it takes about as long as one of
their rounds: then a gap between two tokens is at most about twice as long as usual,
and a prompt has half of the time until it is read. If several prompts wait, the part is
that many times as long: the last of them would otherwise wait for all rounds of all.
"""

from __future__ import annotations

# chosen: how long a client that has left keeps the processor busy.
_PATIENCE = 0.5  # seconds of a part while nobody else waits
# chosen: fewer tokens do not use the processor well, as weights are read for each part.
_LEAST = 32
# chosen: on a slow machine it is one of its long calls, on a fast one it is short.
_FIRST = 64  # tokens of a part until both speeds are known
_FIRST_ALONE = 128
# chosen: about the last four calls count.
_LATELY = 0.25  # weight of a call in the averages


class PromptParts:
    """The size of a part of a prompt, from measured calls.

    most: tokens of a part.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._token: float | None = None  # seconds of a prompt token
        self._round: float | None = None  # seconds of a call that decodes

    def tokens(self, prompts: int = 1) -> int:
        """The tokens of the next part. prompts: how many are being read or wait for it.

        >>> parts = PromptParts(512)
        >>> parts.read(100, 0.05)
        >>> parts.decoded(0.02)
        >>> parts.tokens(), parts.tokens(3)
        (40, 120)
        """
        if self._token is None or self._round is None:
            return min(_FIRST, self._most)
        fitting = round(prompts * self._round / max(self._token, 1e-9))
        return max(min(_LEAST, self._most), min(fitting, self._most))

    @property
    def tokens_alone(self) -> int:
        """The tokens of the next part if there are no other answers.

        A call cannot be cancelled, so it should not take long.
        """
        if self._token is None:
            return min(_FIRST_ALONE, self._most)
        fitting = round(_PATIENCE / max(self._token, 1e-9))
        return max(min(_LEAST, self._most), min(fitting, self._most))

    def read(self, tokens: int, seconds: float) -> None:
        """Take account of a call that read a part of a prompt."""
        if tokens >= _LEAST:
            self._token = _average(self._token, seconds / tokens)

    def decoded(self, seconds: float) -> None:
        """Take account of a call of answers that have tokens."""
        self._round = _average(self._round, seconds)


def _average(known: float | None, new: float) -> float:
    return new if known is None else known + _LATELY * (new - known)
