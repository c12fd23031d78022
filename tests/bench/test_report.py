"""The report: everything in it, nothing from outside, whatever a result says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs_bench.report import canvas, figures, page
from edgecs_bench.report.charts import charts, cleaned, inline_svg, save_charts
from edgecs_bench.report.tables import overview, tables
from tests.bench_results import (
    CATEGORIES,
    MODES,
    SCHEMA,
    SOURCES,
    made,
    retold,
    thinned,
)
from tests.rooms import FOLDERS, sources

pytest.importorskip("matplotlib")

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "img",
    "form",
    "base",
    "image",
}
HOSTILE = (
    "</script><b>",
    "</style></svg><img src=x onerror=alert(1)>",
    "\"' onload='x' ",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{$ ",
    "_",
    "\x00\x1b[31m\ud800\ufffe",
    "一二三 مرحبا \N{RIGHT-TO-LEFT OVERRIDE}",
    "w" * 300,
)


class Page(HTMLParser):
    """A page, taken apart; raises where its tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def values(parsed: Page, *names: str) -> Iterator[str]:
    for _, attributes in parsed.tags:
        yield from (attributes[name] or "" for name in names if name in attributes)


def check(text: str) -> Page:
    """What holds of every page."""
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & LOADING
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
    links = values(parsed, "href", "xlink:href", "src", "srcset", "action", "data")
    assert all(link.startswith("#") for link in links)
    styles = [*values(parsed, "style"), *re.findall("<style>(.*?)</style>", text, re.S)]
    assert not [s for s in styles if re.search(r"url\((?!#)|@import|:\s*//|https?:", s)]
    ids = list(values(parsed, "id"))
    assert len(ids) == len(set(ids))
    targets = [link[1:] for link in values(parsed, "href")]
    named = " ".join(values(parsed, "aria-labelledby")).split()
    assert {*targets, *named} <= set(ids)
    for svg in re.findall("<svg.*?</svg>", text, re.S):
        for element in ElementTree.fromstring(svg).iter():
            drawn = {k: v for k, v in element.attrib.items() if k != "aria-label"}
            assert not re.search(r"\b(nan|inf)\b", " ".join(drawn.values()))
    text.encode()
    return parsed


def few(seed: int = 0) -> dict[str, Any]:
    return made(seed, (0.0,), prompts=2, categories=2)


@pytest.fixture(scope="module")
def whole() -> str:
    return page.render([made()])


# --- what is in it


def test_the_made_up_result_is_one_of_the_schema():
    jsonschema.validate(made(), SCHEMA)


def test_a_page_is_whole_and_asks_nobody_for_anything(whole: str):
    parsed = check(whole)
    assert parsed.tags[0] == ("html", {"lang": "en"})
    assert "http:" not in whole
    assert "https:" not in whole
    (policy,) = [a for t, a in parsed.tags if t == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in str(policy["content"])


def test_everything_that_was_measured_is_named(whole: str):
    text = Page(whole).text
    result = made()
    names = [mode["name"] for mode in result["modes"]]
    assert {*MODES} < {*names}
    for name in (*names, *CATEGORIES, *SOURCES, result["model"]["name"]):
        assert name in text
    assert "connection refused (port 11434)" in text
    assert "Linux 6.8.0" in text
    assert "pp512" in text
    assert "HumanEval/32" in text


def test_figures_are_described_and_tables_have_heads(whole: str):
    parsed = Page(whole)
    assert whole.count("<figure>") == whole.count("<figcaption>") == len(charts(made()))
    assert all("aria-label" in a for t, a in parsed.tags if t == "svg")
    assert all(a.get("scope") in ("row", "col") for t, a in parsed.tags if t == "th")
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_verdict_speaks_of_the_last_mode_of_ours():
    result = few()
    result["overall"] = [
        {
            "mode": mode,
            "temperature": 0.0,
            "geomean": geomean,
            "interval": [1.1, 1.26],
            "worst": {"category": "qa", "speedup": 1.0},
            "end_to_end": 1.1,
            "planner_us": None,
        }
        for mode, geomean in (
            ("always 10", 1.5),
            ("planner", 1.184),
            ("llama.cpp", 2.0),
        )
    ]
    for row in result["rows"]:
        row.update(identical=46, forks=int(row["category"] == "qa"))
    assert " ".join(page.verdict(result)) == (
        "In mode “planner” this model answers 1.18 times as fast as plain decoding "
        "here (90 % interval 1.10-1.26), 1.00 times in qa, the worst category. 92 of "
        "93 answers are identical to plain decoding, token by token; 1 forks."
    )


def test_reasons_for_doubt_are_told():
    result = few()
    result["others"] = 0.31
    result["machine"]["power"] = "battery"
    result["answers"][0]["drifted"] = True
    for one in result["overall"]:
        one["interval"] = [0.97, 1.02]
    text = " ".join(page.warnings(result))
    for words in ("includes 1", "31%", "during 1 block.", "battery", "“ollama” failed"):
        assert words in text


def test_a_mode_that_failed_is_a_row_with_its_error():
    result = few()
    table = next(table for table in tables(result) if table.name == "modes")
    assert table.rows[-1][0] == "ollama"
    assert "connection refused" in table.rows[-1][-1]
    result["overall"] = []
    table = next(table for table in tables(result) if table.name == "modes")
    assert [row[0] for row in table.rows] == [*MODES, "ollama"]


def test_several_results_have_an_overview_that_leads_to_them():
    one, other = few(), few(1)
    other["model"]["name"] = "another.gguf"
    text = page.render([one, other])
    check(text)
    assert '<a href="#r2">another.gguf</a>' in text
    assert [row[0] for row in overview([one, other]).rows] == [
        one["model"]["name"],
        "another.gguf",
    ]


def test_equal_results_make_equal_pages(tmp_path: Path):
    result = few()
    assert page.render([result]) == page.render([json.loads(json.dumps(result))])
    first, again = (save_charts(result, tmp_path / name) for name in "ab")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


# --- charts


def test_charts_are_files_too(tmp_path: Path):
    paths = save_charts(made(), tmp_path / "new")
    names = [chart.name for chart in charts(made())]
    assert [p.name for p in paths] == [
        f"{n}.{e}" for n in names for e in ("png", "svg")
    ]
    assert {"costs", "speedups-t0", "speedups-t0.8", "paces", "rounds"} < {*names}
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("many", [False, True])
def test_no_two_bars_of_a_group_have_one_colour(many: bool):
    result = few()
    if many:  # more modes than colours
        row = next(row for row in result["rows"] if row["mode"] == "planner")
        for i in range(len(figures.SERIES)):
            result["modes"].append({"name": f"peer/{i}"})
            result["rows"].append({**row, "mode": f"peer/{i}"})
    (chart,) = (one for one in charts(result) if one.name.startswith("speedups"))
    svg = inline_svg(chart, "a")
    colours = figures.SERIES
    groups = chart.make.args[0]  # type: ignore[attr-defined]
    assert ("planner" in groups) == many
    for bars in groups.values():
        used = [colours[bar.series % len(colours)] for bar in bars]
        assert len(set(used)) == len(used)
    if many:
        assert "peer/" in svg


def test_every_colour_in_a_page_can_be_changed():
    for chart in charts(few()):
        svg = inline_svg(chart, "a")
        assert not re.findall("#[0-9a-f]{6}", svg)
        assert "font-family" not in svg
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(canvas.LIGHT)


@pytest.mark.parametrize("colours", [canvas.LIGHT, page.DARK])
def test_every_colour_can_be_read(colours: dict[str, str]):
    assert colours.keys() == canvas.LIGHT.keys()
    for name in set(colours) - {"paper", "line"}:
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """As WCAG defines it."""
    dark, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
    ]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_user_s_own_settings_of_matplotlib_change_nothing():
    import matplotlib

    (chart, *_) = charts(few())
    usual = inline_svg(chart, "a")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert inline_svg(chart, "a") == usual


@pytest.mark.parametrize("form", canvas.FORMS)
def test_the_same_numbers_give_the_same_file(form: str):
    (chart, *_) = charts(few())
    assert canvas.saved(chart.make, form) == canvas.saved(chart.make, form)


def test_one_module_opens_and_saves_figures():
    for package in FOLDERS:
        for path in sources(package):
            found = re.search(r"\bpyplot\b|\bsavefig\(|\bFigure\(", path.read_text())
            assert not found or path.stem == "canvas", path


def test_importing_the_page_loads_no_engine_and_no_matplotlib():
    script = "import sys, edgecs_bench.report.page; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert not {"matplotlib", "llama_cpp", "onnxruntime"} & {*loaded}


# --- whatever a result says


def test_without_anything_measured_there_is_still_a_page():
    result = few() | {name: [] for name in ("answers", "rows", "overall", "tests")}
    result |= {"samples": [], "anchors": [], "costs": None, "drafters": []}
    result["modes"] = result["modes"][:1]
    del result["pass_at_1"]
    jsonschema.validate(result, SCHEMA)
    assert not charts(result)
    assert "nothing to compare" in check(page.render([result])).text


def test_without_matplotlib_the_page_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = page.render([few()])
    check(text)
    assert "edgecs[plot]" in text
    assert "<svg" not in text
    (chart, *_) = charts(few())
    with pytest.raises(ConfigError, match=re.escape('pip install "edgecs[plot]"')):
        canvas.saved(chart.make, "svg")


def test_another_format_is_refused():
    with pytest.raises(ConfigError, match="edgecs-bench/1, not from 'edgecs-bench/9'"):
        page.render([few() | {"format": "edgecs-bench/9"}])


def test_what_no_page_may_have_is_replaced():
    assert cleaned({"a\0": ["\ud800", float("nan"), 1.5, True, None]}) == {
        "a\ufffd": ["\ufffd", None, 1.5, True, None]
    }


slow = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@slow
@given(st.integers(0, 2**32), st.floats(0.05, 0.95), st.sampled_from(("", *HOSTILE)))
def test_any_result_of_the_schema_has_a_page(seed: int, share: float, text: str):
    result = retold(thinned(few(), Random(seed), share), text)
    jsonschema.validate(result, SCHEMA)
    check(page.render([result]))


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text: str):
    result = retold(few(), text)
    told = page.render([result])
    shown = cleaned(text)
    parsed = check(told)
    assert f"{shown}planner" in parsed.text
    assert parsed.text.count("<b>") > 10 or "<b>" not in text
    assert not [tag for tag, _ in parsed.tags if tag in ("b", "img", "script")]


@given(st.text())
@settings(max_examples=25, deadline=None)
def test_any_name_can_stand_in_a_chart(name: str):
    result = few()
    result["costs"], result["samples"], result["anchors"] = None, [], []
    for row in result["rows"]:
        row["category"] = name
    for chart in charts(result)[:1]:
        ElementTree.fromstring(inline_svg(chart, "a"))


# --- in a browser


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_no_page_scrolls_sideways(tmp_path: Path):
    """Each page in frames as wide as a phone and a screen, its policy in force."""
    pages = [page.render([few(), few(1)]), page.render([retold(few(), "w" * 300)])]
    frames = [
        f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{escape(told)}">'
        "</iframe>"
        for told in pages
        for width in (390, 1400)
    ]
    script = """
        onload = () => document.title = [...document.querySelectorAll("iframe")].map(
            ({contentDocument: {documentElement: page}}) =>
                page.scrollWidth - page.clientWidth)
    """
    file = tmp_path / "frames.html"
    text = f"<meta charset=utf-8>{''.join(frames)}<script>{script}</script>"
    file.write_text(text, encoding="utf-8")
    found = re.search("<title>(.*?)</title>", dumped(file))
    assert found
    assert found[1] == "0,0,0,0"


def dumped(file: Path) -> str:
    """The page after its script has run."""
    profile = file.with_name("profile")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--window-size=1500,900",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout
