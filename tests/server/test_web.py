"""The files of the web page: types, caching, security headers, access."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgecs.server.app import Serving
from edgecs.server.http.guard import Access
from edgecs.server.web import PATHS
from tests.server.scripted import ScriptedEngine, client

STATIC = Path(__file__).parents[2] / "edgecs" / "server" / "page" / "static"
MOST_BYTES = 400_000


def test_every_file_is_served_with_its_type_and_strict_headers():
    types = {"/": "text/html", "/app.js": "text/javascript", "/app.css": "text/css"}
    with client(ScriptedEngine("hi")) as http:
        for path in PATHS:
            reply = http.get(path)
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith(types.get(path, ""))
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy


def test_a_file_that_the_browser_has_is_not_sent_again():
    with client(ScriptedEngine("hi")) as http:
        tag = http.get("/app.js").headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            reply = http.get("/app.js", headers={"if-none-match": known})
            assert (reply.status_code, reply.content) == (304, b""), known
            assert reply.headers["etag"] == tag
        reply = http.get("/app.js", headers={"if-none-match": '"other"'})
        assert reply.status_code == 200


def test_the_page_is_there_while_the_model_is_loading():
    with client(None) as http:
        assert http.get("/").status_code == 200
        assert http.head("/").status_code == 200


def test_the_files_need_no_key_and_the_api_does():
    serving = Serving(access=Access("secret"))
    with client(ScriptedEngine("hi"), serving) as http:
        assert {http.get(path).status_code for path in PATHS} == {200}
        assert http.get("/props").status_code == 401


@pytest.mark.parametrize("key", [None, "secret"])
def test_with_a_key_a_page_may_come_from_any_name_of_the_server(key: str | None):
    origin = {"host": "192.0.2.1:8080", "origin": "http://192.0.2.1:8080"}
    headers = {**origin, "authorization": "Bearer secret"}
    with client(ScriptedEngine("hi"), Serving(access=Access(key))) as http:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        reply = http.post("/v1/chat/completions", json=body, headers=headers)
        assert reply.status_code == (200 if key else 403)
        other = {**headers, "origin": "http://192.0.2.2:8080"}
        reply = http.post("/v1/chat/completions", json=body, headers=other)
        assert reply.status_code == 403


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code():
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\b(src|href)=[\"']?(https?:)?//", page)
    assert not re.search(r"\son\w+=|<style|\sstyle=", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]


def test_the_built_page_is_small_and_has_its_licences():
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < MOST_BYTES
    licences = (STATIC / "licenses.txt").read_text()
    for name in ("markdown-it", "dompurify", "highlight.js"):
        assert re.search(rf"^{name} \d+\.\d+\.\d+ \(", licences, re.M), name
