"""The web page in Chromium, over a server with written answers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import (  # noqa: E402
    Browser,
    FilePayload,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from edgecs.server.app import Serving  # noqa: E402
from edgecs.server.http.guard import Access  # noqa: E402
from tests.server.page_engine import PageEngine, served, usual  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"
)
ATTACK = "window.attacked = true"
ATTACKS = [
    f"<script>{ATTACK}</script>",
    f"<img src=x onerror='{ATTACK}'>",
    f"[a](javascript:{ATTACK.replace(' ', '')}) <svg onload='{ATTACK}'>",
    f'```"><img src=x onerror="{ATTACK}">\ncode\n```',
    f'![x](https://evil.invalid/x.png" onerror="{ATTACK})',
    f"<iframe srcdoc='<script>parent.{ATTACK}</script>'></iframe>",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as running:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served_engine() -> Iterator[tuple[PageEngine, str]]:
    engine = PageEngine()
    with served(engine) as address:
        yield engine, address


@pytest.fixture
def engine(served_engine: tuple[PageEngine, str]) -> PageEngine:
    """The engine behind the page, as at its start."""
    engine, _ = served_engine
    engine.script, engine.pause, engine.first = usual, 0.0, 1
    engine.jobs.clear()
    return engine


@pytest.fixture
def page(
    browser: Browser, served_engine: tuple[PageEngine, str], engine: PageEngine
) -> Iterator[Page]:
    """The page in a browser without a past; its console must stay empty."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    reported: list[str] = []
    page.on("console", lambda message: reported.append(message.text))
    page.on("pageerror", lambda error: reported.append(str(error)))
    elsewhere: list[str] = []
    address = served_engine[1]
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "blob:"))
            else elsewhere.append(request.url)
        ),
    )
    page.goto(address)
    expect(page.locator("#model-name")).to_have_text("tiny")
    yield page
    context.close()
    assert reported == []
    assert elsewhere == []


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def answers(page: Page) -> Locator:
    return page.locator("article.assistant")


def answered(page: Page, text: str) -> None:
    """Asks, and waits for the end of the answer."""
    before = answers(page).count()
    ask(page, text)
    expect(answers(page)).to_have_count(before + 1)
    ended(page)


def ended(page: Page) -> None:
    expect(answers(page).last).to_have_attribute("aria-busy", "false")


def titles(page: Page) -> list[str]:
    return page.locator(".entry .title").all_inner_texts()


def slowly(engine: PageEngine) -> None:
    """An answer that does not end by itself."""
    engine.script, engine.pause = (lambda text: ["word "] * 10_000), 0.02


def files(text: str, name: str = "file.json") -> Sequence[FilePayload]:
    data = text.encode()
    return [FilePayload(name=name, mimeType="application/json", buffer=data)]


def test_an_answer_is_streamed_with_its_sources(page: Page, engine: PageEngine):
    slowly(engine)
    ask(page, "hello")
    expect(answers(page).locator(".token")).not_to_have_count(0)
    expect(page.locator("#stop")).to_be_visible()
    page.locator("#stop").click()
    ended(page)
    engine.script, engine.pause = usual, 0.0
    answered(page, "again")
    last = answers(page).last
    expect(last.locator(".body")).to_have_text("Heard: again and that is all.")
    expect(last.locator(".body strong")).to_have_text("and")
    assert last.locator(".body .source-1").all_inner_texts() == [
        "again ",
    ]
    assert last.locator(".body strong .token").count() == 1


def test_stop_keeps_what_has_arrived(page: Page, engine: PageEngine):
    slowly(engine)
    ask(page, "hello")
    expect(answers(page).locator(".body")).to_contain_text("word word")
    page.locator("#prompt").press("Escape")
    ended(page)
    expect(answers(page)).to_contain_text("You stopped this answer.")
    expect(page.locator("#send")).to_be_visible()
    kept = answers(page).locator(".body").inner_text()
    page.reload()
    page.locator(".entry .title").click()
    expect(answers(page).locator(".body")).to_have_text(kept)


def test_a_reload_in_mid_answer_loses_nothing(page: Page, engine: PageEngine):
    slowly(engine)
    ask(page, "hello")
    expect(answers(page).locator(".body")).to_contain_text("word " * 5)
    seen = answers(page).locator(".body").inner_text()
    page.reload()
    expect(answers(page)).to_contain_text("was interrupted")
    expect(page.locator("article.user")).to_contain_text("hello")
    assert len(answers(page).locator(".body").inner_text()) >= len(seen)
    expect(page.locator("#send")).to_be_visible()
    engine.script, engine.pause = usual, 0.0
    answers(page).get_by_role("button", name="Regenerate").click()
    expect(answers(page).locator(".body")).to_have_text("Heard: hello and that is all.")
    expect(answers(page)).to_contain_text("2 / 2")


def test_edit_and_regenerate_keep_all_versions(page: Page):
    answered(page, "first")
    answered(page, "second")
    page.locator("article.user").first.hover()
    page.get_by_role("button", name="Edit", exact=True).first.click()
    page.get_by_label("Edit the message").fill("changed")
    page.get_by_label("Edit the message").press("Enter")
    expect(page.locator("article")).to_have_count(2)
    expect(answers(page)).to_contain_text("Heard: changed")
    ended(page)
    answers(page).get_by_role("button", name="Regenerate").click()
    expect(answers(page)).to_contain_text("2 / 2")
    page.locator("article.user").get_by_role("button", name="Previous version").click()
    expect(page.locator("article")).to_have_count(4)
    expect(answers(page).last).to_contain_text("Heard: second")


def test_search_finds_titles_and_messages(page: Page):
    for text in ("apples", "bananas", "cherries"):
        page.locator("#new").click()
        answered(page, text)
    assert titles(page) == ["cherries", "bananas", "apples"]
    page.locator("#search").fill("HEARD banana")
    expect(page.locator(".entry .title")).to_have_text(["bananas"])
    page.locator("#search").fill("durians")
    expect(page.locator("#conversations")).to_contain_text("No conversation")
    page.locator("#search").fill("")
    expect(page.locator(".entry .title")).to_have_count(3)


def exported(page: Page) -> str:
    with page.expect_download() as download:
        page.locator("#export").click()
    return Path(download.value.path()).read_text()


def plain(value: Any) -> Any:
    """What was exported, without ids of conversations and messages."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        own = {"id", "parent", "leaf"} if "text" not in value else set()
        return {name: plain(one) for name, one in value.items() if name not in own}
    return value


def test_what_was_exported_is_imported_again(page: Page):
    answered(page, "keep me")
    answers(page).get_by_role("button", name="Regenerate").click()
    expect(answers(page)).to_contain_text("2 / 2")
    ended(page)
    text = exported(page)
    page.locator("#file").set_input_files(files(text))
    expect(page.locator("#toast")).to_contain_text("1 were already here")
    page.locator("#delete-all").click()
    page.locator("dialog .danger").click()
    expect(page.locator(".entry")).to_have_count(0)
    page.locator("#file").set_input_files(files(text))
    expect(page.locator("#toast")).to_contain_text("1 conversation imported")
    page.locator(".entry .title").click()
    expect(answers(page)).to_contain_text("2 / 2")
    expect(answers(page).locator(".body .source-1")).not_to_have_count(0)
    assert plain(json.loads(exported(page))) == plain(json.loads(text))


def conversation(**changes: Any) -> dict[str, Any]:
    """A conversation of a file, with one message."""
    message = {
        "id": "m",
        "parent": None,
        "role": "user",
        "content": "hi",
        "thought": "",
        "created": 1,
        "state": "done",
        "samples": [],
        "tokens": [],
    }
    message |= changes.pop("message", {})
    return {
        "id": "c",
        "title": "imported",
        "created": 1,
        "updated": 1,
        "settings": {"system": ""},
        "messages": [message],
        "leaf": "m",
        **changes,
    }


def as_file(*conversations: Any) -> str:
    return json.dumps(
        {"format": "edgecs-conversations/1", "conversations": conversations}
    )


HOSTILE = {
    "not JSON": ("{", "not JSON"),
    "another format": ('{"format": "x"}', "format"),
    "a list": ("[]", "not an object"),
    "deep": ("[" * 100_000, "not JSON"),
    "a text in place of a list": (
        json.dumps({"format": "edgecs-conversations/1", "conversations": "x"}),
        "conversations is not a list",
    ),
    "null": (as_file(None), "conversations 1 is not an object"),
    "a circle": (as_file(conversation(message={"parent": "m"})), "parent"),
    "a leaf that is not there": (as_file(conversation(leaf="x")), "leaf"),
    "a role": (as_file(conversation(message={"role": "system"})), "role"),
    "a prototype": (
        '{"format": "edgecs-conversations/1", "__proto__": {"conversations": []}}',
        "conversations is not a list",
    ),
    "an infinite number": (
        as_file(conversation()).replace('"updated": 1', '"updated": 1e999'),
        "updated is not a number",
    ),
    "a long title": (as_file(conversation(title="x" * 1000)), "title"),
    "a setting": (
        as_file(conversation(settings={"system": "", "temperature": -1})),
        "temperature",
    ),
}


def test_a_hostile_file_is_refused_with_a_sentence(page: Page):
    for text, why in HOSTILE.values():
        page.locator("#toast").evaluate("box => { box.textContent = ''; }")
        page.locator("#file").set_input_files(files(text))
        expect(page.locator("#toast")).to_contain_text(why)
        expect(page.locator("#toast")).to_contain_text("was not imported")
    expect(page.locator(".entry")).to_have_count(0)


def attacked(page: Page) -> bool:
    return bool(page.evaluate("window.attacked === true"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_is_shown_and_not_run(page: Page, engine: PageEngine, attack: str):
    engine.script = lambda text: [attack[:7], attack[7:]]
    answered(page, attack)
    page.locator("article.user").hover()
    answers(page).get_by_role("button", name="Tokens").click()
    for link in answers(page).locator("a").all():
        assert re.match("https?:", link.get_attribute("href") or "")
    hostile = as_file(
        conversation(title=attack[:200], message={"content": attack, "error": attack})
    )
    page.locator("#file").set_input_files(files(hostile, f"{attack[:40]}.json"))
    expect(page.locator("#toast")).to_contain_text("1 conversation imported")
    page.locator("#file").set_input_files(files("{", "<img src=x onerror=1>.json"))
    expect(page.locator("#toast")).to_contain_text("<img src=x onerror=1>")
    page.locator(".entry .title").last.click()
    expect(page.locator("article.user")).to_have_count(1)
    allowed = "article :is(script, img, iframe, svg[onload], [onerror], [style])"
    assert page.locator(allowed).count() == 0
    assert not attacked(page)


def test_a_conversation_of_200_messages_is_shown_whole(page: Page):
    messages = [
        {
            **conversation()["messages"][0],
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else None,
            "role": "assistant" if i % 2 else "user",
            "content": f"## number {i}\n\n```python\nprint({i})\n```\n" * 3,
        }
        for i in range(200)
    ]
    file = as_file(conversation(messages=messages, leaf="m199"))
    page.locator("#file").set_input_files(files(file))
    page.locator(".entry .title").click()
    expect(page.locator("article")).to_have_count(200)
    expect(answers(page).last).to_be_in_viewport()
    answered(page, "still here?")
    expect(answers(page).last.locator(".body")).to_contain_text("still here?")
    expect(answers(page).last).to_be_in_viewport()


def test_details_are_shown_on_hover_and_with_the_keyboard(page: Page):
    answered(page, "hello")
    answers(page).locator(".body .source-0").nth(1).hover()
    card = page.locator(".hover-card")
    for text in ("50.0 %", "Width of the call", "Rejected", "12.5 %", "Max-Gram"):
        expect(card).to_contain_text(text)
    answers(page).get_by_role("button", name="Tokens").press("Enter")
    view = answers(page).locator(".token-view")
    view.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(view.locator(".token").nth(1)).to_be_focused()
    expect(view.locator(".card")).to_contain_text("Max-Gram")
    page.keyboard.press("End")
    expect(view.locator(".token").last).to_be_focused()


def test_a_comparison_shows_both_rates_and_whether_ids_are_equal(
    page: Page, engine: PageEngine
):
    answered(page, "hello")
    answers(page).get_by_role("button", name="Compare").click()
    card = answers(page).locator(".comparison")
    for text in ("20.0 tokens/s", "10.0 tokens/s", "2.00", "All 3 token ids are equal"):
        expect(card).to_contain_text(text)
    drafted, plain = engine.jobs  # a repeated answer with drafts would be faster
    assert (drafted.speculate, plain.speculate) == (True, False)
    assert plain.rule == drafted.rule  # settings and seed
    page.reload()
    page.locator(".entry .title").click()
    expect(card).to_contain_text("2.00")


def test_a_comparison_says_where_ids_differ(page: Page, engine: PageEngine):
    page.locator("#speculation").click()
    answered(page, "hello")
    engine.first = 7  # every id after the first one
    answers(page).get_by_role("button", name="Compare").click()
    card = answers(page).locator(".comparison")
    expect(card).to_contain_text("The first 1 of 3 token ids are equal")
    expect(card).to_contain_text("a first answer can be slower")
    assert [job.speculate for job in engine.jobs] == [False, True]


def test_settings_are_sent_and_kept(page: Page, engine: PageEngine):
    page.locator("#settings-button").click()
    page.locator("#system").fill("Be brief.")
    page.locator("#sampling-temperature").fill("0.5")
    page.locator("#sampling-seed").fill("7")
    page.get_by_role("button", name="Save").click()
    page.locator("#speculation").click()
    answered(page, "hello")
    (job,) = engine.jobs
    sampling: Any = job.rule[0]  # type: ignore[index]
    assert (sampling.temperature, sampling.seed) == (0.5, 7)
    assert not job.speculate
    assert engine.prompts[-1][0][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.locator(".entry .title").click()
    page.locator("#settings-button").click()
    expect(page.locator("#system")).to_have_value("Be brief.")
    expect(page.locator("#sampling-temperature")).to_have_value("0.5")


def test_an_error_of_the_server_is_shown_and_can_be_tried_again(
    page: Page, engine: PageEngine
):
    long = "x" * 10
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=200,
            content_type="text/event-stream",
            body='data: {"error": {"message": "it is too long", "code": 400}}\n\n',
        ),
    )
    ask(page, long)
    expect(answers(page)).to_contain_text("It is too long.")
    page.unroute("**/v1/chat/completions")
    answers(page).get_by_role("button", name="Regenerate").click()
    expect(answers(page).locator(".body")).to_contain_text(long)


def test_the_key_is_asked_for_and_kept_for_the_tab(browser: Browser):
    context = browser.new_context()
    with served(PageEngine(), Serving(access=Access("secret"))) as address:
        page = context.new_page()
        page.goto(address)
        field = page.get_by_role("textbox", name="API key")
        field.fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("dialog[open]")).to_contain_text("The API key is wrong")
        field.fill("secret")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model-name")).to_have_text("tiny")
        answered(page, "hello")
        expect(answers(page).locator(".body")).to_contain_text("Heard: hello")
        page.reload()
        expect(page.locator("#model-name")).to_have_text("tiny")
        assert page.evaluate("localStorage.length") == page.evaluate(
            "Object.values(localStorage).filter(v => !v.includes('secret')).length"
        )
    context.close()


def test_of_several_models_one_is_chosen(browser: Browser):
    context, engine = browser.new_context(), PageEngine()
    with served(engine, names=("one", "two")) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#model")).to_have_value("one")
        page.locator("#model").select_option("two")
        answered(page, "hello")
        expect(answers(page).locator(".body")).to_contain_text("Heard: hello")
        assert engine.name == "two"  # the last one that was loaded
        expect(page.locator(".legend")).to_contain_text("bigram")
        page.reload()
        page.locator(".entry .title").click()
        expect(page.locator("#model")).to_have_value("two")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_serious(
    page: Page, engine: PageEngine, scheme: Any, width: int
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    engine.script = lambda text: [
        "# Title\n\nText with `code` ",
        "and **bold**.\n\n",
        "| a | b |\n|--|--|\n| 1 | 2 |\n\n",
        "- [link](https://example.com)\n\n",
        "```python\n# a comment\ndef f(): return 'text'\n```\n",
    ]
    answered(page, "hello")
    answers(page).get_by_role("button", name="Compare").click()
    expect(answers(page).locator(".comparison")).to_be_visible()
    answers(page).get_by_role("button", name="Tokens").click()
    if width < 1100:
        page.locator("#panel-button").click()
    page.wait_for_timeout(300)  # transitions
    states = {"the conversation": lambda: None, "settings": open_settings(page)}
    for name, change in states.items():
        change()
        found = axe.run(page).response["violations"]
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in bad] == [], name


def open_settings(page: Page) -> Any:
    return lambda: page.locator("#settings-button").click(force=True)


def test_all_controls_can_be_reached_with_tab(page: Page):
    answered(page, "hello")
    page.locator("#prompt").press("Shift+Tab")
    page.evaluate("document.activeElement.blur()")
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.id || e.ariaLabel || e.innerText.trim())"
                "(document.activeElement)"
            )
        )
    assert {
        "new",
        "search",
        "export",
        "import",
        "theme",
        "settings-button",
        "panel-button",
        "prompt",
        "speculation",
        "send",
        "colours",
        "Edit",
        "Regenerate",
        "Tokens",
        "Compare",
    } <= reached
