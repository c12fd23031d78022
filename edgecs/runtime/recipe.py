"""All choices about a session, in one value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgecs.decoding.accept import Accept
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.overlap import Overlap
from edgecs.decoding.tiers import Exact
from edgecs.drafters.corpus import Corpus
from edgecs.engines.host import usable_cores
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.memory.keeping import Wanted
from edgecs.sampling.cascade_rules import CascadeRule
from edgecs.sampling.settings import Sampling

if TYPE_CHECKING:
    from edgecs.grammar.mask import Grammar


HEAD = "head"
"""The name of the MTP head in a model's own file, as a drafter."""


# chosen: the target waits for a part, which should not take longer than a call.
_CHUNK = 64  # tokens of the parts in which a drafter reads while the target computes


@dataclass(frozen=True)
class Recipe:
    """A model, its load options, drafters, exactness tier and sampling.

    `builder.build` creates a session from it. Raises ConfigError for conflicting
    settings.
    """

    model: str  # a name, a path to a GGUF, or user/repo[:quant]
    options: LoadOptions = field(default_factory=LoadOptions)
    # Names, paths, folders of ONNX drafters or HEAD, the largest first; Max-Gram always
    # comes last. None: the MTP head in the model's file if there is one, else the
    # bundled drafter of the model, if it pays on this machine.
    drafts: tuple[str, ...] | None = None
    # Of drafters; None: as `options`, with the target's context size.
    draft_options: LoadOptions | None = None
    speculate: bool = True  # False: plain decoding
    matrix: KMatrix | None = None  # a fixed schedule; None: the planner decides
    longest: int | None = None  # most tokens of a draft; None: as many as pay
    min_match: int = 1  # shortest match that Max-Gram uses, in tokens
    lenience: float = 1.0  # of inner reviewers
    # Answers from a mixture of the target's law and that of the first drafter with a
    # law of its own (no head), which is not the target's answer; None: off.
    cascade: CascadeRule | None = None
    # How drafted tokens are accepted: "shared" gives the tokens of no drafts; the other
    # two only their distribution, see `decoding.ratio`, with drafts of a fixed length.
    # Neither they nor a cascade rule draft trees.
    accept: Accept = "shared"
    # Whether a drafter goes on while the target computes, which only the planner does.
    # With "on" and drafters that are given, those have a quarter of the cores and the
    # target has the rest, unless the numbers of threads are given.
    overlap: Overlap = "auto"
    exact: Exact = "auto"
    # With `exact` "strict": whether the KV cache type may be changed, if no width is
    # exact along the context with that of `options`.
    may_change_cache: bool = False
    # Whether drafts also come from earlier conversations with the loaded model: their
    # texts, and the table of Token Recycling, stay in RAM. Only the planner uses them.
    recent: bool = True
    # Texts that the planner drafts from besides, in the target's tokens; None: none.
    # Who opened them closes them, after the session.
    memory: Corpus | None = None
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    # The user's store that drafts are looked up in and answers are added to; None: no
    # store.
    store: Wanted | None = None

    def __post_init__(self) -> None:
        if self.matrix is not None and self.longest is not None:
            raise ConfigError(
                "a K matrix sets the length of drafts: give it or a longest draft"
            )
        if self.cascade is not None and not self.drafts:
            raise ConfigError(
                "a cascade rule mixes the target with a small model: give one as the "
                "drafter (--draft)"
            )
        if self.cascade is not None and self.accept != "shared":
            raise ConfigError(
                "a cascade rule accepts drafted tokens by its own law: leave accept "
                f"{self.accept} out"
            )
        if self.cascade is not None and self.draft_options and self.draft_options.n_ctx:
            raise ConfigError(
                "a cascade rule needs a small model that reads the whole context: "
                "leave its context size (--ctx-size-draft) out"
            )
        if self.overlap == "on" and not self._plans:
            raise ConfigError(
                "overlap is for the planner: leave out the K matrix, the cascade rule "
                "and the rule of acceptance, or overlap"
            )
        if self.matrix is not None:
            self.matrix.check([*(self.drafts or ()), "mag"])

    @property
    def _plans(self) -> bool:
        """Whether a planner decides about drafts."""
        return self.matrix is None and self.cascade is None and self.accept == "shared"

    @property
    def _splits(self) -> bool:
        """Whether drafters have cores of their own."""
        return self.overlap == "on" and self.drafting and bool(self.drafts)

    @property
    def drafting(self) -> bool:
        """Whether drafts are allowed."""
        return self.speculate and self.longest != 0

    @property
    def loads_drafters(self) -> bool:
        """Whether drafters are loaded: for drafts, or for a cascade rule."""
        return self.drafting or self.cascade is not None

    @property
    def takes_chains(self) -> str:
        """Why drafts are never trees, whatever `options.leaves` is; "": they may be.

        The cells of a tree's path may not be contiguous, so in the strict tier drafts
        are chains.
        """
        if self.exact == "strict":
            return (
                "with --exact strict rows have to be those of plain decoding, and "
                "those of a tree (--draft-leaves) may differ in their bits"
            )
        if self.matrix is not None:
            return "a K matrix counts the tokens of chains: leave --draft-leaves out"
        if self.cascade is not None or self.accept != "shared":
            which = "--cascade-rule" if self.cascade else f"--accept {self.accept}"
            return f"{which} verifies chains: leave --draft-leaves out"
        return ""

    @property
    def target_options(self) -> LoadOptions:
        """Load options of the target, without heads and leaves that are not used."""
        wanted = HEAD in self.drafts if self.drafts is not None else not self.matrix
        threads = self.options.threads
        if self._splits and not threads:
            threads = max(1, usable_cores() - self.drafter_options.threads)
        heads = self.drafting and wanted and not self.options.rpc
        return replace(self.options, heads=heads, leaves=self._leaves, threads=threads)

    @property
    def _leaves(self) -> int:
        """The leaves of drafts, 1: they are chains."""
        grows = self.drafting and not self.takes_chains
        return self.options.leaves if grows else 1

    @property
    def tier(self) -> Exact:
        """The requested tier; "auto" is "numeric" where drafts may be trees."""
        trees = self.exact == "auto" and self._leaves > 1
        return "numeric" if trees else self.exact

    @property
    def drafter_options(self) -> LoadOptions:
        """Load options of a drafter.

        It serves as many conversations as the target, and reviews trees where the
        target does.
        """
        options = self.draft_options or replace(self.options, n_ctx=0, rpc="")
        if self._splits:
            threads = options.threads or max(1, usable_cores() // 4)
            chunk = max(_CHUNK, options.max_draft + 1)
            n_batch = min(options.n_batch, chunk)
            options = replace(options, threads=threads, n_batch=n_batch)
        sequences = self.options.sequences
        return replace(options, leaves=self._leaves, sequences=sequences)
