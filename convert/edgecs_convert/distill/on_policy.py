"""Answers written by a drafter, scored by its target.

Training on its own text prepares a drafter for drafting (on-policy distillation,
DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from edgecs.core.context import Tokens
from edgecs.engines.llama.library import has_amx
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.onnx.thread import Aside
from edgecs.errors import Cancelled
from edgecs_convert.distill.decoder import Decoder
from edgecs_convert.distill.parallel_decode import judged, many_sequences
from edgecs_convert.distill.samples import Sample, read_samples, write_shard
from edgecs_convert.distill.texts import Vocabulary

_TOGETHER = 32  # answers in parallel
_ROOM = 512  # tokens of a prompt and its answer
_WHOLE = "whole"  # the file that marks a complete folder

Tell = Callable[[str], None]


def own_samples(
    decoder: Decoder,
    vocabulary: Vocabulary,
    model: LlamaModel,
    prompts: Sequence[Sample],
    folder: Path,
    cancel: threading.Event,
    tell: Tell,
    *,
    tokens: int,
    most: int,
    threads: int,
    seed: int,
) -> list[Sample]:
    """Sampled answers of at most `most` tokens to the prompts of samples, scored.

    tokens: of all answers. They are stored in a folder and read from it if it is
    complete. Raises Cancelled, DistillError.
    """
    if not (folder / _WHOLE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        written = 0
        with (
            closing(Aside(has_amx())) as aside,
            many_sequences(
                model, cancel, sequences=1, room=_ROOM, threads=threads
            ) as target,
        ):
            answers = _answers(decoder, vocabulary, model, prompts, most, seed)
            while few := aside(next, answers, None):
                if cancel.is_set():
                    raise Cancelled("stopped while the drafter was writing")
                samples = [
                    judged(target, i, said, start)
                    for i, (said, start) in enumerate(few)
                ]
                write_shard(folder, samples)
                written += sum(sample.size for sample in samples)
                tell(f"the drafter's own answers: {written:,} of {tokens:,} tokens")
                if written >= tokens:
                    break
        (folder / _WHOLE).touch()
    return [*read_samples(folder)]


def _answers(
    decoder: Decoder,
    vocabulary: Vocabulary,
    model: LlamaModel,
    prompts: Sequence[Sample],
    most: int,
    seed: int,
) -> Iterator[list[tuple[Tokens, int]]]:
    """Batches of texts with the starts of their answers; prompts may repeat."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    fits = [prompts[i] for i in order.tolist() if prompts[i].start + most <= _ROOM]
    number = 0
    while fits:
        few = [fits[(number + i) % len(fits)] for i in range(_TOGETHER)]
        number += _TOGETHER
        yield _write(decoder, vocabulary, few, most, seed + number, model)


def _write(
    decoder: Decoder,
    vocabulary: Vocabulary,
    few: Sequence[Sample],
    most: int,
    seed: int,
    model: LlamaModel,
) -> list[tuple[Tokens, int]]:
    """One answer to each prompt, without answers of one token."""
    known = vocabulary.rows
    ends = vocabulary.rows_of(np.array(sorted(model.vocabulary.ends), dtype=np.int32))
    longest = max(sample.start for sample in few)
    rows = np.zeros((len(few), longest), dtype=np.int64)
    seen = np.zeros_like(rows)
    for i, sample in enumerate(few):
        prompt = vocabulary.rows_of(sample.tokens[: sample.start])
        rows[i, longest - sample.start :] = np.minimum(prompt, decoder.ids.size - 1)
        seen[i, longest - sample.start :] = 1
    on = decoder.model.device
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        said = decoder.model.generate(
            torch.from_numpy(rows).to(on),
            attention_mask=torch.from_numpy(seen).to(on),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=most,
            eos_token_id=[int(row) for row in ends if row < known],
            pad_token_id=0,
            suppress_tokens=[known] if decoder.ids.size > known else None,
        )[:, longest:]
    found = []
    for sample, answer in zip(few, said.cpu().numpy(), strict=True):
        ended = np.isin(answer, ends)
        size = int(ended.argmax()) + 1 if ended.any() else answer.size
        if size > 1:
            tokens = vocabulary.ids[answer[:size]]
            whole = np.concatenate((sample.tokens[: sample.start], tokens))
            found.append((whole.astype(np.int32), sample.start))
    return found
