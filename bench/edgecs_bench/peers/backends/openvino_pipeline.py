"""OpenVINO GenAI on the CPU, which reads some GGUFs itself: plain, or prompt lookup.

It converts the weights to its own quantised format when it loads them. A draft model
must be in OpenVINO's format; with a GGUF it fails with an error. It does not report the
accepted tokens of a single answer.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import openvino
import openvino_genai

_CACHE_GB = 1  # of the KV cache; a prompt and its answer need far less


class Heard(Protocol):
    """Receives tokens."""

    def __call__(self, tokens: list[int]) -> None:
        """Receives more tokens."""


class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Passes on one token, or those of a round."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        """Passes tokens on."""
        self._heard(token if isinstance(token, list) else [token])
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Does nothing at the end."""


class Adapter:
    """A loaded model."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self.version = f"OpenVINO GenAI {version('openvino-genai')}, converted weights"
        self.children: list[int] = []
        self._config = hello["config"]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = _CACHE_GB
        # Without KV_CACHE_PRECISION the cache has 8 bits.
        options = {
            "INFERENCE_NUM_THREADS": hello["threads"],
            "KV_CACHE_PRECISION": "f16",
        }
        if "max_ngram_size" in self._config:
            options["prompt_lookup"] = True
        if hello["draft"]:
            options["draft_model"] = _draft(hello["draft"])
        self._pipeline = openvino_genai.LLMPipeline(
            hello["model"], "CPU", scheduler_config=scheduler, **options
        )

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Generates until an end token or the limit."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = question["n"]
        config.do_sample = config.apply_chat_template = False
        for name in ("num_assistant_tokens", "max_ngram_size"):
            if name in self._config:
                setattr(config, name, self._config[name])
        ids = np.array([question["ids"]], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        self._pipeline.generate(inputs, config, Streamer(heard))


def _draft(path: str) -> Any:
    try:
        return openvino_genai.draft_model(path, "CPU")
    except RuntimeError as error:
        raise RuntimeError(
            "a draft model must be in OpenVINO's own format, not a GGUF"
        ) from error


def load(hello: dict[str, Any]) -> Adapter:
    """Loads the model of the first request."""
    return Adapter(hello)
