"""Heads draft what llama.cpp's server drafts with the same files.

The server comes with xllamacpp, which is not installed with edgecs: without it, nothing
is compared (`pip install xllamacpp`).

The server (2026.10.11549, common/speculative.cpp) drafts differently in two cases:

- It pairs the first token of a prompt with the last state of the request before it, a
  new server with zeros, as edgecs always does.
- From the third token of a draft on, heads of some architectures get the state of the
  first token of their call instead of the last one. See
  `test_mtp.test_states_of_output_rows_are_those_of_the_first_tokens`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecs.core.context import Tokens
from edgecs.core.draft import Drafter, LanguageModel
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import view
from edgecs.engines.llama.heads.mtp import MtpHead
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import Output
from edgecs.runtime.loader import OWN_HEAD, load, load_drafter
from tests import drafter_files as files

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("xllamacpp is not installed", allow_module_level=True)

TOKENS = 100
PROMPTS = [
    np.random.default_rng(i).integers(0, 250, 20 + 7 * i).tolist() for i in range(5)
]
OPTIONS = LoadOptions(
    n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0, kernels="llama", repack=False
)
_SERVER = """
import http.client, json, sys
import xllamacpp
model, draft, kind, depth, tokens, carried = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = model, 512, 1
params.n_gpu_layers, params.cache_ram_mib, params.verbosity = 0, 0, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
name = "COMMON_SPECULATIVE_TYPE_DRAFT_" + kind
params.speculative.types = [getattr(xllamacpp.common_speculative_type, name)]
drafting = params.speculative.draft
if draft:
    drafting.mparams.path = draft
drafting.n_gpu_layers, drafting.n_max = 0, int(depth)
drafting.n_min, drafting.p_min = 0, 0.0
drafting.cpuparams.n_threads = drafting.cpuparams_batch.n_threads = 1
found, server = [], None
for prompt in json.load(sys.stdin):
    if server is None or not carried:
        server = xllamacpp.Server(params)
        port = int(server.listening_address.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = {"prompt": prompt, "n_predict": int(tokens), "temperature": 0.0,
            "cache_prompt": False, "return_tokens": True}
    kinds = {"Content-Type": "application/json"}
    connection.request("POST", "/completion", json.dumps(body), kinds)
    reply = json.loads(connection.getresponse().read())
    found.append([reply["tokens"], reply["timings"].get("draft_n_accepted", 0)])
print(json.dumps(found))
"""


def noisy(wiring: files.Fixed, noise: dict[str, float], seed: int) -> files.Fixed:
    """A wiring with random numbers added to some matrices: it is often wrong."""
    random = np.random.default_rng(seed)

    def fixed(name: str, shape: tuple[int, ...]) -> files.Array | None:
        base = wiring(name, shape)
        for part, scale in noise.items():
            if name.endswith(part) and base is not None:
                return base + random.standard_normal(shape, np.float32) * scale
        return base

    return fixed


TARGET = {"attn_output.weight": 0.15, "ffn_down.weight": 0.1}


def eagle3(target: Path, head: Path) -> Path:
    files.target(target, fixed=noisy(files.bigram, TARGET, 1))
    spoilt = noisy(files.by_token, {"attn_output.weight": 250.0}, 2)
    return files.eagle3(head, fixed=spoilt, changes=files.BY_TOKEN)


def last_layer(target: Path, head: Path) -> Path:
    files.gemma4(target, fixed=noisy(files.bigram, TARGET, 1))
    spoilt = noisy(files.by_token, {"attn_output.weight": 250.0}, 2)
    layers = (4, 1, 2)  # the matrix of `by_token` takes the first one
    return files.eagle3(head, fixed=spoilt, changes=files.BY_TOKEN, layers=layers)


def mtp(target: Path, head: Path, heads: int = 1) -> Path:
    noise = {**TARGET, "eh_proj.weight": 0.25}
    files.with_heads(target, heads=heads, fixed=noisy(files.mtp_by_token, noise, 1))
    return OWN_HEAD


def three(target: Path, head: Path) -> Path:
    return mtp(target, head, heads=3)


def assistant(target: Path, head: Path) -> Path:
    files.gemma4(target, fixed=noisy(files.bigram, TARGET, 1))
    spoilt = noisy(files.assistant_by_token, {"pre_projection.weight": 0.3}, 2)
    return files.assistant(head, fixed=spoilt)


def dflash(target: Path, head: Path, markov: int = 0) -> Path:
    files.target(target, fixed=noisy(files.repeating, TARGET, 1))
    noise = {"attn_q.weight": 1.0, "attn_output.weight": 100.0}
    spoilt = noisy(files.by_features, noise, 2)
    return files.dflash(head, fixed=spoilt, changes=files.BY_FEATURES, markov=markov)


def dspark(target: Path, head: Path) -> Path:
    return dflash(target, head, markov=16)


Answers = list[tuple[list[int], int]]  # tokens, and how many drafted ones were accepted


def served(
    model: Path, head: Path, kind: str, depth: int, *, carried: bool = False
) -> Answers:
    """The server's answers. carried: whether one server gives them all."""
    draft = "" if head == OWN_HEAD else str(head)
    command = [sys.executable, "-c", _SERVER, str(model), draft, kind, str(depth)]
    done = subprocess.run(
        [*command, str(TOKENS), "carried" if carried else ""],
        input=json.dumps(PROMPTS),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return [(tokens, accepted) for tokens, accepted in found]


def ours(
    model: Path,
    head: Path,
    depth: int,
    ended: Callable[[LanguageModel, int], None] = lambda head, cells: None,
) -> Answers:
    """ended: called with the head and the number of the target's valid cells."""
    found = []
    with load(model, OPTIONS) as target, load_drafter(head, target, OPTIONS) as loaded:
        ends = target.model.vocabulary.ends
        drafter: Drafter = Cascade(
            loaded.model, StaticSchedule(), name=loaded.name, ends=ends
        )
        for prompt in PROMPTS:
            with target.session([drafter], depth) as session:
                stream = session.generate(prompt, max_tokens=TOKENS)
                tokens = [token.id for token in stream]
                found.append((tokens, session.stats.accepted))
                ended(loaded.model, len(prompt) + len(tokens) - 1)
    return found


@pytest.mark.parametrize(
    ("make", "kind", "depth"),
    [
        (eagle3, "EAGLE3", 1),
        (eagle3, "EAGLE3", 3),
        (last_layer, "EAGLE3", 3),
        (mtp, "MTP", 1),
        (mtp, "MTP", 3),
        (three, "MTP", 2),
        (assistant, "MTP", 3),
        (dflash, "DFLASH", 7),  # the block is as long as the draft
        (dspark, "DSPARK", 8),
    ],
)
def test_as_many_tokens_are_accepted(
    tmp_path: Path, make: Callable[[Path, Path], Path], kind: str, depth: int
):
    model = tmp_path / "target.gguf"
    head = make(model, tmp_path / "head.gguf")
    found = ours(model, head, depth)
    assert found == served(model, head, kind, depth)
    accepted = sum(count for _, count in found)
    assert 20 < accepted < len(PROMPTS) * TOKENS * depth / (depth + 1) - 20


def test_the_server_carries_a_state_into_the_next_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tmp_path / "target.gguf"
    mtp(model, model)
    theirs = served(model, OWN_HEAD, "MTP", 3, carried=True)
    assert ours(model, OWN_HEAD, 3) != theirs
    last: list[State] = []  # of the answer before
    read = MtpHead._read

    def noted(head: LanguageModel, cells: int) -> None:
        assert isinstance(head, MtpHead)
        rows = head.states._rows
        last[:] = [rows[(cells - 1) % len(rows)].copy()]

    def carrying(
        self: MtpHead, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        if last and not self._position:
            states[0] = last[0]
        return read(self, tokens, states, cancel)

    monkeypatch.setattr(MtpHead, "_read", carrying)
    assert ours(model, OWN_HEAD, 3, noted) == theirs


def test_the_server_takes_another_state_in_deep_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tmp_path / "target.gguf"
    three(model, model)
    theirs = served(model, OWN_HEAD, "MTP", 3)
    assert ours(model, OWN_HEAD, 3) != theirs
    read, step = MtpHead._read, MtpHead._step
    last: list[tuple[int, State]] = []  # the last committed token and its state

    def noting(
        self: MtpHead, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        last[:] = [(int(tokens[-1]), states[-1:])]
        return read(self, tokens, states, cancel)

    def of_the_first(self: MtpHead, token: int, state: State) -> Output:
        logits = step(self, token, state).logits.copy()
        tokens, states = zip(*last, *self._drafted, strict=True)
        begin = self._position - len(tokens)
        self._cells.drop(begin)
        ids = np.array(tokens, np.int32)
        self._cells.decode(ids, np.vstack(states), begin, output=True)
        rows = symbols().next(self._cells._context)
        return Output(logits, view(rows, 1, self._cells.width).copy())

    monkeypatch.setattr(MtpHead, "_read", noting)
    monkeypatch.setattr(MtpHead, "_step", of_the_first)
    assert ours(model, OWN_HEAD, 3) == theirs
