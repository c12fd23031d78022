"""Other runtimes with the same model and prompts, each in its own process.

for peer, name, config in resolve(["all"], ["model"]):
    with PeerProcess(peer, config, model=model, ...) as process:
        process.answer(ids, text, n)
"""

from edgecs_bench.peers.failure import PeerFailed
from edgecs_bench.peers.process import PeerAnswer, PeerProcess
from edgecs_bench.peers.table import PEERS, Config, Peer, resolve
from edgecs_bench.peers.venvs import venv_for

__all__ = [
    "PEERS",
    "Config",
    "Peer",
    "PeerAnswer",
    "PeerFailed",
    "PeerProcess",
    "resolve",
    "venv_for",
]
