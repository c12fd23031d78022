"""Prometheus metrics, with the names of vLLM and llama-server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edgecs.server.batching.scheduler import Scheduler
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.models.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COUNTS = (
    ("answers", "answers", "Finished answers."),
    ("errors", "errors", "Answers with an error."),
    ("cancelled", "cancelled", "Cancelled or timed-out answers."),
    ("prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("cached_tokens", "cached_tokens", "Prompt tokens found in the KV cache."),
    ("tokens_predicted", "tokens", "Generated tokens."),
    ("calls", "calls", "Decoding calls of the target."),
    ("call_requests", "requests", "Requests in these calls."),
    ("spec_decode_num_drafts", "rounds", "Rounds of the target after the prompt."),
    ("spec_decode_num_draft_tokens", "tested", "Draft tokens that were verified."),
    ("spec_decode_num_accepted_tokens", "accepted", "Draft tokens in answers."),
    ("drafter_faults", "faults", "Drafters that failed in an answer."),
)


class _Counts(Collector):
    def __init__(self, models: Mapping[str, Served]) -> None:
        self._engines = {n: one for n, one in models.items() if isinstance(one, Engine)}
        self._embedding = {
            n: one for n, one in models.items() if isinstance(one, EmbeddingEngine)
        }

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        for name, attribute, text in _COUNTS:
            count = CounterMetricFamily(f"edgecs:{name}", text, labels=["model"])
            for model, engine in self._engines.items():
                count.add_metric([model], getattr(engine.scheduler.totals, attribute))
            yield count
        by_position = CounterMetricFamily(
            "edgecs:spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens in answers by their position in the draft.",
            labels=["model", "position"],
        )
        for model, engine in self._engines.items():
            for at, number in enumerate(list(engine.scheduler.totals.by_position)):
                by_position.add_metric([model, str(at)], number)
        yield by_position
        for attribute, (name, text) in _FILES.items():
            files = CounterMetricFamily(f"edgecs:{name}", text, labels=["model"])
            for model, engine in self._engines.items():
                files.add_metric([model], getattr(engine.scheduler, attribute))
            yield files
        for name, text in _EMBEDDED.items():
            count = CounterMetricFamily(
                f"edgecs:embedding_{name}", text, labels=["model"]
            )
            for model, embedding in self._embedding.items():
                count.add_metric([model], getattr(embedding, name))
            yield count
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"edgecs:{name}", text, labels=["model"])
            for model, engine in self._engines.items():
                gauge.add_metric([model], value(engine.scheduler))
            yield gauge


_EMBEDDED = {
    "requests": "Finished requests for embeddings.",
    "texts": "Texts in these requests.",
    "tokens": "Tokens of these texts.",
}
_FILES = {
    "refused_files": (
        "prefix_cache_refused",
        "Files of the prefix cache that were damaged or forged, and removed.",
    ),
    "dropped_files": (
        "prefix_cache_dropped",
        "Conversations that the prefix cache did not save, as the disk was too slow.",
    ),
}


def _busy(scheduler: Scheduler) -> int:
    return sum(slot.state != "idle" for slot in scheduler.slots())


_GAUGES: Sequence[tuple[str, str, Callable[[Scheduler], int]]] = (
    ("requests_processing", "Answers now.", _busy),
    (
        "requests_deferred",
        "Requests that wait for a slot.",
        lambda scheduler: scheduler.queued,
    ),
    ("slots", "Slots.", lambda scheduler: len(scheduler.slots())),
)


def exposition(models: Mapping[str, Served]) -> bytes:
    """All metrics of some models, by their name, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Counts(models))
    return generate_latest(registry)
