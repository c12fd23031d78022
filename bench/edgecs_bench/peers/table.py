"""The runtimes that edgecs is compared with, and their configurations."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecs.errors import ConfigError

Config = Mapping[str, object]  # for the adapter; `draft`: the kind of drafter it needs
_ADAPTERS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Peer:
    """A runtime with its own process and virtual environment.

    requirements: pinned; empty: it runs in the environment of edgecs.
    """

    name: str
    requirements: tuple[str, ...]
    script: Path  # the adapter
    configurations: Mapping[str, Config]


# Smaller sizes than llama.cpp's defaults (12 and 48; 24, 48 and 64), which rarely match
# in an answer of a few hundred tokens.
_LLAMA_SERVER: dict[str, Config] = {
    "plain": {},
    "draft-simple": {"draft": "model", "type": "draft-simple"},
    "draft-mtp": {"draft": "mtp", "type": "draft-mtp"},
    "draft-mtp-3": {"draft": "mtp", "type": "draft-mtp", "n_max": 3},
    "draft-eagle3": {"draft": "eagle3", "type": "draft-eagle3"},
    "draft-eagle3-3": {"draft": "eagle3", "type": "draft-eagle3", "n_max": 3},
    "draft-dflash": {"draft": "dflash", "type": "draft-dflash"},
    "ngram-simple": {"type": "ngram-simple"},
    "ngram-simple-3-10": {"type": "ngram-simple", "size_n": 3, "size_m": 10},
    "ngram-map-k": {"type": "ngram-map-k"},
    "ngram-map-k-3-10": {"type": "ngram-map-k", "size_n": 3, "size_m": 10},
    "ngram-mod": {"type": "ngram-mod"},
    "ngram-mod-3-10": {"type": "ngram-mod", "n_match": 3, "n_min": 1, "n_max": 10},
}

PEERS = (
    Peer(
        "llama-cpp-python",
        (),
        _ADAPTERS / "llama_cpp_python.py",
        {
            "plain": {},
            "lookup-2": {"num_pred_tokens": 2},
            "lookup-10": {"num_pred_tokens": 10},
        },
    ),
    Peer(
        "xllamacpp",
        ("xllamacpp==2026.10.11549",),
        _ADAPTERS / "llama_server.py",
        _LLAMA_SERVER,
    ),
    Peer(
        "transformers",
        (
            "torch==2.13.0",
            "transformers==5.23.0",
            "accelerate==1.15.0",
            "gguf==0.19.0",
        ),
        _ADAPTERS / "transformers_torch.py",
        {
            "plain": {},
            "lookup-10": {"prompt_lookup_num_tokens": 10},
            "assisted": {"draft": "model"},
        },
    ),
    Peer(
        "openvino-genai",
        ("openvino-genai==2026.4.1.0",),
        _ADAPTERS / "openvino_pipeline.py",
        {
            "plain": {},
            "lookup-10": {"num_assistant_tokens": 10, "max_ngram_size": 2},
            "draft": {"draft": "model", "num_assistant_tokens": 5},
        },
    ),
    Peer(
        "onnxruntime-genai",
        (),  # nothing to install, because it cannot run
        _ADAPTERS / "onnxruntime_builder.py",
        {"plain": {}},
    ),
)


def resolve(
    names: Sequence[str], kinds: Container[str] = ()
) -> Iterator[tuple[Peer, str, Config]]:
    """The selected configurations, in the order of the table.

    A name is a peer, `peer/configuration`, or `all`. kinds: of the drafters there are;
    configurations that need another one are left out. Raises ConfigError for other
    names.
    """
    known = {"all", *(name for peer in PEERS for name in _names(peer))}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"there is no peer {unknown[0]}: give all, or some of "
            + ", ".join(peer.name for peer in PEERS)
        )
    return _chosen(frozenset(names), kinds)


def _names(peer: Peer) -> list[str]:
    return [peer.name, *(f"{peer.name}/{name}" for name in peer.configurations)]


def _chosen(
    names: frozenset[str], kinds: Container[str]
) -> Iterator[tuple[Peer, str, Config]]:
    for peer in PEERS:
        for name, config in peer.configurations.items():
            wanted = names & {"all", peer.name, f"{peer.name}/{name}"}
            if wanted and ("draft" not in config or config["draft"] in kinds):
                yield peer, name, config
