"""A small real server that speaks the chat interface, well or badly, over a socket."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge"

Answer = tuple[int, bytes | Iterator[bytes], dict[str, str]]
"""Status, body (whole or in drops) and headers."""


@dataclass
class ChatServer:
    """What the server was asked, and where it is.

    Attributes:
        url: Its base address.
        asked: Bodies of the questions, in order of arrival.
        headers: Their headers.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Answer], models: Answer | None = None) -> Iterator[ChatServer]:
    """Serve `reply(body, number of the question)` on a free port of this machine."""
    state, lock = ChatServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(models or (200, json.dumps({"data": [{"id": MODEL}]}).encode(), {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.asked)
                state.asked.append(body)
                state.headers.append(dict(self.headers))
            self._send(reply(body, number))

        def _send(self, answer: Answer) -> None:
            status, body, headers = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            whole = isinstance(body, bytes)
            self.send_header("Content-Length", str(len(body) if whole else 10_000))
            self.end_headers()
            try:
                for drop in [body] if whole else body:
                    self.wfile.write(drop)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):  # the client had enough
                self.close_connection = True
            if not whole:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def place(**probabilities: float) -> dict[str, Any]:
    """Return the log-probabilities at one place; "_" in a name stands for a space."""
    told = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in probabilities.items()]
    return {**max(told, key=lambda one: one["logprob"]), "top_logprobs": told}


def chat(*places: dict[str, Any], text: str = "yes") -> Answer:
    """Return a well-formed answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": {"content": list(places)}}
    return 200, json.dumps({"model": MODEL, "choices": [choice]}).encode(), {}


def drops(seconds: float) -> Iterator[bytes]:
    """Send a byte now and then, without end."""
    while True:
        yield b" "
        time.sleep(seconds)
