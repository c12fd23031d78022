"""Prometheus metrics, with the names of vLLM and llama-server."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edgecs.server.engine import Engine

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
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        scheduler = self._engine.scheduler
        totals = scheduler.totals
        for name, attribute, text in _COUNTS:
            value = getattr(totals, attribute)
            yield CounterMetricFamily(f"edgecs:{name}", text, value=value)
        by_position = CounterMetricFamily(
            "edgecs:spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens in answers by their position in the draft.",
            labels=["position"],
        )
        for position, count in enumerate(list(totals.by_position)):
            by_position.add_metric([str(position)], count)
        yield by_position
        states = [slot.state for slot in scheduler.slots()]
        for name, value, text in (
            (
                "requests_processing",
                len(states) - states.count("idle"),
                "Answers now.",
            ),
            ("requests_deferred", scheduler.queued, "Requests that wait for a slot."),
            ("slots", len(states), "Slots."),
        ):
            yield GaugeMetricFamily(f"edgecs:{name}", text, value=value)


def exposition(engine: Engine) -> bytes:
    """All metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Counts(engine))
    return generate_latest(registry)
