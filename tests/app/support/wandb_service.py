"""A small service that answers the W&B package as the real one does, until it falls silent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "sniperface", "entity": {"id": "e", "name": "me"}}
BUCKET = {"id": "x", "name": "run", "displayName": "run", "description": "", "config": "{}", "historyLineCount": 0}
# Parts of a GraphQL query, and the answer's data.
ANSWERS: dict[str, Any] = {
    "UpsertBucket": {"upsertBucket": {"bucket": {**BUCKET, "sweepName": None, "project": PROJECT}, "inserted": True}},
    "RunResumeStatus": {"model": {**PROJECT, "bucket": None}},
    "viewer": {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
    "createRunFiles": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}},
}


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.falls_silent_after: str | None = None  # a part of the path of a request
        self.silent = threading.Event()
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.silent.is_set():
            self.server.over.wait()
            return
        query = json.loads(body).get("query", "") if self.path == "/graphql" else ""
        data = next((answer for part, answer in ANSWERS.items() if part in query), {})
        told = json.dumps({"data": data} if query else {}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)
        if self.server.falls_silent_after and self.server.falls_silent_after in self.path:
            self.server.silent.set()

    do_GET = do_PUT = do_POST  # noqa: N815 - names of the base class

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def service() -> Iterator[Service]:
    with Service() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.over.set()
            made.shutdown()
            thread.join()
