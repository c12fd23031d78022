"""What an EAGLE-3 drafter computes before its training, from a head and from states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecs.errors import ConfigError, ModelError
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.shape import EagleShape, HeadShape
from edgecs_convert.distill.texts import Vocabulary
from tests.commands import one_line
from tests.convert.samples import Edgecs, needs_torch
from tests.drafter_files import target

pytestmark = needs_torch

WIDTH, TOKENS, ROWS = 256, 90, 80
HEAD = HeadShape(WIDTH, ROWS, 4, 2, 128)
EAGLE = EagleShape(WIDTH, ROWS, 8, 8, 128, layers=(1, 2, 3), alone=4)
IDS = np.arange(3, 3 + ROWS, dtype=np.int32)


def random_head() -> Any:
    """A head whose embeddings, states and attention all matter."""
    from edgecs_convert.distill.head import Head

    head = Head(HEAD, 3)
    table = np.random.default_rng(1).standard_normal((ROWS, WIDTH)) * 0.3
    head.begin_from(table.astype(np.float32), np.full(WIDTH, 1.3, np.float32))
    return head


def answers(count: int) -> list[Sample]:
    """Random answers with states; as in models, some channels are nearly constant."""
    draw = np.random.default_rng(5)
    found = []
    for number in range(count):
        states = draw.standard_normal((39, 3 * WIDTH)) * 3
        states[:, ::16] += 20
        ids = draw.integers(3, 3 + ROWS, (30, 8)).astype(np.int32)
        logits = -np.sort(draw.exponential(size=(30, 8))).astype(np.float16)
        tokens = draw.integers(3, 3 + ROWS, 40).astype(np.int32)
        found.append(
            Sample(number, 0.0, tokens, 10, ids, logits, states.astype(np.float16))
        )
    return found


def begun(
    monkeypatch: pytest.MonkeyPatch, head: Any, embeddings: NDArray[np.float16]
) -> Any:
    """A drafter that begins as a head, with the last layer's states as they are."""
    from edgecs_convert.distill import eagle_start
    from edgecs_convert.distill.eagle import Eagle

    monkeypatch.setattr(eagle_start, "_STEPS", 0)
    eagle = Eagle(EAGLE, embeddings)
    weights = head.arrays()
    weights["output"] = weights["table"][:-1]
    given = eagle_start.Begun(weights["output"], weights["norm"], {}, weights)
    vocabulary = Vocabulary(IDS, TOKENS)
    eagle_start.begin(eagle, given, answers(12), vocabulary, Recipe(length=64))
    return eagle


@pytest.mark.parametrize("broken", [None, "value", "query"])
def test_it_says_what_the_head_says(
    monkeypatch: pytest.MonkeyPatch, broken: str | None
):
    """The rows of the first two passes; without its own token they are others."""
    import torch

    head = random_head()
    table = np.zeros((TOKENS, WIDTH), dtype=np.float16)
    table[IDS] = head.table[:-1].detach().numpy()
    eagle = begun(monkeypatch, head, table)
    own = EAGLE.wide * EAGLE.size
    with torch.no_grad():
        if broken is not None:
            eagle.get_parameter(broken)[:, own:] = 0
        one = answers(13)[-1]
        states = torch.from_numpy(one.states.astype(np.float32))[None]
        ids = torch.from_numpy(one.tokens[None, 1:].astype(np.int64))
        last = head.normed(states[..., -WIDTH:], head.norm)
        wanted = [head.logits(x) for x in head(ids - IDS[0], last, 2)]
        found = [eagle.logits(x) for x in eagle(ids, states, 2)]
    alike = [
        np.corrcoef(ours[0, 2:].ravel(), theirs[0, 2:].ravel())[0, 1]
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    if broken is None:
        assert min(alike) > 0.9, alike
    else:
        assert min(alike) < 0.85, alike


def test_the_state_that_chose_the_next_token_is_found_in_those_of_layers():
    """The answers follow from the middle layer, which is not what it begins with."""
    import torch

    from edgecs_convert.distill.eagle import Eagle
    from edgecs_convert.distill.eagle_start import Begun, begin

    draw = np.random.default_rng(2)
    output = draw.standard_normal((ROWS, WIDTH)).astype(np.float32)
    made = []
    for one in answers(40):
        rows = draw.integers(0, ROWS, len(one.states))
        states = one.states.astype(np.float32)
        states[:, WIDTH : 2 * WIDTH] = output[rows]
        chosen = rows[one.start - 1 :]
        ids = np.repeat(IDS[chosen][:, None], 8, 1)
        ids[:, 1:] = IDS[(chosen[:, None] + np.arange(1, 8)) % ROWS]
        logits = np.tile(np.float16([9, *[-9] * 7]), (len(ids), 1))
        made.append(
            one._replace(
                top_ids=ids, top_logits=logits, states=states.astype(np.float16)
            )
        )
    eagle = Eagle(EAGLE, np.zeros((TOKENS, WIDTH), np.float16))
    given = Begun(output, np.ones(WIDTH, np.float32), {})
    begin(eagle, given, made[:-8], Vocabulary(IDS, TOKENS), Recipe(length=64))
    hits = []
    with torch.no_grad():
        for one in made[-8:]:
            states = torch.from_numpy(one.states[one.start - 1 :].astype(np.float32))
            said = eagle.logits(eagle.fused(states)).argmax(-1).numpy()
            hits += (IDS[said] == one.top_ids[:, 0]).tolist()
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("int8", [False, True])
def test_the_weights_of_a_head_are_read_back(tmp_path: Path, int8: bool):
    import onnx

    from edgecs_convert.distill.graph import build
    from edgecs_convert.distill.head_weights import _named

    weights = random_head().arrays()
    graph = build(HEAD, weights, int8=int8).graph
    found = _named([onnx.numpy_helper.to_array(one) for one in graph.initializer])
    assert found is not None
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        step = np.abs(weight).max() / 127 if int8 else 1e-6
        assert np.allclose(found[name], weight, atol=step), name


@pytest.mark.filterwarnings("ignore")
def test_a_head_of_the_same_model_is_begun_with(edgecs: Edgecs, tmp_path: Path):
    """From the command line, with the name of the head in the file's figures."""
    import gguf

    model = target(tmp_path / "model.gguf", "llama", layers=6)
    common = ("-m", model, "-c", 256, "--tokens", 1000, "--answer", 16)
    common = (*common, "--parallel", 8, "--rows", 120, "--epochs", 0.3, "-q")
    common = (*common, "--work", tmp_path / "work")
    head, made = tmp_path / "head", tmp_path / "made.gguf"
    assert edgecs("distill", *common, "-o", head).code == 0
    asked = (*common, "--kind", "eagle3", "-o", made, "--begin-with", head)
    outcome = edgecs("distill", *asked)
    assert outcome.code == 0, outcome.err
    field: Any = gguf.GGUFReader(made).get_field("edgecs.made")
    assert '"began": "head"' in field.contents()
    asked = ("-m", model, "-p", "hi", "-n", 20, "-q", "--temp", 0)
    plain = edgecs("generate", *asked, "--no-spec")
    drafted = edgecs("generate", *asked, "--draft", made)
    assert drafted.out == plain.out


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--begin-with", "nowhere"), 3, "there is no folder nowhere"),
        (
            ("--begin-with", "smollm2-135m-instruct-head"),
            3,
            "smollm2-135m-instruct-head cannot draft for model.gguf",
        ),
        (
            ("--begin-with", "x", "--kind", "head"),
            2,
            "--begin-with is for EAGLE-3 drafters",
        ),
    ],
)
def test_heads_that_cannot_be_begun_with(
    edgecs: Edgecs, tmp_path: Path, options: tuple[object, ...], code: int, says: str
):
    model = target(tmp_path / "model.gguf", "llama", layers=6)
    kind = () if "--kind" in options else ("--kind", "eagle3")
    asked = ("-m", model, "-q", "--work", tmp_path / "work", *kind, *options)
    one_line(edgecs("distill", *asked), code, says)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "another graph"])
def test_a_damaged_graph_is_refused(tmp_path: Path, damage: str):
    import shutil

    from edgecs.calibrate.bundled_drafters import all_bundled
    from edgecs_convert.distill.head_weights import read_head

    folder = tmp_path / "head"
    shutil.copytree(all_bundled()["smollm2-135m-instruct-head"], folder)
    path = folder / "head.onnx"
    whole = path.read_bytes()
    if damage == "another graph":
        import onnx

        graph = onnx.load(path)
        del graph.graph.initializer[3]
        onnx.save(graph, path)
    else:
        path.write_bytes({"cut": whole[:5000], "text": b"head", "empty": b""}[damage])
    with pytest.raises((ModelError, ConfigError), match="head"):
        read_head(folder)
