"""Clients that never finish: they take few descriptors, for a short while, and no line of the log."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from reward_models.measures.colour import Colour
from reward_models.serving.connections import Connections
from reward_models.serving.wire import TENSORS
from tests.support.questions import post
from tests.support.served import Message, Receive, Send, running, served

TOKEN = "a-token-of-more-than-16-letters"
LONG = 600.0  # seconds; nothing here takes as long, however busy the machine is
SOON = 0.2  # seconds that a server of these tests is patient; nothing right has to happen within them
HALF = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: "


@contextmanager
def connected(url: str, said: bytes = b"") -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        connection.sendall(said)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Return what still comes until the other side closes."""
    found = b""
    try:
        while some := connection.recv(2**16):
            found += some
    except ConnectionResetError:
        pass
    return found


def health(url: str) -> int:
    return httpx.get(f"{url}/health", timeout=LONG).status_code


def test_half_open_requests_take_so_many_connections_and_no_more() -> None:
    with served(Colour(), token=TOKEN, connections=Connections(most=4, head=LONG)) as url:
        with ExitStack() as stack:
            first = [stack.enter_context(connected(url, HALF)) for _ in range(4)]
            for connection in first:
                connection.sendall(b"Bearer")
            for _ in range(40):
                with connected(url) as connection:
                    assert rest(connection) == b""
        for _ in range(1000):  # that the four have gone is heard a moment later
            try:
                assert health(url) == 200
                break
            except httpx.TransportError:
                continue
        else:
            pytest.fail("no connection became free")


@pytest.mark.parametrize(
    "said", [b"", HALF, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nG"]
)
def test_what_is_not_said_in_time_is_not_waited_for(said: bytes) -> None:
    with served(Colour(), token=TOKEN, connections=Connections(head=SOON)) as url, connected(url, said) as connection:
        answer = rest(connection)  # it ends
        assert answer.count(b"HTTP/1.1 200 OK") == said.count(b"\r\n\r\n")


def test_drops_of_a_header_win_no_time() -> None:
    with served(Colour(), token=TOKEN, connections=Connections(head=SOON)) as url, connected(url, HALF) as connection:
        for _ in range(10_000):  # below the size of headers that is refused by itself
            try:
                connection.sendall(b"x")
            except (BrokenPipeError, ConnectionResetError):
                break
            threading.Event().wait(0.005)
        else:
            pytest.fail("the connection is still open")


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    ended = threading.Event()

    async def endless(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        ended.set()
        await asyncio.sleep(0)

    with running(endless, Connections(whole=SOON)) as url, connected(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert ended.wait(LONG)


def test_a_question_takes_the_time_it_needs_with_its_headers_behind_it() -> None:
    with served(Colour(), connections=Connections(head=SOON)) as url, connected(url) as connection:
        body = b"0123456789"
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        threading.Event().wait(2 * SOON)  # longer than headers may take
        connection.sendall(body)
        assert b" 400 " in rest(connection)


def test_nothing_that_clients_do_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    upgrade = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    begun = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: 99\r\n\r\n12345".encode()
    with served(Colour(), connections=Connections(most=8)) as url:
        for _ in range(5):
            for said in (b"\x1b[31m\xff\xfe\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", upgrade, b"GET /" + b"x" * 2**17):
                with connected(url, said) as connection:
                    rest(connection)
            with connected(url, begun):
                pass
        for _ in range(1000):
            try:
                assert post(url).status_code == 200
                break
            except httpx.TransportError:
                continue
    said = capfd.readouterr()
    assert said.err + said.out == ""
