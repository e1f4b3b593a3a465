"""Bounds on the connections of a reward server: how many at once, and for how long each.

Before its headers are whole nothing is known of a client, not even whether it has the token. So connections are bounded
here, where bytes come in, and not by the application, which sees whole headers only.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_models.loading.extras import extra

if TYPE_CHECKING:
    import uvicorn

BACKLOG = 64
"""Connections that may wait to be accepted; each takes a descriptor for a moment, even if it is then closed."""
GRACE = 30
"""Seconds that open questions have when the server is asked to leave."""


@dataclass(frozen=True)
class Connections:
    """What clients may take of a server before it knows who they are.

    Attributes:
        most: Connections at once; further ones are closed at once.
        head: Seconds from connecting, or from the last answer, to the end of the next question's headers.
        whole: Seconds from there to the end of the answer; more than the time for a question to arrive and be answered.
    """

    most: int = 256
    head: float = 30.0
    whole: float = 300.0

    @property
    def descriptors(self) -> int:
        """How many file descriptors they take at most."""
        return self.most + BACKLOG


def server_of(application: Callable[..., Any], connections: Connections) -> "uvicorn.Server":
    """Return a server of an ASGI application that logs errors of its own and nothing that a client does.

    Raises:
        RewardError: If uvicorn is not installed.
    """
    uvicorn = extra("serve-reward", "uvicorn", "serve")
    config = uvicorn.Config(
        application,
        http=_protocol(connections),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)


def _protocol(connections: Connections) -> type[asyncio.Protocol]:
    # h11 whatever else is installed: uvicorn always has it, and it bounds the size of headers.
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        listening = True  # for headers; False from their end to that of the answer

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.clock = _Clock(self.loop, transport)
            if len(self.connections) > connections.most:
                transport.abort()
            else:
                self.clock.start(connections.head)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            begun = self.cycle is not None  # pyright: ignore[reportUnnecessaryComparison]  # before the first question
            if self.listening and begun and not self.cycle.response_complete:
                self.listening = False
                self.clock.start(connections.whole)

        def on_response_complete(self) -> None:
            super().on_response_complete()  # begins with the next question, where it is there already
            self.listening = self.cycle.response_complete
            self.clock.start(connections.head if self.listening else connections.whole)

        def connection_lost(self, exc: Exception | None) -> None:
            self.clock.stop()
            super().connection_lost(exc)

    return Bounded


class _Clock:
    """Ends a connection when its time is up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop, self._transport = loop, transport
        self._end: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Begin anew."""
        self.stop()
        if not self._transport.is_closing():
            # Aborted and not closed: that would wait for a client that does not read.
            self._end = self._loop.call_later(seconds, self._transport.abort)

    def stop(self) -> None:
        if self._end is not None:
            self._end.cancel()
