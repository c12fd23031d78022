"""An audit finds out a model whose rows depend on the width, and clears one without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.audit.report import NO_CLASS, Prompt, Report
from edgecs.audit.runner import FORCED, Subject, audit
from edgecs.calibrate.probe import QUICK, classify
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.draft import Request, Rows
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.decoding.static_schedule import Schedule, StaticSchedule
from edgecs.decoding.tiers import Exact
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.errors import BrokenPromise, Cancelled, ConfigError
from edgecs.sampling.chain import always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import ByteTokenizer, CachingModel, Endless, ScriptedDrafter
from edgecs_cli.commands.audit_prompts import built_in
from tests.commands import one_line
from tests.conftest import Outcome, interrupt_at

Edgecs = Callable[..., Outcome]
VOCAB = 5


class Wavering(CachingModel):
    """Some widths change the rows of calls that begin with `since` cells or more."""

    def __init__(self, noisy: Iterable[int] = (), *, since: int = 0, n_ctx: int = 600):
        super().__init__(VOCAB, n_ctx=n_ctx)
        self.noisy, self.since = frozenset(noisy), since

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        width = 1 + len(request.draft)
        if width not in self.noisy or len(request.context) <= self.since:
            return rows
        return Rows(np.roll(rows.logits, 1, axis=1), rows.fed)  # never the same choice


def copying() -> Schedule:
    return StaticSchedule([MaxGram()], [3])


def prompt(size: int, name: str = "p") -> Prompt:
    tokens = np.random.default_rng(size).integers(0, VOCAB, size, dtype=np.int32)
    return Prompt(name, tokens)


def promising(*starts: int, exact: Exact = "strict") -> Limits:
    """Limits that take every quick width for exact in the ranges from `starts` on."""
    found = Finding(frozenset(QUICK), frozenset())
    every = dict.fromkeys(starts or (0, 256, 512), found)
    return Limits(Classes(every, dict.fromkeys((256, 512, 1024), found)), exact)


def examine(model: CachingModel, limits: Limits, *prompts: Prompt) -> Report:
    subject = Subject(model, Endless(), limits, max_tokens=40)
    return audit(subject, prompts or [prompt(9)], copying)


class Branching(Wavering):
    """It takes trees; `spoilt` rows of a tree are wrong after its first leaf."""

    def __init__(self, *, spoilt: bool = False) -> None:
        super().__init__()
        self.max_leaves, self.spoilt, self.branched = 4, spoilt, 0

    def rows(self, request: Request) -> Rows:
        rows, draft = super().rows(request), request.draft
        if draft.is_chain:
            return rows
        self.branched += 1
        assert len(draft.leaves) <= self.max_leaves
        if not self.spoilt:
            return rows
        logits = rows.logits.copy()
        logits[-1] = np.roll(logits[-1], 1)
        return Rows(logits, rows.fed)


@pytest.mark.parametrize("spoilt", [False, True])
def test_trees_are_forced_where_drafts_may_be_trees(spoilt: bool):
    model = Branching(spoilt=spoilt)
    report = examine(model, Limits(), prompt(9), prompt(20, "q"))
    names = [run.name for run in report.runs]
    assert names == [
        "as generate",
        "mag, every width",
        "half wrong, every width",
        "trees, every width",
    ]
    assert model.branched > 10
    for run in report.runs:
        assert bool(run.forks) == (spoilt and run.drafter == "trees")
    assert spoilt or report.runs[-1].proves


noisy_widths = st.sets(st.sampled_from(QUICK))


@given(noisy=noisy_widths, size=st.integers(1, 60))
@settings(max_examples=15)
def test_widths_that_change_rows_are_found_out(noisy: set[int], size: int):
    report = examine(Wavering(noisy), promising(), prompt(size))
    names = ["as generate", "mag, every width", "half wrong, every width"]
    assert [run.name for run in report.runs] == names
    half = report.runs[-1]
    assert bool(half.forks) == bool(noisy)
    if not noisy:
        assert half.proves
        assert set(half.widths) >= set(QUICK)  # each had its turn
    assert {fork.width for fork in report.forks} <= noisy
    assert report.broken == report.forks
    assert report.summary().startswith("NOT" if noisy else "identical: 3 of 3")
    if noisy:
        with pytest.raises(BrokenPromise, match=r"strict is broken in \d+ answers"):
            report.check()
    else:
        report.check()


@given(noisy=noisy_widths, since=st.sampled_from([0, 256, 512]))
@settings(max_examples=15)
def test_the_classes_that_a_probe_finds_keep_their_promise(noisy: set[int], since: int):
    model, classes = Wavering(noisy, since=since), Classes()
    classify(model, classes, QUICK)
    ranges = {9: 0, 245: 0, 500: 256}  # where those of the prompts begin
    prompts = [prompt(size, str(size)) for size in ranges]
    report = examine(model, Limits(classes, "strict"), *prompts)
    assert report.forks == []
    for plain, start in zip(report.prompts, ranges.values(), strict=True):
        assert set(plain.widths) == set(QUICK) - (noisy if start >= since else set())
    assert report.tokens == 40 * report.answers
    assert (NO_CLASS in report.summary()) == (noisy == set(QUICK) and since == 0)


def test_a_fork_says_where_it_is_and_how_near_the_choice_was():
    model, asked = Wavering({4}), prompt(9)
    report = examine(model, promising(), asked)
    said = model.greedy(asked.tokens, 40)
    assert [plain.tokens for plain in report.prompts] == [said]
    assert report.forks
    for fork in report.forks:
        before = [*asked.tokens.tolist(), *said[: fork.token]]
        assert (fork.prompt, fork.context) == ("p", len(before))
        assert (fork.width, fork.tier) == (4, "strict")
        assert fork.plain == said[fork.token] != fork.said
        assert fork.gap == greedy.margin(model.law(before), np.array(before))


def test_forks_where_nothing_was_promised_break_nothing():
    report = examine(Wavering({2, 3, 4}), promising(exact="numeric"))
    assert report.forks
    assert report.broken == []
    report.check()
    ((tier, (forks, tokens)),) = report.rates().items()
    assert (tier, forks, tokens) == ("numeric", len(report.forks), report.tokens)
    assert report.tokens < 40 * report.answers  # not compared beyond the first fork
    assert "0 of them under strict" in report.summary()


@pytest.mark.parametrize(("size", "broken"), [(250, False), (260, True)])
def test_strict_promises_nothing_for_a_cache_with_other_bits(size: int, broken: bool):
    limits = promising(exact="auto")
    limits = Limits(limits.classes, "auto", keeps=lambda _, depth: float(depth >= 256))
    assert [limits.tier(depth) for depth in (255, 256)] == ["numeric", "strict"]
    report = examine(Wavering(QUICK, since=256), limits, prompt(size))
    assert report.forks
    assert {fork.tier for fork in report.forks} == {"strict"}
    assert {fork.broken for fork in report.forks} == {broken}
    assert set(report.rates()) == ({"strict"} if broken else {"strict", "numeric"})


def test_an_answer_that_ends_early_is_a_fork():
    model, tokenizer, asked = Wavering(), Endless(), prompt(9)
    said = model.greedy(asked.tokens, 40)

    def planned() -> Schedule:
        tokenizer.ends = frozenset({said[-1]})
        return StaticSchedule()

    subject = Subject(model, tokenizer, promising(256), max_tokens=40)
    (fork,) = audit(subject, [asked], planned).forks
    assert fork.token == said.index(said[-1]) + 1
    assert fork.plain == said[fork.token]
    assert (fork.said, fork.width) == (None, 1)


@pytest.mark.parametrize(
    ("exact", "starts", "depth", "widths"),
    [
        ("strict", (0,), 9, QUICK),
        ("strict", (0,), 255, QUICK),
        ("strict", (0,), 256, ()),
        ("strict", (256,), 9, ()),
        ("numeric", (), 9, FORCED),
        ("auto", (), 9, FORCED),
    ],
)
def test_widths_are_those_of_the_class_where_the_prompt_ends(
    exact: Exact, starts: tuple[int, ...], depth: int, widths: tuple[int, ...]
):
    model, limits = Wavering(), promising(*starts, exact=exact)
    limits.classes.crossing.clear()  # what can cross a border is seen round by round
    subject = Subject(model, Endless(), limits)
    assert subject.widths(depth) == list(widths)
    model.max_draft = 3
    assert subject.widths(depth) == [width for width in widths if width <= 4]


def test_prompts_without_a_class_take_no_part_in_forced_runs():
    report = examine(Wavering(), promising(0), prompt(9, "a"), prompt(300, "b"))
    assert report.no_class == ["b"]
    assert [run.answers for run in report.runs] == [2, 1, 1]
    assert NO_CLASS not in report.summary()
    alone = examine(Wavering(), promising(0), prompt(300, "b"))
    assert [(run.name, run.proves) for run in alone.runs] == [("as generate", False)]
    assert alone.runs[0].widths == {1: 39}
    assert alone.summary().startswith("identical: 1 of 1 answers, 40 tokens")
    assert NO_CLASS in alone.summary()


def test_a_model_that_cannot_forget_decodes_plainly():
    model = Wavering()
    model.rewindable = False
    report = examine(model, Limits())
    assert report.no_class == ["p"]
    assert report.why == "this model cannot remove rejected tokens"
    assert [run.widths for run in report.runs] == [{1: 39}]


def test_drafts_that_are_always_right_prove_nothing():
    model, asked = Wavering(), prompt(9)
    script = [*asked.tokens.tolist(), *model.greedy(asked.tokens, 40)]
    subject = Subject(model, Endless(), promising(256), max_tokens=40)
    report = audit(
        subject, [asked], lambda: StaticSchedule([ScriptedDrafter(script)], [3])
    )
    (run,) = report.runs
    assert (run.accepted, run.proves) == (0, False)  # strict allowed no draft at all
    free = Subject(model, Endless(), Limits(), max_tokens=40)
    run = audit(
        free, [asked], lambda: StaticSchedule([ScriptedDrafter(script)], [3])
    ).runs[0]
    assert run.accepted > 0 == run.rejected
    assert not run.proves


@pytest.mark.parametrize("seed", range(3))
def test_sampled_answers_and_the_planner_are_audited_too(seed: int):
    model = Wavering()
    choose = chooser(Sampling(0.9, top_k=4, seed=seed), VOCAB)
    speculation = SpeculationProfile(model, exact="numeric")
    speculation.prepare(1.0)
    planner = speculation.planner()
    subject = Subject(model, Endless(), speculation.limits, always(choose), 60)
    report = audit(subject, [prompt(20)], lambda: planner)
    assert report.prompts[0].tokens == model.alone(prompt(20).tokens, 60, choose)
    assert report.forks == []
    assert all(run.proves for run in report.runs if run.drafter == "half wrong")


def test_prompts_that_leave_no_room_are_skipped():
    model = Wavering(n_ctx=50)
    report = examine(model, Limits(), prompt(9, "a"), prompt(50, "b"), prompt(49, "c"))
    assert [skipped.id for skipped in report.skipped] == ["b"]
    assert [plain.prompt.id for plain in report.prompts] == ["a", "c"]
    with pytest.raises(ConfigError, match="context of 50 tokens: give shorter"):
        examine(model, Limits(), prompt(50))


def test_every_answer_starts_from_an_empty_cache():
    class Counting(Wavering):
        starts = 0

        def rows(self, request: Request) -> Rows:
            self.starts += not self.cells
            return super().rows(request)

    model = Counting()
    report = examine(model, promising(), prompt(9, "a"), prompt(9, "b"))
    assert model.starts == report.answers + 2


def test_a_request_to_stop_ends_the_audit():
    class Stopping(Wavering):
        calls = 0

        def rows(self, request: Request) -> Rows:
            self.calls += 1
            if self.calls == 100:
                self.cancel.set()
            return super().rows(request)

    model = Stopping()
    with pytest.raises(Cancelled, match="stopped during the audit"):
        examine(model, Limits())
    assert model.calls == 100
    with model.hold():  # nobody holds it any more
        pass


def test_the_built_in_prompts_end_just_before_the_borders():
    prompts = built_in(ByteTokenizer().encode)
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 8
    sizes = [prompt.tokens.size for prompt in prompts[-3:]]
    for size, most in zip(sizes, (240, 496, 720), strict=True):
        assert most - 20 < size <= most  # the next word would be too long
    assert max(prompt.tokens.size for prompt in prompts) > 600


FEW = ("-c", 300, "-t", 1, "--limit", 2, "-n", 12)
STRICT = ("--exact", "strict", "-ctk", "f16", "-ctv", "f16")  # no other cache is tried


def test_people_get_tables_and_a_last_line(edgecs: Edgecs, tiny_gguf: Path):
    outcome = edgecs("audit", "-m", tiny_gguf, *FEW, "--exact", "numeric")
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0].split()[:4] == ["prompt", "tokens", "answer", "tier"]
    assert [line.split()[0] for line in lines[1:3]] == ["question", "list"]
    assert lines[-1] == "identical: 6 of 6 answers, 72 tokens (numeric)"
    assert any(line.startswith("half wrong, every width") for line in lines)
    assert "sampling: greedy" in outcome.err.splitlines()
    assert "mag, every width: 2 of 2 identical" in outcome.err


def test_programs_get_one_object(edgecs: Edgecs, tiny_gguf: Path):
    command = ("audit", "-m", tiny_gguf, *FEW, "-q", "--json", "-l", "22-inf")
    outcome = edgecs(*command, "--temp", 0.8, "-s", 3)
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(outcome.out, parse_constant=pytest.fail)
    assert report["sampling"]["seed"] == 3
    assert report["sampling"]["logit_bias"] == [[22, "-inf"]]
    assert report["chain"] == ["target", "mag", "recent", "bigram"]
    assert report["options"]["n_ctx"] == 300
    assert report["classes"]["inside"]
    assert (report["identical"], report["strict_broken"]) == (True, False)
    runs = report["runs"]
    assert [run["forced"] for run in runs] == [False, True, True]
    for run in runs:
        assert (run["answers"], run["identical"], run["tokens"]) == (2, 2, 24)
        rounds = sum(run["rounds_by_width"].values())
        assert rounds + run["accepted"] == 24 - 2  # the first ones come with the prompt
    again = json.loads(edgecs(*command, "--temp", 0.8, "-s", 3).out)
    assert again["prompts"] == report["prompts"]
    by_default = json.loads(edgecs(*command).out)
    assert by_default["sampling"]["temperature"] == 0
    assert by_default["prompts"] != report["prompts"]


def test_no_class_is_said_and_is_no_failure(edgecs: Edgecs, tiny_gguf: Path):
    llama = ("--kernels", "llama")
    outcome = edgecs("audit", "-m", tiny_gguf, *FEW, *STRICT, "-q", *llama)
    assert outcome.code == 0, outcome
    assert f"{NO_CLASS} for question, list: no probed width" in outcome.out
    assert "as generate proves nothing: nothing was drafted" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("identical: 2 of 2 answers")


def lie(cache: Path) -> None:
    """The profile says that a few widths are exact; the tiny model has none."""
    (file,) = (cache.parent / "profiles").glob("*.json")
    profile = json.loads(file.read_text())
    same = {"same": [2, 3, 4], "other": []}
    profile["classes"] = {"inside": {"0": same}, "crossing": {"256": same}}
    file.write_text(json.dumps(profile))


def waver(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Rows of calls of one width are turned around."""
    score = LlamaLM.score

    def wavering(self: LlamaLM, requests: Sequence[Request]) -> list[Rows]:
        (rows,) = score(self, requests)
        wavers = 1 + len(requests[0].draft) == width
        return [Rows(-rows.logits, rows.fed) if wavers else rows]

    monkeypatch.setattr(LlamaLM, "score", wavering)


def test_a_broken_promise_has_an_exit_code(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    command = ("audit", "-m", tiny_gguf, *FEW, "-c", 256, *STRICT, "-q")
    assert edgecs(*command).code == 0
    lie(cache)
    kept = edgecs(*command)
    assert kept.code == 0, kept  # other bits, but the same tokens
    assert "2 3 4" in kept.out
    waver(monkeypatch, 3)
    outcome = edgecs(*command)
    assert outcome.code == 5
    (said,) = outcome.err.splitlines()
    assert "edgecs audit: strict is broken in" in said
    assert "in a round of width 3: measure the model again (edgecs tune)" in said
    assert outcome.out.splitlines()[-1].startswith("NOT identical:")
    assert "forks per 1,000 tokens: strict" in outcome.out
    outcome = edgecs(*command, "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, report["strict_broken"]) == (5, True)
    forks = [fork for run in report["runs"] for fork in run["forks"]]
    assert {fork["width"] for fork in forks} == {3}


def test_forks_without_a_promise_are_shown(edgecs, tiny_gguf, monkeypatch):
    command = ("audit", "-m", tiny_gguf, *FEW, "--exact", "numeric", "-q")
    assert edgecs(*command).code == 0  # costs are known from here on
    waver(monkeypatch, 4)
    outcome = edgecs(*command)
    assert outcome.code == 0, outcome
    assert "0 of them under strict (numeric)" in outcome.out.splitlines()[-1]
    rows = [line for line in outcome.out.splitlines() if "  numeric  " in line]
    assert any("half wrong, every width" in row for row in rows)


def test_prompts_from_a_file(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    lines = ['{"question_id": 81, "turns": ["hello hello", "more"]}', ""]
    lines += ['{"task_id": "t/1", "prompt": "abab"}', '{"text": "' + "x" * 400 + '"}']
    file.write_text("\n".join(lines))
    command = ("audit", "-m", tiny_gguf, "-c", 300, "-t", 1, "-n", 4, "-q", "--json")
    report = json.loads(edgecs(*command, "--prompts", file).out)
    sizes = {given["id"]: given["tokens"] for given in report["prompts"]}
    assert sizes == {"81": 15, "t/1": 8}  # with BOS and the three of the template
    assert report["skipped"] == [{"id": "line 4", "tokens": 404}]
    limited = json.loads(edgecs(*command, "--prompts", file, "--limit", 1).out)
    assert limited["prompts"] == report["prompts"][:1]


def test_drafters_take_part(edgecs: Edgecs, tiny_gguf: Path):
    command = ("audit", "-m", tiny_gguf, *FEW, "--exact", "numeric", "-q", "--json")
    for options, schedule, more in (
        (("--k-matrix", "3,2;0,2"), "K 3,2", []),
        ((), "planned round by round", ["recent", "bigram"]),
    ):
        report = json.loads(edgecs(*command, "--draft", tiny_gguf, *options).out)
        assert report["chain"] == ["target", "tiny", "mag", *more]
        assert report["schedule"] == schedule
        assert report["identical"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["prompts.jsonl cannot be read: No such file"]),
        (b"", ["has no prompts", "one JSON object a line"]),
        (b"\n \n", ["has no prompts"]),
        (bytes(range(256)), ["is not UTF-8 text", "byte 128 is 0x80"]),
        (
            b'{"prompt": "a"}\nhello\n',
            ["line 2 of", "is not a prompt", "turns, prompt"],
        ),
        (b"[1]", ["line 1 of", "is not a prompt"]),
        (b"[" * 100_000, ["line 1 of", "is not a prompt"]),
        (b'{"prompt": " "}', ["line 1 of", "is not a prompt"]),
        (b'{"prompt": 5}', ["line 1 of", "is not a prompt"]),
        (b'{"turns": {"a": 1}}', ["line 1 of", "is not a prompt"]),
        (b'{"other": "a"}', ["line 1 of", "is not a prompt"]),
        (b'{"prompt": "\\ud800"}', ["not valid Unicode"]),
    ],
)
def test_prompts_that_cannot_be_used(edgecs, tiny_gguf, tmp_path, content, parts):
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    outcome = edgecs("audit", "-m", tiny_gguf, "-c", 300, "-q", "--prompts", file)
    one_line(outcome, 2, *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["-n", 0], ["a whole number of at least 2, got '0'"]),
        (["--limit", 0], ["a whole number of at least 1, got '0'"]),
        (["--no-spec"], ["--no-spec and --draft-max 0 leave nothing to audit"]),
        (["--draft-max", 0], ["--no-spec and --draft-max 0 leave nothing to audit"]),
        (["--prompts", "."], [". cannot be read: Is a directory"]),
        (["-c", 20], ["no prompt leaves room", "context of 20 tokens", "-c"]),
    ],
)
def test_wrong_options(edgecs: Edgecs, tiny_gguf: Path, options, parts):
    one_line(edgecs("audit", "-m", tiny_gguf, "-q", *options), 2, *parts)


def test_ctrl_c_ends_within_a_round(edgecs, tiny_gguf, monkeypatch):
    command = ("audit", "-m", tiny_gguf, *FEW, "-q", "--json")
    assert edgecs(*command).code == 0  # nothing is left to be measured
    calls = interrupt_at(monkeypatch, 70)
    one_line(edgecs(*command), 130, "stopped during the audit")
    assert len(calls) == 70
