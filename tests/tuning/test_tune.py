"""`edgecs tune`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecs.calibrate import speculation_profile
from edgecs.testing.fakes import write_random_gguf
from edgecs.tuning.comparison import Trial
from edgecs.tuning.settings import time_settings
from edgecs_cli.options.shared import pace_bar
from tests.conftest import Outcome, Screen, before_calls, interrupt_at
from tests.families import FAMILIES
from tests.tuning.tuning_fakes import Edgecs


def tune_cli(edgecs: Edgecs, model: Path, *options: object) -> Outcome:
    few = ("-c", 1024, "-t", 1, "--quick", "--repeats", 1, "-n", 8)
    return edgecs("tune", "-m", model, *few, *options)


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    assert (outcome.code, outcome.out) == (code, ""), outcome
    (line,) = outcome.err.splitlines()
    for part in parts:
        assert part in line


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    return write_random_gguf(tmp_path / "small.gguf", seed=1)


def saved(cache: Path) -> list[Path]:
    return sorted((cache.parent / "profiles").glob("*.json"))


def test_json_has_curves_chains_and_the_choice(
    edgecs: Edgecs, tiny_gguf: Path, small_gguf: Path, cache: Path
):
    drafts = ("--draft", small_gguf, "--draft", small_gguf)
    outcome = tune_cli(edgecs, tiny_gguf, "--json", "-q", *drafts)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    report = json.loads(outcome.out)
    assert report["model"]["model"] == "tiny"
    assert [curve["depth"] for curve in report["curves"]] == [64, 512]
    assert list(report["curves"][0]["ms"]) == [str(n) for n in range(1, 33)]
    assert set(report["exact"]["inside"]) == {"0", "256", "512"}
    assert [d["name"] for d in report["drafters"]] == ["small", "small-2"]
    assert set(report["drafters"][0]["curve"]["ms"]) >= {"1", "2", "8", "16"}
    waiting = [row for row in report["chains"] if not row["overlap"]]
    assert [row["chain"] for row in waiting] == [
        ["mag"],
        ["small"],
        ["small", "mag"],
        ["small-2"],
        ["small-2", "mag"],
        ["small", "small-2", "mag"],
    ]
    ahead = [row["chain"] for row in report["chains"] if row["overlap"]]
    assert ahead == [["small", "mag"], ["small-2", "mag"], ["small", "small-2", "mag"]]
    assert set(report["overlap"]) == {"small", "small-2"}
    (path,) = saved(cache)
    kept = json.loads(path.read_text())["chain"]["overlap"]
    assert set(map(type, kept.values())) == {bool}
    for row in report["chains"]:
        assert set(row["by_kind"]) == set(report["plain"]["measured"])
        assert row["verdict"]
        assert row["expected"] > 0
    flags = [way["flags"] for way in report["settings"]]
    assert flags[0] == "--flash-attn off"
    assert "-ctk q8_0 -ctv q8_0" not in flags  # its heads are too small for that
    for way in report["settings"]:
        assert [at["depth"] for at in way["depths"]] == [64, 991]
        assert list(way["depths"][0]["ms"]) == ["1", "4", "16"]
    assert report["chosen"] in [row["chain"] for row in report["chains"]]
    assert report["kept"] is True
    assert len(saved(cache)) == 1


def test_overlap_off_tries_no_drafter_that_works_ahead(
    edgecs: Edgecs, tiny_gguf: Path, small_gguf: Path, cache: Path
):
    options = ("--json", "-q", "--draft", small_gguf, "--overlap", "off")
    report = json.loads(tune_cli(edgecs, tiny_gguf, *options).out)
    assert not any(row["overlap"] for row in report["chains"])
    assert report["overlap"] == {}


def test_the_report_is_for_people(edgecs: Edgecs, tiny_gguf: Path, small_gguf: Path):
    options = ("--draft", small_gguf, "--repeats", 4)
    brief = tune_cli(edgecs, tiny_gguf, *options)
    assert brief.code == 0
    assert brief.err == ""  # a pipe; a terminal has a bar
    assert len(brief.out.splitlines()) <= 5
    assert brief.out.startswith("Chosen: target <- ")
    outcome = tune_cli(edgecs, tiny_gguf, *options, "-v")
    assert outcome.code == 0
    assert outcome.out.startswith("Chosen: target <- ")
    assert "64 tokens deep, medians of 4" in outcome.out
    assert "512 tokens deep, medians of 2" in outcome.out
    assert "timing 32 widths after 64 tokens" in outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["tokens", "ms", "relative", "must", "be", "right"] in lines
    assert sum(line[:1] == ["32"] for line in lines) == 1
    way = "--flash-attn off  991 tokens "
    assert sum(line.strip().startswith(way) for line in outcome.out.splitlines()) == 1
    for text in ("small <- mag  ", "plain  ", "small: ", "Chosen: target <- "):
        assert text in outcome.out
    assert "ms a token" in outcome.out


def test_a_terminal_has_a_bar(edgecs: Edgecs, tiny_gguf: Path, monkeypatch):
    shown: list[str] = []
    states: list[tuple[float, float]] = []

    @contextmanager
    def bar(state):
        yield lambda text: (shown.append(text), states.append(state()))
        states.append(state())

    monkeypatch.setattr("edgecs_cli.commands.tune.pace_bar", bar)
    monkeypatch.setattr("edgecs_cli.commands.tune.moves", lambda stream: True)
    for option in ("-q", "-v"):
        assert tune_cli(edgecs, tiny_gguf, option).code == 0
    assert not shown
    outcome = tune_cli(edgecs, tiny_gguf)
    assert (outcome.code, outcome.err) == (0, "")
    assert shown[0] == "timing 32 widths after 64 tokens"
    assert any(text.startswith("trying --flash-attn") for text in shown)
    shares, lefts = zip(*states, strict=True)
    assert shares[0] < 0.01
    assert 0.9 < shares[-1] <= 1
    assert list(shares) == sorted(shares)
    assert all(left > 0 for left in lefts)


def test_a_bar_is_gone_at_the_end(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pace_bar(lambda: (0.5, 42.0)) as show:
        show("timing \x1b[2Jx")
    text = screen.getvalue()
    assert "timing ␛[2Jx" in text
    assert "about 40 s left" in text
    assert "\x1b[2Jx" not in text
    assert text.endswith("\x1b[1A\x1b[2K")  # a line up, and that line wiped


def test_what_a_busy_machine_says_is_not_kept(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    monkeypatch.setattr(speculation_profile, "BUSY", -1.0)
    monkeypatch.setattr(speculation_profile, "busiest", lambda: None)
    for options in ((), ("--json",), ("-q",)):
        outcome = tune_cli(edgecs, tiny_gguf, *options)
        one_line(outcome, 1, "other programs took", "nothing was kept", "end these")
    assert saved(cache) == []
    monkeypatch.setattr(speculation_profile, "BUSY", 1.0)
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = path.read_bytes()
    monkeypatch.setattr(speculation_profile, "BUSY", -1.0)
    assert tune_cli(edgecs, tiny_gguf).code == 1
    assert path.read_bytes() == before


@pytest.fixture
def shipped(small_gguf: Path, monkeypatch) -> Path:
    """A drafter that comes with every model."""
    for module in ("edgecs_cli.commands.tune", "edgecs.runtime.builder"):
        monkeypatch.setattr(f"{module}.bundled_for", lambda _: small_gguf)
    return small_gguf


@pytest.mark.parametrize("parts", [["mag"], ["small", "mag"]])
def test_generate_does_what_tune_chose(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, shipped: Path, monkeypatch, parts
):
    def choosing(trials: list[Trial]) -> Trial:
        return next(trial for trial in trials if trial.chain.parts == parts)

    monkeypatch.setattr("edgecs.tuning.tuner.choose", choosing)
    outcome = tune_cli(edgecs, tiny_gguf, "--json", "--overlap", "off")
    report = json.loads(outcome.out)
    assert [row["chain"] for row in report["chains"]] == [["mag"], ["small", "mag"]]
    assert report["chosen"] == parts
    ask = ("generate", "-m", tiny_gguf, "-p", "a", "-n", 4, "-c", 1024, "-t", 1, "-v")
    err = edgecs(*ask).err
    assert f"drafts: target <- {' <- '.join(parts)} <- recent <- bigram, planned" in err
    date = json.loads(saved(cache)[0].read_text())["tuned"][:10]
    left = f"drafter small.gguf: left out, tuned on {date}: " in err
    assert left == ("small" not in parts)
    none = edgecs(*ask, "--draft", "none").err
    assert "drafts: target <- mag <- recent <- bigram," in none
    given = edgecs(*ask, "--draft", shipped).err
    assert "drafts: target <- small <- mag <- recent <- bigram," in given
    assert "left out" not in given


def test_what_is_given_is_tried_and_nothing_else(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, shipped: Path, tmp_path: Path
):
    other = write_random_gguf(tmp_path / "other.gguf", seed=2)
    for drafts, names in ((("--draft", "none"), []), (("--draft", other), ["other"])):
        report = json.loads(tune_cli(edgecs, tiny_gguf, "--json", *drafts).out)
        assert [drafter["name"] for drafter in report["drafters"]] == names


def test_generate_finds_what_tune_measured(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    probed: list[object] = []
    monkeypatch.setattr(
        "edgecs.calibrate.speculation_profile.classify",
        lambda *a, **k: probed.append(a),
    )
    ask = ("generate", "-m", tiny_gguf, "-p", "a", "-n", 4, "-c", 512, "-t", 1)
    assert edgecs(*ask).code == 0
    assert probed
    probed.clear()
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = json.loads(path.read_text())
    assert before["tuned"]
    assert set(before["costs"]["seconds"]) == {str(n) for n in range(1, 33)}
    assert edgecs(*ask).code == 0
    assert not probed
    after = json.loads(path.read_text())
    assert (after["tuned"], after["chain"]) == (before["tuned"], before["chain"])


@pytest.mark.parametrize("name", ["costs.png", "costs.SVG"])
def test_a_plot_is_drawn(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    starts = {"costs.png": b"\x89PNG", "costs.SVG": b"<?xml"}
    path.write_bytes(starts[name] + b" the one before")
    assert tune_cli(edgecs, tiny_gguf, "--plot", path).code == 0
    assert path.read_bytes().startswith(starts[name])
    assert b"the one before" not in path.read_bytes()


@pytest.fixture
def no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured."""

    def refuse(number: int) -> None:
        raise AssertionError("the model was called")

    before_calls(monkeypatch, refuse)


def test_a_plot_without_matplotlib_is_refused_first(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "edgecs_cli.commands.tuning_plot", raising=False)
    monkeypatch.delattr("edgecs_cli.commands.tuning_plot", raising=False)
    outcome = tune_cli(edgecs, tiny_gguf, "--plot", tmp_path / "a.png")
    one_line(outcome, 2, 'pip install "edgecs[plot]"')


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("none/a.png", ["none/a.png cannot be written: No such file"]),
        ("a.png", ["a.png cannot be written: it is a folder"]),
        ("a.gif", [".png or .svg", "a.gif"]),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_first(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls, name, parts
):
    pytest.importorskip("matplotlib")
    (tmp_path / "a.png").mkdir()
    one_line(tune_cli(edgecs, tiny_gguf, "--plot", tmp_path / name), 2, *parts)
    assert [p.name for p in tmp_path.glob("*.png")] == ["a.png"]


def test_a_model_that_is_missing_leaves_no_plot(
    edgecs: Edgecs, tmp_path: Path, no_calls
):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "a.png"
    missing = tune_cli(edgecs, tmp_path / "m.gguf", "--plot", plot)
    one_line(missing, 3, "there is no file")
    assert not plot.exists()


@pytest.mark.parametrize("number", [1, 30, 100, 180])
def test_ctrl_c_keeps_the_old_profile(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch, number: int
):
    assert tune_cli(edgecs, tiny_gguf).code == 0
    (path,) = saved(cache)
    before = path.read_bytes()
    calls = interrupt_at(monkeypatch, number)
    outcome = tune_cli(edgecs, tiny_gguf, "-q")
    assert len(calls) >= number
    one_line(outcome, 130, "stopped")
    assert path.read_bytes() == before
    assert saved(cache) == [path]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_very_end_keeps_nothing(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path, monkeypatch
):
    def interrupted(*args, **kwargs):
        found = time_settings(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr("edgecs_cli.commands.tune.time_settings", interrupted)
    one_line(tune_cli(edgecs, tiny_gguf, "-q"), 130, "nothing was kept")
    assert saved(cache) == []


@pytest.mark.parametrize("name", ["qwen35", "granite", "gemma3"])
def test_models_with_states_and_windows_are_tuned_too(
    edgecs: Edgecs, tmp_path: Path, cache: Path, name: str
):
    path = FAMILIES[name](tmp_path / f"{name}.gguf")
    report = json.loads(tune_cli(edgecs, path, "--json").out)
    assert report["chosen"] == ["mag"]
    assert "for each token" in report["memory"]
    assert ("each state" in report["memory"]) == (name != "gemma3")
    assert ("5 layers keep" in report["memory"]) == (name == "gemma3")
    assert len(saved(cache)) == 1


def test_another_quantisation_is_named(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path):
    for name in ("tiny-Q8_0", "tiny-Q4_0"):
        write_random_gguf(tmp_path / f"{name}.gguf", seed=len(name), n_ctx=2048)
    write_random_gguf(tmp_path / "tiny-Q4_0.gguf", seed=7)
    here, other = tmp_path / "tiny-Q8_0.gguf", tmp_path / "tiny-Q4_0.gguf"
    outcome = tune_cli(edgecs, here)
    assert f"Q4_0 is present, not measured: edgecs tune -m {other}" in outcome.out
    outcome = tune_cli(edgecs, other)
    assert "Q8_0 of this model would decode" in outcome.out


def test_what_cannot_be_tuned_is_one_sentence(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, no_calls
):
    missing = tune_cli(edgecs, tmp_path / "m.gguf")
    one_line(missing, 3, "there is no file")
    one_line(tune_cli(edgecs, tiny_gguf, "--draft", "nobody"), 3, "no model 'nobody'")
    other = write_random_gguf(tmp_path / "other.gguf", vocab_size=300)
    one_line(
        tune_cli(edgecs, tiny_gguf, "--draft", other), 3, "other.gguf cannot draft"
    )
    one_line(tune_cli(edgecs, tiny_gguf, "-c", 256), 2, "this one has 256", "-c")
    one_line(tune_cli(edgecs, tiny_gguf, "--repeats", 0), 2, "--repeats")
    one_line(tune_cli(edgecs, tiny_gguf, "-n", 7), 2, "from 8 to 4096, got '7'")


def test_numbers_are_shown_where_they_cannot_be_kept(
    edgecs: Edgecs, tiny_gguf: Path, cache: Path
):
    cache.parent.mkdir(exist_ok=True)
    (cache.parent / "profiles").write_text("a file where the folder would be")
    outcome = tune_cli(edgecs, tiny_gguf, "-q")
    assert outcome.code == 1
    assert "Chosen: target <- mag" in outcome.out
    assert "the profile was not saved" in outcome.err
