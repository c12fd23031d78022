"""Chains of drafters for a simulation, as given on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError
from edgecs_bench.hardware.curves import Curve, Steps
from edgecs_bench.simulation.replay import Player

_COUNTED = re.compile(r"(mag|drafter):([1-9]\d?)", re.A)
PLAIN, MAG, ALL = "plain", "planner:mag", "planner:drafter+mag"
OVERLAP = f"{ALL}:overlap"
CHAINS = (PLAIN, "mag:5", "drafter:4", "4,8;0,4", MAG, ALL)


@dataclass(frozen=True)
class Chain:
    """The drafters and their schedule.

    >>> [Chain.parse(label).matrix(1) for label in ("mag:5", "drafter:4")]
    [KMatrix(rows=((5,),)), KMatrix(rows=((4, 0), (0, 0)))]
    """

    label: str
    neural: bool = False  # whether neural drafters are used
    first: int = 0  # tokens that the best drafter writes alone
    rows: str = ""  # a K matrix

    @staticmethod
    def parse(label: str) -> Chain:
        """Raises ConfigError."""
        if label in (PLAIN, MAG, ALL, OVERLAP):
            return Chain(label, neural=label in (ALL, OVERLAP))
        if found := _COUNTED.fullmatch(label):
            chain = Chain(label, found[1] == "drafter", first=int(found[2]))
        elif "," in label:
            chain = Chain(label, neural=True, rows=label)
        else:
            raise ConfigError(
                f"invalid chain {label!r}: give {PLAIN}, mag:K, drafter:K, a K matrix "
                f'as in "4,8;0,4", {MAG}, {ALL} or {OVERLAP}'
            )
        widest = max(sum(row) for row in chain.matrix(1).rows)
        if widest >= WIDEST:
            raise ConfigError(
                f"{label} drafts {widest} tokens, but a call has room for {WIDEST - 1}"
            )
        return chain

    @property
    def plans(self) -> bool:
        """Whether a planner decides."""
        return self.label in (MAG, ALL, OVERLAP)

    def matrix(self, drafters: int) -> KMatrix:
        """The K matrix of a fixed schedule with a number of neural drafters."""
        if self.rows:
            return KMatrix.parse(self.rows)
        others = drafters if self.neural else 0  # that write nothing
        zeros = (0,) * others
        return KMatrix(((self.first, *zeros), *[(0, *zeros)] * others))

    def player(
        self, drafters: tuple[str, ...], curve: Curve, steps: Mapping[str, Steps]
    ) -> Player:
        """An object that replays answers with this chain."""
        names = drafters if self.neural else ()
        player = Player(
            curve,
            names,
            sources=[MaxGram()],
            steps=steps,
            overlap=self.label == OVERLAP,
        )
        if not self.plans:
            matrix = self.matrix(len(names))
            models = [model.named for model in player.models]
            stacked = stack(models, MaxGram(), matrix)
            player.schedule = StaticSchedule(stacked, matrix.counts(0))
        return player
