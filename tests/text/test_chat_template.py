"""Chat templates: rendered as written, by a process with limits."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import SandboxedEnvironment

from edgecs.engines.llama import random_gguf
from edgecs.errors import ConfigError, ModelError
from edgecs.testing.fakes import ByteTokenizer
from edgecs.text import template_process
from edgecs.text.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "héllo"}]
CONTENT = "{{ messages[0].content }}"
REFUSES = "the chat template refuses this conversation: "


def template(source: str | None, bos: str = "") -> ChatTemplate:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template, tokenizer.bos = source, bos
    return ChatTemplate(tokenizer)


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


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


texts = st.text(st.characters(exclude_categories=[]))  # surrogates too
conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}
    ),
    max_size=6,
)


@cache
def shared(source: str) -> ChatTemplate:
    return template(source, bos="<s>")


@pytest.mark.parametrize(
    "source",
    [random_gguf._TEMPLATE, "{{ bos_token }}{{ messages | tojson }}\n{{ messages }}"],
)
@given(conversations)
def test_a_text_is_what_jinja_writes_in_this_process(
    source: str, messages: list[dict[str, str]]
):
    plain = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    values = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>"}
    expected = plain.from_string(source).render(values)
    assert shared(source).render(messages) == expected


def test_half_a_character_may_be_written():
    assert template(r"{{ '\ud800' }}").render(HELLO) == "\ud800"


def test_messages_that_are_not_texts_are_refused():
    with pytest.raises(ConfigError, match="the messages are not strings"):
        template(CONTENT).render([{"role": "user", "content": b"x"}])  # type: ignore[dict-item]


# Templates that were made to do harm: a file comes from anywhere.

FOREVER = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLED = "{% set n = namespace(x='12345678') %}" + "{% set n.x = n.x ~ n.x %}" * 40
SQUARED = "{% set n = namespace(x=3) %}" + "{% set n.x = n.x * n.x %}" * 40


def stopped(source: str) -> str:
    """Why, in one line that names --raw."""
    with pytest.raises(ModelError, match="the chat template was stopped") as caught:
        template(source).render(HELLO)
    assert str(caught.value).isprintable()
    assert "--raw" in str(caught.value)
    return str(caught.value)


HUGE = "(messages | length * 3 * 10**9)"


@pytest.mark.parametrize(
    "attack",
    [
        f"{{{{ 'a'.ljust({HUGE}) }}}}",
        f"{{{{ 'a' | center({HUGE}) }}}}",
        f"{{{{ 'a\nb' | indent({HUGE}) }}}}",
        f"{{{{ 'a' * {HUGE} }}}}",
        f"{{{{ [0] * {HUGE} }}}}",
        f"{{{{ [1] | tojson(indent={HUGE}) }}}}",
        # Constants are computed when a template is compiled.
        "{{ 'a'.ljust(3 * 10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
    ],
)
def test_a_template_gets_little_memory(attack: str):
    assert "more than 512 MiB of memory" in stopped(attack)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (DOUBLED, "more than 512 MiB of memory"),
        ("{{ raise_exception('x' * 4 * 10**8) }}", "more than 512 MiB of memory"),
        ("{{ 'x' * 99999999 }}", "more than 16777216"),
        ("{{ 'x' * 17 * 2**20 }}", "more than 16777216"),
        (
            "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
            "more than 16777216",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses too deep"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "nests or recurses"),
        ("{%if 1%}" * 50_000 + "{%endif%}" * 50_000, "nests or recurses"),
        ("{{ " + "-" * 50_000 + "1 }}", "nests or recurses"),
    ],
)
def test_a_template_neither_grows_nor_nests_without_end(
    monkeypatch: pytest.MonkeyPatch, attack: str, why: str
):
    monkeypatch.setattr(template_process, "_SECONDS", 60)  # on the slowest machine too
    assert why in stopped(attack)


@pytest.mark.parametrize(
    "attack",
    [
        FOREVER,
        "{% for a in 'x' * 99999999 %}{% endfor %}",
        "{{ 9 ** 999999999 }}",
        SQUARED,
        "{% for a in 'ab' | slice(300000000) %}{% endfor %}",
        "{{ lipsum(n=300000000) }}",
        "{{ [" + "1," * 400_000 + "] }}",
    ],
)
def test_a_template_gets_little_time(monkeypatch: pytest.MonkeyPatch, attack: str):
    """Also in a call of C, where a thread could not be stopped."""
    monkeypatch.setattr(template_process, "_SECONDS", 0.2)
    assert "longer than 0.2 seconds" in stopped(attack)


def test_after_one_that_was_stopped_the_next_is_rendered():
    chat = template("{{ 'x' * (messages[0].content | int) }}")
    for _ in range(2):
        assert chat.render(says("3")) == "xxx"
        with pytest.raises(ModelError, match="512 MiB"):
            chat.render(says("3000000000"))
    assert chat.render(says("3")) == "xxx"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "too many .* nested blocks"),
        ("{{ 1 | nothing }}", "No filter named 'nothing'"),
        ("{{ 9 ** 99999 }}", "Exceeds the limit"),
        ("{{ \x1b[2J }}", "unexpected char '.x1b'"),
    ],
)
def test_a_template_that_cannot_be_compiled_is_broken(source: str, why: str):
    with pytest.raises(ModelError, match=f"the chat template is broken: {why}") as told:
        template(source)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ range(999999) }}", "Range too big"),
        ("{{ 'a'.encode('nothing') }}", "unknown encoding"),
        ("{{ undefined.undefined }}", "'undefined' is undefined"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ raise_exception(9 ** (messages | length * 99999)) }}", "TemplateError"),
    ],
)
def test_what_python_refuses_is_a_refusal(source: str, why: str):
    with pytest.raises(ConfigError, match=f"{REFUSES}{why}"):
        template(source).render(HELLO)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a\x1b]0;x\x07b\x9b", "a\ufffd]0;x\ufffdb\ufffd"),
        (" a\r\n\u2028\x1c b\u202ec ", "a b\ufffdc"),
        ("\ud800", "\ufffd"),
        ("x" * 99_999, "x" * 300),
        ("", "TemplateError"),
    ],
)
def test_the_words_of_a_template_are_a_short_line_without_controls(
    words: str, shown: str
):
    with pytest.raises(ConfigError) as caught:
        shared("{{ raise_exception(messages[0].content) }}").render(says(words))
    assert str(caught.value) == REFUSES + shown


def test_a_template_may_be_large_but_not_without_end():
    assert template("x" * 1000).render(HELLO) == "x" * 1000
    with pytest.raises(ModelError, match="has 1048577 characters"):
        template("x" * ((1 << 20) + 1))


def test_a_conversation_may_be_long_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
):
    assert shared(CONTENT).render(says("é" * 3_000_000)) == "é" * 3_000_000
    monkeypatch.setattr(template_process, "_LINE", 1000)
    with pytest.raises(ConfigError, match="the conversation has 2.* bytes"):
        shared(CONTENT).render(says("é" * 1000))


# The process.


def pid(chat: ChatTemplate) -> int:
    child = chat._renderer._child
    assert child
    return child._process.pid


def wait_for_end_of(process: int) -> None:
    """Of one that is not a child of ours."""
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_one_process_renders_until_it_is_killed():
    chat = template("{{ messages[0].content or raise_exception('say it') }}")
    first = pid(chat)
    assert chat.render(HELLO) == "héllo"
    with pytest.raises(ConfigError, match="say it"):
        chat.render(says(""))
    assert chat.render(HELLO) == "héllo"
    assert pid(chat) == first
    for _ in range(3):
        os.kill(pid(chat), signal.SIGKILL)
        assert chat.render(HELLO) == "héllo"
    assert pid(chat) != first
    assert not psutil.pid_exists(first)  # nor is it a zombie


def test_a_process_ends_with_its_template():
    chat = template("x")
    first = pid(chat)
    chat.close()
    assert not psutil.pid_exists(first)
    assert chat.render(HELLO) == "x"
    second = pid(chat)
    del chat
    gc.collect()
    assert not psutil.pid_exists(second)


def test_nothing_is_left_of_a_template_that_is_broken():
    before = {process.pid for process in psutil.Process().children()}
    with pytest.raises(ModelError, match="broken"):
        template("{% if %}")
    assert {process.pid for process in psutil.Process().children()} <= before


def test_threads_may_share_a_template():
    chat = template(CONTENT)
    wrong = []

    def render(name: str) -> None:
        for i in range(50):
            if chat.render(says(f"{name}{i}")) != f"{name}{i}":
                wrong.append((name, i))

    threads = [threading.Thread(target=render, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_answer_that_was_not_waited_for_is_not_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
):
    chat, exchange = template(CONTENT), template_process._Child._exchange

    def interrupted(self: template_process._Child, request: bytes) -> bytes:
        monkeypatch.setattr(template_process._Child, "_exchange", exchange)
        assert self._process.stdin
        self._process.stdin.write(request)
        self._process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(template_process._Child, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.render(says("first"))
    assert chat.render(says("second")) == "second"


_PARENT = """
import os, signal, sys
from edgecs.text import template_process
from edgecs.testing.fakes import ByteTokenizer
from edgecs.text.chat_template import ChatTemplate

template_process._SECONDS = 1
tokenizer = ByteTokenizer()
tokenizer.chat_template = "{{ 9 ** (big or 0) }}"
child = ChatTemplate(tokenizer)._renderer._child
child._process.stdin.write(sys.argv[1].encode() + b"\\n")
child._process.stdin.flush()
print(child._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("request_under_way", ['{"big": 0}', '{"big": 999999999}'])
def test_a_process_does_not_outlive_a_parent_that_is_killed(request_under_way: str):
    command = [sys.executable, "-c", _PARENT, request_under_way]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    wait_for_end_of(int(done.stdout))


def test_a_parent_without_streams_has_its_templates_rendered(tmp_path: Path):
    script = f"""
import os
for stream in (0, 1, 2):
    os.close(stream)
from pathlib import Path
from edgecs.testing.fakes import ByteTokenizer
from edgecs.text.chat_template import ChatTemplate

tokenizer = ByteTokenizer()
tokenizer.chat_template = {CONTENT!r}
text = ChatTemplate(tokenizer).render([{{"role": "user", "content": "hi"}}])
Path({str(tmp_path / "said")!r}).write_text(text)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "said").read_text() == "hi"


def test_without_a_python_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    # There sys.executable is the application, which would start itself for ever.
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ModelError, match="needs a Python interpreter.*--raw"):
        template("x")
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ModelError, match="needs a Python interpreter.*--raw"):
        template("x")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ModelError, match="No such file or directory.*--raw"):
        template("x")


_READY = """import sys
def say(text): print(text, flush=True)
def ask(): return sys.stdin.readline()
say('["done", ""]'); ask(); say('["done", ""]'); ask()
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit", "does not start .*--raw"),
        ("while True: pass", "does not start .*--raw"),
        ("import os; os.write(1, bytes(99999))", "does not start .*--raw"),
        (_READY, r"stopped \(its process died\).*--raw"),
        (f"{_READY}while True: say('x' * 999)", "returned invalid data.*--raw"),
        (f"{_READY}while True: sys.stdout.write('x' * 999)", "writes too much.*--raw"),
        (f"{_READY}say('[]')", "returned invalid data.*--raw"),
        (f"{_READY}say('[' * 50_000)", "returned invalid data.*--raw"),
        (f"{_READY}sys.stdout.buffer.write(bytes([34, 255, 34, 10]))", "invalid data"),
    ],
)
def test_a_process_that_is_not_itself_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
):
    """As one would be whose template has found its way out of the sandbox."""
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(template_process, "_CHILD", tmp_path / "child.py")
    monkeypatch.setattr(template_process, "_LINE", 60_000)
    if "pass" in program:
        monkeypatch.setattr(template_process, "_START", 0.2)
    with pytest.raises(ModelError, match=why) as caught:
        template("x").render(HELLO)
    assert "\n" not in str(caught.value)
