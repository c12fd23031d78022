"""What a session is made of: everything that can be chosen about it, in one value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgecs.decoding.exactness import Exact
from edgecs.decoding.kmatrix import KMatrix
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.sampling.settings import Sampling

if TYPE_CHECKING:
    from edgecs.grammar.mask import Grammar


@dataclass(frozen=True)
class Recipe:
    """A model, how it is loaded, who drafts how much, in which tier, and the sampling.

    `builder.build` makes a session of it. Raises ConfigError for what cannot work
    together.
    """

    model: str  # a name, a path to a GGUF, or user/repo[:quant]
    options: LoadOptions = field(default_factory=LoadOptions)
    # Names, paths, or folders of ONNX drafters, the largest first; Max-Gram always
    # comes last. None: the drafter that comes with the model, if it pays here.
    drafts: tuple[str, ...] | None = None
    draft_options: LoadOptions | None = None  # of GGUF drafters; None: as `options`
    speculate: bool = True  # False: plain decoding
    matrix: KMatrix | None = None  # a fixed schedule; None: the planner decides
    longest: int | None = None  # tokens of a draft; None: as many as pay
    min_match: int = 1  # tokens that occurred before, after which Max-Gram drafts
    lenience: float = 1.0  # of inner reviewers
    exact: Exact = "auto"
    # With `exact` "strict": whether the KV cache may have another type, where with
    # that of `options` no width is exact along the context.
    may_change_cache: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if self.matrix is not None and self.longest is not None:
            raise ConfigError(
                "a K matrix says how long drafts are: give it or a longest draft"
            )
        if self.matrix is not None:
            self.matrix.check([*(self.drafts or ()), "mag"])

    @property
    def drafting(self) -> bool:
        """Whether there may be drafts at all."""
        return self.speculate and self.longest != 0

    @property
    def drafter_options(self) -> LoadOptions:
        """How a GGUF drafter is loaded; its context is that of the target."""
        return replace(self.draft_options or self.options, n_ctx=0)
