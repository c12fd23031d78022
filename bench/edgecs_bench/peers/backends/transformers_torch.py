"""transformers on PyTorch: plain, with its prompt lookup, or with an assistant model.

It computes a GGUF's weights in 32 bits ("dequantised"), so it reads several times the
bytes and rounds differently from llama.cpp. Drafters are created for every answer, with
one exception: transformers may adapt an assistant's draft length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from gguf import GGUFReader

# Tokens at which llama.cpp ends an answer, besides the end token of the file.
_ENDS = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
}


class Heard(Protocol):
    """Receives tokens and the counts of drafted tokens."""

    tested: int | None
    accepted: int | None

    def __call__(self, tokens: list[int]) -> None:
        """Receives more tokens."""


class Streamer(transformers.generation.BaseStreamer):  # type: ignore[misc]
    """Passes on all tokens except the prompt, which comes first."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._prompt = True

    def put(self, value: Any) -> None:
        """Passes tokens on."""
        if not self._prompt:
            self._heard(value.flatten().tolist())
        self._prompt = False

    def end(self) -> None:
        """Does nothing at the end."""


class Adapter:
    """A loaded model, and an assistant if there is one."""

    def __init__(self, hello: dict[str, Any]) -> None:
        torch.set_num_threads(hello["threads"])
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.version = f"{versions}, dequantised to float32"
        self.children: list[int] = []
        self._model = _model(hello["model"])
        self._options: dict[str, Any] = {"eos_token_id": _ends(hello["model"])}
        if lookup := hello["config"].get("prompt_lookup_num_tokens"):
            self._options["prompt_lookup_num_tokens"] = lookup
        if hello["draft"]:
            self._options["assistant_model"] = _model(hello["draft"])
        self._heard: Heard | None = None
        self._count_drafts()

    def _count_drafts(self) -> None:
        """Wraps every candidate generator to count drafted and accepted tokens."""
        make = self._model._get_candidate_generator

        def counted(*arguments: Any, **options: Any) -> Any:
            generator = make(*arguments, **options)
            update = generator.update_candidate_strategy

            def told(ids: Any, scores: Any, matches: Any) -> None:
                assert self._heard is not None
                self._heard.tested = (self._heard.tested or 0) + scores.shape[1] - 1
                self._heard.accepted = (self._heard.accepted or 0) + int(matches)
                update(ids, scores, matches)

            generator.update_candidate_strategy = told
            return generator

        self._model._get_candidate_generator = counted

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Generates until an end token or the limit."""
        self._heard = heard
        ids = torch.tensor([question["ids"]])
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=question["n"],
                do_sample=False,
                pad_token_id=self._options["eos_token_id"][0],
                streamer=Streamer(heard),
                **self._options,
            )


def _model(path: str) -> Any:
    file = Path(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model.eval()


def _ends(path: str) -> list[int]:
    """The tokens that end an answer."""
    fields = GGUFReader(path).fields
    own = int(fields["tokenizer.ggml.eos_token_id"].contents())
    tokens = fields["tokenizer.ggml.tokens"].contents()
    return [own, *(i for i, text in enumerate(tokens) if text in _ENDS and i != own)]


def load(hello: dict[str, Any]) -> Adapter:
    """Loads the model of the first request."""
    return Adapter(hello)
