"""`generate` with drafters, seeds, samplers: one answer, and it can be had again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.hub.compatibility import vocabulary_hash, write_pieces
from edgecs.hub.drafter_manifest import DrafterManifest, write_drafter
from edgecs.testing.fakes import write_random_gguf
from tests.commands import generate, one_line
from tests.conftest import Outcome
from tests.families import FAMILIES
from tests.onnx_llama import write_onnx

Edgecs = Callable[..., Outcome]


@pytest.fixture(scope="module")
def other_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, the same vocabulary."""
    return write_random_gguf(tmp_path_factory.mktemp("other") / "other.gguf", seed=1)


def answer(edgecs: Edgecs, model: Path, *options: object) -> dict:
    fixed = ("-c", 512, "-p", "hello, hello", "-n", 60, "--json", "-q")
    outcome = edgecs("generate", "-m", model, *fixed, *options)
    assert outcome.code == 0, outcome.err
    report: dict = json.loads(outcome.out)
    return report


@pytest.mark.faults
@pytest.mark.parametrize("weight", [math.nan, math.inf])
@pytest.mark.parametrize("options", [("--k-matrix", "4,2;0,3"), (), ("--temp", 0)])
def test_a_drafter_without_numbers_is_parked(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, weight: float, options: tuple
):
    path = write_random_gguf(tmp_path / "spoilt.gguf", spoilt={"output": weight})
    chosen = () if "--k-matrix" in options else options
    plain = answer(edgecs, tiny_gguf, "--no-spec", "-s", 7, *chosen)
    report = answer(edgecs, tiny_gguf, "--draft", path, "-s", 7, *options)
    assert report["tokens"] == plain["tokens"]
    faults = report["speculative"]["faults"]
    assert set(faults) == {"spoilt"} or "--k-matrix" not in options
    assert all("no token a probability" in reason for reason in faults.values())


SAMPLERS = {
    "defaults": (),
    "no truncation": ("--top-k", 0, "--top-p", 1, "--min-p", 0),
    "penalties": ("--repeat-penalty", 1.3, "--presence-penalty", 0.5),
    "dry": ("--dry-multiplier", 2, "--dry-allowed-length", 1),
    "xtc": ("--xtc-probability", 0.5, "--xtc-threshold", 0.05),
    "bias": ("-l", "108+3", "-l", "22-inf"),
    "others": ("--typical", 0.6, "--top-nsigma", 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_gives_one_answer_whatever_drafts(
    edgecs: Edgecs, tiny_gguf: Path, other_gguf: Path, name: str
):
    fixed = ("-s", 7, *SAMPLERS[name])
    plain = answer(edgecs, tiny_gguf, "--no-spec", *fixed)
    good, bad = ("--draft", tiny_gguf), ("--draft", other_gguf)
    lenient = ("--k-matrix", "4,2,1;0,3,2;0,0,3", "--lenience", 3)
    for options in (
        ("--draft-max", 5, "--mag-min-match", 1),
        (*good, "--draft-max", 5),
        (*good, "--k-matrix", "5,3;0,4", "--mag-min-match", 1),
        (*bad, "--k-matrix", "2,0;0,0", "-td", 1),
        (*good, *bad, *lenient, "--mag-min-match", 1),
    ):
        report = answer(edgecs, tiny_gguf, *fixed, *options)
        assert report["tokens"] == plain["tokens"]
        assert report["sampling"] == {"temperature": 0.8, "seed": 7}
    block = report["speculative"]
    assert block["chain"] == ["target", "tiny", "other", "mag"]
    assert block["accepted"] > 0
    assert block["tested"] > block["accepted"]
    assert all(block["forwards"][name] > 0 for name in ("tiny", "other"))
    # All three have as many weights, so every forward costs the same.
    forwards = block["rounds"] + sum(block["forwards"].values())
    assert block["swi"] == round((block["accepted"] + block["rounds"]) / forwards, 4)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_drafter_that_goes_on_changes_no_token(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, temperature: float
):
    fixed = ("-s", 7, "--temp", temperature, "-t", 1)
    plain = answer(edgecs, tiny_gguf, "--no-spec", *fixed)
    trace = tmp_path / "trace.jsonl"
    drafts = ("--draft", tiny_gguf, "--overlap", "on", "--trace", trace)
    report = answer(edgecs, tiny_gguf, *fixed, *drafts)
    assert report["tokens"] == plain["tokens"]
    told = report["speculative"]["ahead"]
    assert told["made"] == told["used"] + told["dropped"]
    _, *rounds = map(json.loads, trace.read_text().splitlines())
    assert sum(one["made_ahead"] > 0 for one in rounds) == told["made"]
    assert sum(one["ahead"] > 0 for one in rounds) == told["used"]


def test_a_fixed_schedule_does_not_overlap(edgecs: Edgecs, tiny_gguf: Path):
    options = ("--draft", tiny_gguf, "--k-matrix", "3,0;0,0", "--overlap", "on")
    outcome = edgecs("generate", "-m", tiny_gguf, "-p", "a", *options)
    one_line(outcome, 2, "overlap is for the planner")


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("rule", ["chow", "v3"])
def test_a_cascade_rule_gives_one_answer_that_says_what_it_is(
    edgecs: Edgecs, tiny_gguf: Path, other_gguf: Path, rule: str, temperature: int
):
    fixed = ("-s", 7, "--temp", temperature, "--draft", other_gguf)
    plain = answer(edgecs, tiny_gguf, *fixed)
    assert plain["speculative"]["mark"] is None
    mixed = (*fixed, "--cascade-rule", rule, "--alpha", 1)
    said = []
    for options in ((), ("--no-spec",), ("--k-matrix", "3,2;0,2")):
        report = answer(edgecs, tiny_gguf, *mixed, *options)
        said.append(report["tokens"])
        assert report["speculative"]["mark"] == {
            "rule": f"cascade rule {rule}, alpha 1, other",
            "target_law": False,
            "target_tokens": False,
        }
    assert said[0] == said[1] == said[2] != plain["tokens"]
    if rule == "chow":  # with alpha 1 it is the small model's own answer
        own = answer(edgecs, other_gguf, *fixed[:4], "--no-spec")
        assert said[0] == own["tokens"]


def test_a_cascade_rule_is_named_wherever_an_answer_is_described(
    edgecs: Edgecs, tiny_gguf: Path, other_gguf: Path
):
    rule = ("--draft", other_gguf, "--cascade-rule", "v3", "--alpha", 0.5)
    fixed = ("-m", tiny_gguf, "-c", 512, *rule)
    outcome = edgecs("generate", *fixed, "-p", "hello", "-n", 9, "--explain")
    assert outcome.code == 0, outcome.err
    words = "NOT the target's answer (cascade rule v3, alpha 0.5, other)"
    assert outcome.err.count(words) == 2  # the legend, and the summary
    assert "context · speculation on · cascade rule v3, alpha 0.5" in outcome.err
    for command in (
        ("audit", *fixed),
        ("generate", *fixed, "-p", "a", "--compare", "--temp", 0),
        ("generate", *fixed, "-p", "a", "--log-answers", "x"),
    ):
        outcome = edgecs(*command)
        assert outcome.code == 2
        assert "--cascade-rule" in outcome.err


@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_ratios_give_other_tokens_and_say_so(
    edgecs: Edgecs, tiny_gguf: Path, other_gguf: Path, accept: str
):
    fixed = ("-s", 7, "--draft", other_gguf)
    plain = answer(edgecs, tiny_gguf, "-s", 7, "--no-spec")
    said = [answer(edgecs, tiny_gguf, *fixed, "--accept", accept) for _ in range(2)]
    assert said[0]["tokens"] == said[1]["tokens"] != plain["tokens"]
    assert said[0]["speculative"]["mark"] == {
        "rule": f"accept {accept}",
        "target_law": True,
        "target_tokens": False,
    }
    greedy = ("--temp", 0, *fixed, "--accept", accept)
    report = answer(edgecs, tiny_gguf, *greedy)
    assert report["speculative"]["mark"] is None
    assert report["tokens"] == answer(edgecs, tiny_gguf, "--temp", 0)["tokens"]
    outcome = edgecs("audit", "-m", tiny_gguf, "-c", 512, *fixed, "--accept", accept)
    assert outcome.code == 2
    assert f"with --accept {accept}" in outcome.err


def test_settings_change_the_answer(edgecs: Edgecs, tiny_gguf: Path):
    answers = [
        answer(edgecs, tiny_gguf, "-s", 7, *options)["tokens"]
        for options in [*SAMPLERS.values(), ("-s", 8), ("--temp", 0)]
    ]
    assert len({tuple(tokens) for tokens in answers}) == len(answers)
    assert 22 not in answer(edgecs, tiny_gguf, "-s", 7, *SAMPLERS["bias"])["tokens"]


def test_a_drawn_seed_is_printed_and_can_be_given(edgecs: Edgecs, tiny_gguf: Path):
    command = ("generate", "-m", tiny_gguf, "-c", 512, "-p", "hello", "-n", 50)
    first, second = edgecs(*command), edgecs(*command)
    (seed,) = re.findall(r" · seed (\d+)", first.err)
    assert edgecs(*command, "-s", seed).out == first.out != second.out
    said = edgecs(*command, "-s", seed, "-v").err
    assert f"sampling: temperature 0.8, seed {seed}" in said
    assert "sampling: greedy" in edgecs(*command, "--temp", 0, "-v").err


def test_the_start_lines_name_every_drafter(edgecs, tiny_gguf: Path, other_gguf: Path):
    drafts = ("--draft", other_gguf, "--draft", tiny_gguf, "--draft", tiny_gguf)
    command = ("generate", "-m", tiny_gguf, "-c", 256, "-p", "hello", "-n", 3, *drafts)
    lines = edgecs(*command, "-v").err.splitlines()
    (drafts,) = (line for line in lines if line.startswith("drafts: "))
    assert (
        "target <- other <- tiny <- tiny-2 <- mag <- recent <- bigram, planned"
        in drafts
    )
    drafters = [line.split(":")[0] for line in lines if line.startswith("drafter ")]
    assert drafters == ["drafter other", "drafter tiny", "drafter tiny-2"]


def test_a_drafter_of_another_vocabulary_is_refused(edgecs, tiny_gguf, tmp_path):
    other = write_random_gguf(tmp_path / "wide.gguf", vocab_size=300)
    outcome = edgecs("generate", "-m", tiny_gguf, "-p", "a", "--draft", other)
    one_line(outcome, 3, "wide.gguf cannot draft for tiny.gguf", "268", "<|begin|>")
    assert "filler12" in outcome.err


def test_a_drafter_that_is_no_model_is_refused(edgecs, tiny_gguf, tmp_path):
    command = ("generate", "-m", tiny_gguf, "-p", "a", "--draft")
    one_line(edgecs(*command, tmp_path), 3, "not an ONNX drafter", "drafter.toml")
    one_line(edgecs(*command, tmp_path / "x.gguf"), 3, "there is no file")
    one_line(edgecs(*command, "nobody-knows-this"), 3, "nobody-knows-this")


def test_chat_draws_too(edgecs, tiny_gguf, monkeypatch: pytest.MonkeyPatch):
    import io
    import sys

    said = []
    for options in (("-s", 3), ("-s", 3, "--draft", tiny_gguf), ("-s", 4)):
        stdin = io.TextIOWrapper(io.BytesIO(b"hello\nhello\n"))
        monkeypatch.setattr(sys, "stdin", stdin)
        fixed = ("-m", tiny_gguf, "-c", 256, "-n", 60, "-q")
        outcome = edgecs("chat", *fixed, *options)
        assert outcome.code == 0
        said.append(outcome.out)
    assert said[0] == said[1] != said[2]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["llama", "alpaca"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
        "tame": {"type": "boolean"},
    },
    "required": ["name", "legs", "tame"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_that_keeps_to_a_schema_is_the_same_with_drafts(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, temperature: float
):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    # A random model uses every blank that it may between two parts.
    fixed = ("--temp", temperature, "-s", 11, "-n", 400)
    plain = answer(edgecs, tiny_gguf, "--no-spec", "-jf", file, *fixed)
    value = json.loads(plain["text"])
    assert list(value) == ["name", "legs", "tame"]
    assert plain["finish_reason"] == "stop"
    for options in (
        ("--draft-max", 5, "--mag-min-match", 1),
        ("--draft", tiny_gguf, "--k-matrix", "4,2;0,2", "--mag-min-match", 1),
    ):
        schema = ("-j", json.dumps(SCHEMA))
        drafted = answer(edgecs, tiny_gguf, *schema, *fixed, *options)
        assert drafted["tokens"] == plain["tokens"]
        assert drafted["speculative"]["tested"] > 0
    free = answer(edgecs, tiny_gguf, *fixed)
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(free["text"])


def test_a_grammar_in_llama_cpps_notation(edgecs: Edgecs, tiny_gguf: Path, tmp_path):
    file = tmp_path / "answer.gbnf"
    file.write_text('root ::= ("yes" | "no") "."\n')
    report = answer(edgecs, tiny_gguf, "--grammar-file", file, "-s", 1)
    assert report["text"] in ("yes.", "no.")
    one_line(
        edgecs("generate", "-m", tiny_gguf, "-p", "a", "--grammar", "root ::= x"),
        2,
        "grammar",
        "x",
    )


@pytest.fixture(scope="module")
def onnx_folder(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in ONNX, with three quarters of its vocabulary."""
    folder = tmp_path_factory.mktemp("drafter")
    pieces = read_pieces(tiny_gguf)
    ids = np.random.default_rng(0).permutation(len(pieces))[: len(pieces) * 3 // 4]
    write_onnx(folder / "model.onnx", tiny_gguf, rows=ids.tolist())
    np.save(folder / "ids.npy", ids.astype(np.int32))
    write_pieces(folder / "vocabulary.json", pieces)
    manifest = DrafterManifest(
        name="tiny-onnx",
        description="random",
        license="none",
        file="model.onnx",
        cache="growing",
        window=64,
        vocabulary=vocabulary_hash(pieces),
        vocabulary_file="vocabulary.json",
        id_map="ids.npy",
        unknown=0,
        quantization="float32",
        folder=folder,
    )
    write_drafter(manifest)
    return folder


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_an_onnx_drafter_in_a_cascade(
    edgecs: Edgecs, tiny_gguf: Path, onnx_folder: Path, temperature: float
):
    fixed = ("-s", 7, "--temp", temperature)
    plain = answer(edgecs, tiny_gguf, "--no-spec", *fixed)
    one = ("--draft", onnx_folder, "--k-matrix", "5,2;0,3")
    two = ("--draft", tiny_gguf, *one[:2], "--k-matrix", "3,2,1;0,3,1;0,0,2")
    for options in (one, two):
        report = answer(
            edgecs, tiny_gguf, *fixed, *options, "--mag-min-match", 1, "--lenience", 2
        )
        assert report["tokens"] == plain["tokens"]
        block = report["speculative"]
        assert block["forwards"]["tiny-onnx"] > 0
        assert block["tested"] > block["accepted"] > 0
        assert block["swi"] is None  # nobody said how many parameters it has
    by_source = answer(edgecs, tiny_gguf, *fixed, *one)["speculative"]["by_level"]
    assert by_source["tiny-onnx"]["accepted"] > 10


def test_an_onnx_drafter_says_where_it_runs(edgecs, tiny_gguf, onnx_folder: Path):
    command = ("generate", "-m", tiny_gguf, "-c", 256, "-p", "hello", "-n", 3)
    err = edgecs(*command, "--draft", onnx_folder, "-v").err
    assert "drafter tiny-onnx: ONNX float32, CPUExecutionProvider, 1 thread" in err


def test_an_onnx_drafter_of_another_vocabulary(edgecs, tmp_path, onnx_folder: Path):
    other = write_random_gguf(tmp_path / "wide.gguf", vocab_size=300)
    outcome = edgecs("generate", "-m", other, "-p", "a", "--draft", onnx_folder)
    one_line(outcome, 3, "tiny-onnx cannot draft for wide.gguf", "268", "<|begin|>")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen35", "mag <- recent <- bigram; up to 15 rejected tokens cost nothing"),
        (
            "granite",
            "mag <- recent <- bigram; if likely, as a rejected draft costs another "
            "call",
        ),
    ],
)
def test_a_recurrent_model_says_what_drafts_and_why(
    edgecs: Edgecs, tmp_path: Path, name: str, why: str
):
    path = FAMILIES[name](tmp_path / f"{name}.gguf")
    told = generate(edgecs, path, "-n", 20, "-v").err
    assert f"{name} · CPU" in told
    assert f" · speculation on ({why})\n" in told
    assert re.search(r"\ncontext: [\d.]+ MiB for 512 tokens \(.*each state", told)
    plain = generate(edgecs, path, "-n", 20, "--no-spec")
    assert "speculation off" in plain.err
    assert plain.out == generate(edgecs, path, "-n", 20).out


@pytest.mark.parametrize("name", ["lfm2", "mamba2"])
@pytest.mark.parametrize("options", [(), ("--temp", 0, "--k-matrix", "3,2;0,2")])
def test_a_recurrent_model_drafts(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, name: str, options: tuple
):
    path = FAMILIES[name](tmp_path / f"{name}.gguf")
    chosen = options[:2]
    plain = answer(edgecs, tiny_gguf, "--no-spec", "-s", 7, *chosen)
    report = answer(edgecs, tiny_gguf, "--draft", path, "-s", 7, *options)
    assert report["tokens"] == plain["tokens"]
    assert not report["speculative"]["faults"]
    assert not options or report["speculative"]["tested"]


class TestShortContexts:
    """Drafters behind prompts that are longer than their contexts (-cd)."""

    PROMPT = " ".join(f"line {i} of the file is {i * i}" for i in range(12))

    def said(self, edgecs: Edgecs, model: Path, *options: object) -> Outcome:
        fixed = ("-c", 512, "-p", self.PROMPT, "-n", 60, "-s", 7)
        outcome = edgecs("generate", "-m", model, *fixed, *options)
        assert outcome.code == 0, outcome.err
        return outcome

    @pytest.mark.parametrize("size", [1, 2, 9, 64])
    @pytest.mark.parametrize(
        "options", [("--k-matrix", "4,2;0,3"), (), ("--accept", "block")]
    )
    def test_no_size_changes_the_answer(
        self, edgecs: Edgecs, tiny_gguf: Path, size: int, options: tuple
    ):
        drafted = ("--draft", tiny_gguf, *options)
        tokens = []
        for more in ("--no-spec",), (*drafted, "-cd", size):
            said = self.said(edgecs, tiny_gguf, *more, "--json", "-q", "--temp", 0)
            tokens.append(json.loads(said.out)["tokens"])
        assert tokens[0] == tokens[1]

    def test_what_is_read_is_told(
        self, edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
    ):
        trace = tmp_path / "trace.jsonl"
        drafted = ("--draft", tiny_gguf, "--k-matrix", "4,0;0,0", "-cd", 64)
        said = self.said(
            edgecs, tiny_gguf, *drafted, "-v", "--explain", "--trace", trace
        )
        assert "reads up to 64 tokens, of longer contexts an excerpt" in said.err
        found = re.search(
            r"tiny: reads an excerpt of (\d+) of the (\d+) tokens", said.err
        )
        assert found
        _, *rounds = map(json.loads, trace.read_text().splitlines())
        read = [record["excerpts"]["tiny"] for record in rounds]
        assert {*read} <= {*range(32, 65)}
        assert abs(int(found[1]) - read[-1]) <= 5
        assert int(found[2]) > rounds[-1]["position"] > 200
        plain = self.said(edgecs, tiny_gguf, "--trace", trace)
        assert "excerpt" not in plain.err
        _, *rounds = map(json.loads, trace.read_text().splitlines())
        assert [record["excerpts"] for record in rounds] == [{}] * len(rounds)

    @pytest.mark.parametrize("size", [1, 48, 4096])
    def test_an_onnx_decoder_reads_an_excerpt_if_it_is_given_a_size(
        self, edgecs: Edgecs, tiny_gguf: Path, onnx_folder: Path, size: int
    ):
        drafted = ("--draft", onnx_folder, "--k-matrix", "4,2;0,3", "--temp", 0)
        tokens = []
        for more in (("--no-spec", "--temp", 0), (*drafted, "-cd", size), drafted):
            said = self.said(edgecs, tiny_gguf, *more, "--json", "-v")
            tokens.append(json.loads(said.out)["tokens"])
            short = f"reads up to {min(size, 64)} tokens, of longer contexts"
            assert (short in said.err) == ("-cd" in more)
        assert tokens[0] == tokens[1] == tokens[2]

    def test_wrong_sizes_are_refused(self, edgecs: Edgecs, tiny_gguf: Path):
        for size in (-1, 2**40, "x"):
            outcome = generate(edgecs, tiny_gguf, "-cd", size)
            one_line(outcome, 2, "-cd/--ctx-size-draft must be a whole number")
        rule = ("--cascade-rule", "chow", "--alpha", 0.5)
        drafted = ("--draft", tiny_gguf, *rule, "-cd", 64)
        outcome = generate(edgecs, tiny_gguf, *drafted)
        one_line(outcome, 2, "leave its context size (--ctx-size-draft) out")
