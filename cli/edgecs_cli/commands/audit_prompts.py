"""Prompts of `edgecs audit`: from a file, or built in."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from edgecs.audit.report import Prompt
from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs_cli.options.texts import read_text

Encode = Callable[[str], Tokens]

_TEXTS = {
    "question": "Why is the sky blue at noon and red in the evening? Explain it in a "
    "few sentences.",
    "list": "Make a list of twenty animals, and say of each one how many legs it has.",
    "code": """Write the same class for Triangle, with base and height.

class Square:
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side * self.side

    def describe(self):
        return f"Square of area {self.area()}"
""",
    "table": """Turn every line into a JSON object with the keys name, age and town.

Marta, 31, lives in Lyon
Henrik, 54, lives in Turku
Aisha, 27, lives in Leeds
Paolo, 46, lives in Bari
""",
    "copy": """Copy this text, but write "boat" instead of "cart".

The old cart stood by the gate all winter. In spring we painted the cart green, gave the
cart two new wheels, and pulled the cart up the hill to fetch stones. By summer the cart
was faster than the neighbour's donkey, and everybody wanted to borrow the cart.
""",
}
_THINGS = ("lamp", "kettle", "ladder", "radio", "clock", "saw", "bucket")
_PLACES = ("kitchen", "cellar", "attic", "workshop", "garden")
_STATES = ("works well", "needs a new part", "was lent to a friend", "is quite old")
_LENGTHS = {"to 256": 240, "to 512": 496, "beyond 512": 720}  # tokens


def read_prompts(file: Path) -> list[tuple[str, str]]:
    """Names and texts from JSON Lines. Raises ConfigError."""
    lines = read_text(file).split("\n")
    found = [_prompt(line, n, file) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(
            f"{file} has no prompts: give one JSON object a line, with turns, prompt "
            "or text"
        )
    return found


def _prompt(line: str, number: int, file: Path) -> tuple[str, str]:
    try:
        fields = json.loads(line)
        turns = fields.get("turns") or [fields.get("prompt") or fields.get("text")]
        text = turns[0]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        text = None
    if not (isinstance(text, str) and text.strip()):
        raise ConfigError(
            f"line {number} of {file} is not a prompt: give a JSON object with turns, "
            "prompt or text"
        )
    names = (fields.get(key) for key in ("question_id", "task_id", "id"))
    name = next((name for name in names if name is not None), f"line {number}")
    return str(name), text


def built_in(encode: Encode) -> list[Prompt]:
    """Prompts of several kinds; some end just before a border of a context range."""
    prompts = [Prompt(name, encode(text)) for name, text in _TEXTS.items()]
    notes = [
        f"Note {i}: the {_THINGS[i % 7]} in the {_PLACES[i % 5]} {_STATES[i % 4]}."
        for i in range(1, 140)
    ]
    words = "\n".join(notes).split(" ")

    def tokens(size: int) -> Tokens:
        text = " ".join(words[:size])
        return encode(f"Repeat these notes word for word.\n\n{text}")

    for name, most in _LENGTHS.items():
        size = bisect_right(range(len(words)), most, key=lambda n: tokens(n).size)
        prompts.append(Prompt(f"notes {name}", tokens(max(0, size - 1))))
    return prompts
