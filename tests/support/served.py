"""Reward servers for tests: the real one in a thread, and a liar that says whatever it is told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch

from reward_models.base import RewardModel, load_reward
from reward_models.loading.fingerprint import fingerprint
from reward_models.serving.connections import Connections, server_of
from reward_models.serving.server import Settings, application
from reward_models.serving.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@contextmanager
def served(
    model: RewardModel,
    wrapped: Callable[[Application], Application] = lambda app: app,
    rows: int = 16,
    queue: int = 256,
    connections: Connections = Connections(),
    **settings: Any,
) -> Iterator[str]:
    """Serve `model` and yield the address."""
    loaded = load_reward(model, device=torch.device("cpu"))
    service = Service(loaded, rows=rows, queue=queue)
    app = wrapped(application(service, Settings(fingerprint(loaded), **settings)))
    with running(app, connections) as url:
        yield url


@contextmanager
def running(app: Application, connections: Connections = Connections(), port: int = 0) -> Iterator[str]:
    """Run an ASGI application in a thread, as `visalign serve-reward` does, and yield its address."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = server_of(app, connections)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def speaking(*scripts: bytes | None, hold: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """Listen, and answer one connection after another with raw bytes; None resets it, b"" says nothing for `hold` s.

    The last script serves all further connections. Yields the address and what was received.
    """
    heard: list[bytes] = []
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def work() -> None:
            turn = 0
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                script = scripts[min(turn, len(scripts) - 1)]
                turn += 1
                with connection:
                    connection.settimeout(600.0)
                    heard.append(_request(connection))
                    if script is None:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        continue
                    connection.sendall(script)
                    done.wait(hold)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        finally:
            done.set()
            thread.join()


def _request(connection: socket.socket) -> bytes:
    """Read one request whole."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            data += _some(connection)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length:" in line), 0
        )
        while len(body) < length:
            body += _some(connection)
        return head + b"\r\n\r\n" + body
    except (OSError, TimeoutError):
        return data


def _some(connection: socket.socket) -> bytes:
    """Read what comes; a client that goes is an error, and not nothing for ever."""
    if not (some := connection.recv(65536)):
        raise ConnectionResetError
    return some


def reply(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """Return a whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body
