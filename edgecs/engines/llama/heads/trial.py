"""In a child process: compute with a head whose file may crash llama.cpp."""

from __future__ import annotations

import threading
from pathlib import Path

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.llama.heads.files import HEAD_FILES
from edgecs.engines.llama.heads.llama_head import LlamaHead
from edgecs.engines.llama.heads.mtp import MtpHead
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions


def attempt_head(path: Path, target: Path, options: LoadOptions) -> None:
    """Read some tokens without states, and draft; the target computes nothing.

    target: `path` itself for the MTP heads in it.
    """
    cancel = threading.Event()
    theirs = LlamaLM(LlamaModel(target, options, cancel), options, cancel)
    head: LlamaHead
    if path == target:
        head = MtpHead(theirs, cancel, threads=1)
    else:
        model = LlamaModel(path, options, cancel, head=True)
        model.vocabulary.pieces()
        made = HEAD_FILES[model.architecture]
        head = made(model, theirs, cancel, threads=1)
    context = Context([token % theirs.vocab_size for token in range(8)])
    score_one(head, context)
    for tail in ([1], [1, 2], [1, 2, 3]):
        score_one(head, context.with_tail(tail))
