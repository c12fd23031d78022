"""The published description of the server, and requests that are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import negative_data_rejection, positive_data_acceptance
from starlette.routing import Route

from edgecs.server.app import Serving, create_app
from edgecs.server.http.guard import Access
from edgecs.server.web import PATHS
from tests.server.scripted import ScriptedEngine, client, serving_of

# A schema does not say which grammars, ids and names there are, so that positive data
# may be refused; and numbers are also read from strings, so that negative data may be
# accepted.
NOT_SAID = [positive_data_acceptance, negative_data_rejection]
LIMIT = settings(max_examples=10, suppress_health_check=[*HealthCheck])


def schema_of(serving: Serving) -> schemathesis.BaseSchema:
    # The host that it gives itself is no name of the server.
    with_hosts = replace(serving, access=replace(serving.access, hosts=["testserver"]))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(with_hosts))


SCHEMA = schema_of(serving_of(ScriptedEngine("<think>a</think>b", "c")))
OPERATIONS = {str(one.ok().label): one.ok() for one in SCHEMA.get_all_operations()}


POSITIVE, NEGATIVE = schemathesis.GenerationMode


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, POSITIVE) for label in OPERATIONS]
    + [(label, NEGATIVE) for label, one in OPERATIONS.items() if one.body],
)
def test_what_the_description_allows_and_forbids_is_answered(label: str, mode: Any):
    operation = OPERATIONS[label]

    @LIMIT
    @given(operation.as_strategy(mode))
    def run(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=NOT_SAID)

    run()


def test_all_paths_are_described():
    with client(ScriptedEngine("x")) as made:
        paths: Mapping[str, Mapping[str, Any]] = made.get("/openapi.json").json()[
            "paths"
        ]
    described = {(path, method.upper()) for path in paths for method in paths[path]}
    app, served = create_app(serving_of(None)), set()
    for route in app.routes:
        assert isinstance(route, Route)
        if route.path in PATHS:  # of the web page
            continue
        methods = route.methods or set()
        kept = methods - {"HEAD"} or methods
        served |= {(route.path.replace(":path", ""), method) for method in kept}
    assert described == served


def test_every_path_but_those_of_health_needs_the_key():
    with client(ScriptedEngine("x"), Serving(access=Access("secret"))) as made:
        for label in OPERATIONS:
            method, path = label.split()
            status = made.request(method, path).status_code
            assert status == (200 if path.endswith("/health") else 401)
