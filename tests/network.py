"""A server on this machine that plays the network: files, a package index, a hub."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import time
import zipfile

_BLOCK = 64 << 10  # bytes that are sent together by a slow server


class Server(http.server.ThreadingHTTPServer):
    """Serves files from memory, with ranges; can hang up early."""

    daemon_threads = True
    files: dict[str, bytes]
    hang_up_after: int | None = None
    stall_at: int | None = None
    hub: tuple[str, dict[str, bytes]] | None = None  # commit, files of user/repo
    know_ranges = True
    pause = 0.0  # seconds after each 64 KiB

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def offer_wheel(self, name: str, member: str, data: bytes) -> None:
        """Becomes a package index with one wheel, which has one file in it.

        name: of the wheel, PACKAGE-VERSION-py3-none-any.whl.
        """
        package, version = name.split("-")[:2]
        about = (
            "Metadata-Version: 2.1\n"
            f"Name: {package.replace('_', '-')}\nVersion: {version}\n"
        )
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, data)
            for file, text in (
                ("METADATA", about),
                ("WHEEL", "Wheel-Version: 1.0\n"),
                ("RECORD", ""),
            ):
                archive.writestr(f"{package}-{version}.dist-info/{file}", text)
        digest = hashlib.sha256(wheel.getvalue()).hexdigest()
        meta = hashlib.sha256(about.encode()).hexdigest()
        page = (
            f'<a href="/{name}#sha256={digest}" '
            f'data-core-metadata="sha256={meta}">{name}</a>'
        )
        self.files = {
            f"/simple/{package.replace('_', '-')}/": page.encode(),
            f"/{name}": wheel.getvalue(),
            f"/{name}.metadata": about.encode(),
        }


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server.hub:
            self.answer_like_the_hub(*self.server.hub)

    def answer_like_the_hub(self, commit: str, files: dict[str, bytes]) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/user/repo/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            data, headers = json.dumps(entries).encode(), {}
        elif path.startswith("/api/models/user/repo"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "user/repo", "sha": commit, "siblings": siblings}
            data, headers = json.dumps(about).encode(), {}
        else:
            data = files[path.rpartition("/")[2]]
            digest = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
        start = 0
        if self.command == "GET" and (wanted := self.headers.get("Range")):
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self.send(data[start:])

    def send(self, data: bytes) -> None:
        """As fast as the server is to be."""
        if not self.server.pause:
            self.wfile.write(data)
            return
        for at in range(0, len(data), _BLOCK):
            self.wfile.write(data[at : at + _BLOCK])
            time.sleep(self.server.pause)

    def do_GET(self) -> None:
        if self.server.hub:
            return self.answer_like_the_hub(*self.server.hub)
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        if wanted and server.know_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        kind = "text/html" if self.path.endswith("/") else "application/zip"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.stall_at and self.path.endswith(".whl"):
            self.wfile.write(data[: server.stall_at])
            server.stalled.set()
            server.go_on.wait(60)
        else:
            self.send(data[start:][: server.hang_up_after])
