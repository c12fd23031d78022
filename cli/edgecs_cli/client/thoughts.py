"""How a model of a server writes its thoughts, which its template and tokens tell.

A server leaves the control tokens that mark thoughts out of the texts of
/v1/completions, so the text of an answer is made here from its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgecs.text.detokenizer import TextStream
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.client.answered import Piece

Ask = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""A path and the body of a request -> the JSON of the response."""


def marks_of(form: AnswerForm, ask: Ask) -> dict[int, bytes]:
    """The tokens that mark thoughts. Raises ServerLost, ServerRefused."""
    found = dict[int, bytes]()
    for text in form.markers if form.thinks else ():
        tokens = ask("/tokenize", {"content": text, "add_special": False}).get("tokens")
        if isinstance(tokens, list) and len(tokens) == 1 and type(tokens[0]) is int:
            found[tokens[0]] = text.encode()
    return found


def with_marks(
    pieces: Iterator[Piece], marks: Mapping[int, bytes], stop: Sequence[str]
) -> Iterator[Piece]:
    """Pieces whose texts have what marks thoughts."""
    stream, last = TextStream(stop), None
    for piece in pieces:
        text = stream.push(marks.get(piece.id) or piece.data)
        last = piece._replace(text=text + (stream.flush() if piece.ends else ""))
        yield last
    if last is not None and (rest := stream.flush()):
        yield last._replace(text=rest)
