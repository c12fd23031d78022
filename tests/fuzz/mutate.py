"""Changes that files, JSON and texts may have met on their way, or were given."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536)
NUMBERS += (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
FLOATS = ("nan", "inf", "-inf", "1e400", "-0.0", "1e-320", "0.5")
TEXTS = (
    "",
    " ",
    "\0",
    "\x1b]52;c;aGk=\x07",
    "\x1b[2J\x9b31m",
    "a" * 5000,
    "../../x",
    "~nosuchuser/x",
    "/dev/zero",
    "-rf",
    "--help",
    "%s%n{}",
    "日本🙂\u202e",
    "\ud800",
    "²",
    "{{ x }}",
    "null",
)


def flipped(data: bytes, random: Random, within: int | None = None) -> bytes:
    """A file with some bytes that are others, cut off, doubled or left out.

    within: bytes at the start that are hit most often, where headers are.
    """
    changed = bytearray(data)
    size = min(within or len(data), len(data))
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        at = random.randrange(size if random.random() < 0.8 else len(changed))
        at = min(at, len(changed) - 1)
        kind = random.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at] = random.randrange(256)
        elif kind == 2:
            width = random.choice((4, 8))
            number = random.choice(NUMBERS) % (1 << 8 * width)
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            end = at + random.randrange(1, 64)
            changed[at:at] = changed[at:end]
        else:
            del changed[at : at + random.randrange(1, 64)]
        size = min(size, len(changed))
    return bytes(changed)


def nested(depth: int, random: Random) -> str:
    """Brackets within brackets."""
    open_, close = random.choice((("[", "]"), ('{"a":', "}"), ("(", ")")))
    return open_ * depth + "1" + close * depth


def value(random: Random, depth: int = 2) -> Any:
    """Any JSON value, often an odd one."""
    kind = random.randrange(8 if depth else 5)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return float(random.choice(FLOATS))
    if kind == 2:
        return random.choice(TEXTS)
    if kind == 3:
        return random.choice((None, True, False))
    if kind == 4:
        return random.random()
    if kind < 7:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    keys = random.sample(TEXTS, random.randrange(3))
    return {key: value(random, depth - 1) for key in keys}


def changed(tree: Any, random: Random) -> Any:
    """JSON in which some values are others, gone, or elsewhere."""
    if random.random() < 0.1:
        return value(random)
    if isinstance(tree, dict) and tree:
        found = dict(tree)
        key = random.choice(list(found))
        if random.random() < 0.15:
            del found[key]
        elif random.random() < 0.1:
            found[random.choice(TEXTS)] = value(random)
        else:
            found[key] = changed(found[key], random)
        return found
    if isinstance(tree, list) and tree:
        items = list(tree)
        at = random.randrange(len(items))
        if random.random() < 0.2:
            del items[at]
        elif random.random() < 0.2:
            items += items
        else:
            items[at] = changed(items[at], random)
        return items
    return value(random)


def json_text(tree: Any, random: Random) -> bytes:
    """Changed JSON as text, sometimes no JSON at all."""
    if random.random() < 0.1:
        return nested(random.choice((10, 1000, 100_000)), random).encode()
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    return flipped(text, random) if random.random() < 0.3 else text


def words(random: Random, pieces: tuple[str, ...], most: int = 12) -> str:
    """A text of some of the pieces and of odd ones."""
    chosen = random.choices(pieces, k=random.randrange(1, most))
    if random.random() < 0.4:
        chosen.insert(random.randrange(len(chosen)), random.choice(TEXTS))
    return random.choice(("", " ")).join(chosen)
