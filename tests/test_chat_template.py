"""Chat templates: rendered as written, in a sandbox."""

from __future__ import annotations

import threading

import pytest

from edgecs import chat_template
from edgecs.chat_template import ChatTemplate
from edgecs.errors import ConfigError, ModelError
from edgecs.testing import ByteTokenizer

HELLO = [{"role": "user", "content": "héllo"}]


def template(source: str | None, bos: str = "") -> ChatTemplate:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template, tokenizer.bos = source, bos
    return ChatTemplate(tokenizer)


def test_renders_messages_and_opens_the_answer():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chat = template(source + "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert chat.render(HELLO) == "<user>héllo<assistant>"


def test_lines_of_control_leave_no_blank_lines():
    assert template("{% if true %}\n  {# note #}\nx{% endif %}").render(HELLO) == "x"


def test_json_stays_readable():
    assert template("{{ messages | tojson }}").render(HELLO) == (
        '[{"role": "user", "content": "héllo"}]'
    )


def test_bos_is_not_doubled():
    asked = []

    class Asked(ByteTokenizer):
        chat_template = "{{ bos_token }}{{ messages[0].content }}"
        bos = "<s>"

        def encode(self, text: str, *, document: bool = True):
            asked.append((text, document))
            return super().encode(text)

    ChatTemplate(Asked()).encode(HELLO)
    Asked.chat_template = "{{ messages[0].content }}"
    ChatTemplate(Asked()).encode(HELLO)
    assert asked == [("<s>héllo", False), ("héllo", True)]


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(attack: str):
    with pytest.raises(ConfigError, match="chat template refuses"):
        template(attack).render(HELLO)


def test_a_template_can_refuse_with_its_own_words():
    with pytest.raises(ConfigError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(HELLO)


def test_broken_and_missing_templates_are_named():
    with pytest.raises(ModelError, match="broken"):
        template("{% if %}")
    with pytest.raises(ModelError, match="--raw"):
        template(None)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for a in 'x' * 99999999 %}{% endfor %}", "repeats something"),
        ("{{ 'x' * 99999999 }}", "repeats something"),
        ("{{ [0] * 99999999 }}", "repeats something"),
        ("{{ 9 ** 999999999 }}", "a huge power"),
        (
            "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
            "more than 16777216",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
            "{% endfor %}",
            "longer than 0.2 seconds",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_has_neither_time_nor_memory_without_end(
    monkeypatch: pytest.MonkeyPatch, source: str, says: str
):
    """A file comes from anywhere, and may have been made to do harm."""
    monkeypatch.setattr(chat_template, "_SECONDS", 0.2)
    with pytest.raises(ModelError, match=says) as caught:
        template(source).render(HELLO)
    assert "\n" not in str(caught.value)


def test_a_template_that_was_stopped_leaves_no_thread_behind(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(chat_template, "_SECONDS", 0.1)
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(ModelError, match="was stopped"):
        template(loops).render(HELLO)
    for thread in threading.enumerate():
        if thread.name == "chat template":
            thread.join(20)
            assert not thread.is_alive()


def test_a_template_may_be_large_but_not_without_end():
    assert template("x" * 1000).render(HELLO) == "x" * 1000
    with pytest.raises(ModelError, match="has 1048577 characters"):
        template("x" * ((1 << 20) + 1))
