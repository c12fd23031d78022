"""`edgecs audit --compare-kernels`: edgecs's kernels against llama.cpp's, on texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecs.audit.fidelity import Fidelity, compare, logits
from edgecs.audit.report import Prompt
from edgecs.errors import ConfigError
from edgecs.runtime.loader import load
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import load_target
from edgecs.text.detokenizer import Tokenizer
from edgecs_bench.text_tables import aligned
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.shared import Interrupt

_OURS, _THEMSELVES = "edgecs's kernels", "llama.cpp without repacking"
Texts = Callable[[Tokenizer], Sequence[Prompt]]


@dataclass(frozen=True)
class KernelComparison:
    """How far edgecs's kernels differ from llama.cpp's, and llama.cpp from itself."""

    path: Path
    kernels: str
    found: dict[str, Fidelity]

    def lines(self) -> list[str]:
        """As lines to print."""
        ours = self.found[_OURS]
        kinds = (f"{n} {kind}" for kind, n in weight_types(self.path).items())
        lines = [
            f"{self.path.name}: {self.kernels} against llama.cpp's kernels, "
            f"{ours.tokens} tokens",
            f"weights: {', '.join(kinds)}",
        ]
        for name, one in self.found.items():
            change = f"{one.perplexity_ratio - 1:+.2%}"
            perplexities = f"{one.perplexity:.4f} over {one.other_perplexity:.4f}"
            rows = [
                ("the same best token", f"{one.agreement:.1%}"),
                ("difference of a logit", f"{one.largest:.3g} at most"),
                ("perplexity", f"{perplexities}, {change}"),
                ("divergence", f"{one.divergence:.2g} nats a token"),
            ]
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in aligned(rows, words=(0, 1))]
        return lines

    def fields(self) -> dict[str, object]:
        """As fields for --json."""
        names = {_OURS: "own", _THEMSELVES: "llama_not_repacked"}
        return {
            "model": self.path.name,
            "kernels": self.kernels,
            "weights": weight_types(self.path),
            **{
                names[name]: {**one._asdict(), "perplexity_ratio": one.perplexity_ratio}
                for name, one in self.found.items()
            },
        }


def compare_kernels(recipe: Recipe, call: Call, texts: Texts) -> KernelComparison:
    """Computes texts with both, and with llama.cpp without repacking as a yardstick.

    texts: given a tokenizer, the texts. Raises ConfigError where edgecs's kernels are
    not in use.
    """
    path, folders = call.find(replace(recipe, speculate=False)).model, call.folders
    with Interrupt() as cancel:
        opening = load_target(
            path, recipe.options, folders, call.reports, cancel=cancel
        )
        with opening as loaded:
            if loaded.model.kernels is None:
                raise ConfigError(
                    "llama.cpp's kernels would be compared with themselves "
                    f"({loaded.no_kernels or '--kernels llama'}): give --kernels own"
                )
            own = loaded.options
            given = [prompt.tokens for prompt in texts(loaded.model.vocabulary)]
        theirs = replace(own, kernels="llama")
        found = {}
        for name, options in (
            (_OURS, own),
            (_THEMSELVES, replace(theirs, repack=False)),
        ):
            call.say(f"computing {len(given)} texts with {name}")
            with (
                load(path, options, cancel=cancel, findings=folders.findings) as one,
                load(path, theirs, cancel=cancel, findings=folders.findings) as other,
            ):
                found[name] = compare(
                    given,
                    (logits(one.target, text) for text in given),
                    (logits(other.target, text) for text in given),
                )
    return KernelComparison(path, own.kernels, found)


def weight_types(path: Path) -> dict[str, int]:
    """Number of matrices of each type in a file."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    kinds = Counter(t.tensor_type.name for t in tensors if len(t.shape) > 1)
    return dict(kinds.most_common())
