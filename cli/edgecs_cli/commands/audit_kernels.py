"""`edgecs audit --compare-kernels`: edgecs's kernels beside llama.cpp's, on texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecs.audit.fidelity import Fidelity, compare, logits
from edgecs.audit.report import Prompt
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.runtime.loader import load
from edgecs.text.detokenizer import Tokenizer
from edgecs_cli.console import echo, say
from edgecs_cli.loading.exact import load_target
from edgecs_cli.loading.files import find_models
from edgecs_cli.options.shared import Interrupt, findings

_OURS, _THEMSELVES = "edgecs's kernels", "llama.cpp without repacking"
Texts = Callable[[Tokenizer], Sequence[Prompt]]


def compare_kernels(values: dict[str, Any], texts: Texts) -> None:
    """Says how far both are apart; and, as a yardstick, llama.cpp from itself.

    texts: what is read, given a tokenizer. Raises ConfigError where llama.cpp would be
    compared with llama.cpp.
    """
    path, _ = find_models(values["model"], (), offline=values["offline"])
    interrupt = Interrupt()
    with interrupt as cancel:
        with load_target(path, values, cancel) as loaded:
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
            say(f"reading {len(given)} texts with {name}", quiet=values["quiet"])
            with (
                load(path, options, cancel=cancel, findings=findings()) as one,
                load(path, theirs, cancel=cancel, findings=findings()) as other,
            ):
                found[name] = compare(
                    given,
                    (logits(one.target, text) for text in given),
                    (logits(other.target, text) for text in given),
                )
    if values["as_json"]:
        echo(json.dumps(_data(path, own, found)))
        return
    for line in _lines(path, own, found):
        echo(line)


def _lines(path: Path, own: LoadOptions, found: dict[str, Fidelity]) -> list[str]:
    ours = found[_OURS]
    kinds = (f"{n} {kind}" for kind, n in weight_types(path).items())
    lines = [
        f"{path.name}: {own.kernels} beside llama.cpp's kernels, {ours.tokens} tokens",
        f"weights: {', '.join(kinds)}",
    ]
    for name, one in found.items():
        lines += [
            f"{name}:",
            f"  the same best token   {one.agreement:.1%}",
            f"  difference of a logit {one.largest:.3g} at most",
            f"  perplexity            {one.perplexity:.4f} over "
            f"{one.other_perplexity:.4f}, {one.perplexity_ratio - 1:+.2%}",
            f"  divergence            {one.divergence:.2g} nats a token",
        ]
    return lines


def _data(
    path: Path, own: LoadOptions, found: dict[str, Fidelity]
) -> dict[str, object]:
    names = {_OURS: "own", _THEMSELVES: "llama_not_repacked"}
    return {
        "model": path.name,
        "kernels": own.kernels,
        "weights": weight_types(path),
        **{
            names[name]: {**one._asdict(), "perplexity_ratio": one.perplexity_ratio}
            for name, one in found.items()
        },
    }


def weight_types(path: Path) -> dict[str, int]:
    """How many matrices a file has of each type."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    kinds = Counter(t.tensor_type.name for t in tensors if len(t.shape) > 1)
    return dict(kinds.most_common())
