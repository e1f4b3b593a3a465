"""The HTTP side of a reward server: access, limits and messages."""

import asyncio
import hmac
import importlib.metadata
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from reward_models.serving.known_answers import pack
from reward_models.serving.service import Outcome, Service
from reward_models.serving.wire import (
    JSON,
    PROTOCOL,
    TENSORS,
    VERSION,
    Answer,
    Claim,
    Limits,
    ParsedQuestion,
    Refusal,
    read,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

# This file has no `from __future__ import annotations`: FastAPI reads the types of handlers, which are imported where
# the application is made.

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "pillow")
"""What scores may depend on beside weights and code; reported by /info."""


@dataclass(frozen=True)
class Settings:
    """How a reward is served.

    Attributes:
        fingerprint: Of the reward.
        token: What clients have to send; None admits all clients.
        limits: Of one question.
        held: Bytes of all questions held at once, from their first byte to their answer: bodies, and what is unpacked
            from them.
        patience: Seconds for a question to arrive, and for it to be answered.
        timeout: Seconds that one call of the scorer may take; then it is taken for stuck, and the service given up.
    """

    fingerprint: str
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    held: int = 2**30
    patience: float = 120.0
    timeout: float = 600.0


def application(service: Service, settings: Settings) -> "FastAPI":
    """Return the FastAPI application of a service."""
    import fastapi
    from fastapi.responses import JSONResponse, Response
    from starlette.requests import ClientDisconnect

    door = _Door(service, settings)

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(service, settings.timeout))
        yield
        watch.cancel()
        await asyncio.to_thread(service.close)

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.exception_handler(Refusal)
    async def refuse(request: fastapi.Request, refusal: Refusal) -> JSONResponse:
        # What is left of a body that is not read cannot be told from the next question.
        headers = {"Connection": "close"}
        if refusal.wait is not None:
            headers["Retry-After"] = str(refusal.wait)
        error = {"code": refusal.code, "message": str(refusal)}
        return JSONResponse({"version": VERSION, "error": error}, refusal.status, headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: fastapi.Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it; without it the log would have a traceback for each

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    @app.get("/info")
    async def info(request: fastapi.Request) -> JSONResponse:
        door.admit(request.headers.get("authorization"))
        return JSONResponse(door.info())

    @app.get("/v1/known-answers")
    async def known_answers(request: fastapi.Request) -> Response:
        door.admit(request.headers.get("authorization"))
        return Response(pack(service.loaded.model.known_answers()), media_type=TENSORS)

    @app.post("/v1/score")
    async def score(request: fastapi.Request) -> Response:
        door.admit(request.headers.get("authorization"))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "content_encoding", "bodies are not compressed")
        with door.room(request.headers.get("content-length")) as claim:
            body = await door.body(request.stream())
            answer = await door.score(kind, body, claim)
        return Response(answer.model_dump_json(), media_type=JSON)

    return app


async def _watch(service: Service, timeout: float) -> None:
    """Give the service up when one call of its model takes too long."""
    while service.call_seconds <= timeout:
        await asyncio.sleep(min(1.0, timeout / 4))
    service.give_up()


class _Door:
    """Lets questions in."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service, self._settings = service, settings
        self._held, self._lock = 0, threading.Lock()

    def admit(self, authorization: str | None) -> None:
        """Refuse who does not know the token."""
        token = self._settings.token
        given = (authorization or "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refusal(401, "token", "this server wants a token: Authorization: Bearer TOKEN")

    def info(self) -> dict[str, object]:
        """Return what is served."""
        model = self._service.loaded.model
        installed = {name: _version(name) for name in PACKAGES}
        return {
            "protocol": PROTOCOL,
            "version": VERSION,
            "model": str(model),
            "description": repr(model),
            "scope": model.scope,
            "fingerprint": self._settings.fingerprint,
            "known_answers": len(model.known_answers()),
            "limits": asdict(self._settings.limits),
            "packages": {name: version for name, version in installed.items() if version is not None},
        }

    @contextmanager
    def room(self, length: str | None) -> Iterator[Claim]:
        """Hold room for a body, and for what is claimed beyond, while it is read and answered."""
        most = self._settings.limits.body
        size = int(length) if length is not None and length.isdecimal() and len(length) < 20 else most
        if size > most:
            raise Refusal(413, "too_large", f"{size} bytes, at most {most}")
        taken = 0

        def claim(more: int) -> None:
            nonlocal taken
            self._take(more, taken + more)
            taken += more

        try:
            claim(size)
            yield claim
        finally:
            with self._lock:  # pictures are decoded, and claimed for, in other threads
                self._held -= taken

    def _take(self, more: int, whole: int) -> None:
        if whole > self._settings.held:
            raise Refusal(
                413, "too_large", f"unpacked it takes {whole} bytes, and this server holds {self._settings.held} in all"
            )
        with self._lock:
            if self._held + more > self._settings.held:
                raise Refusal(429, "busy", "too many questions are held; ask again", wait=1)
            self._held += more

    async def body(self, stream: AsyncIterator[bytes]) -> bytes:
        """Read a body, not longer than it may be nor for longer."""
        try:
            return await asyncio.wait_for(self._read(stream), self._settings.patience)
        except asyncio.TimeoutError as error:
            raise Refusal(408, "slow", f"the question took more than {self._settings.patience:g} seconds") from error

    async def _read(self, stream: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        async for chunk in stream:
            body += chunk
            if len(body) > self._settings.limits.body:
                raise Refusal(413, "too_large", f"more than {self._settings.limits.body} bytes")
        return bytes(body)

    async def score(self, kind: str, body: bytes, claim: Claim) -> Answer:
        """Answer a question."""
        # Pictures are decoded elsewhere; to look at tensors takes less time than to change threads.
        given = (kind, body, self._settings.limits, claim)
        asked = await asyncio.to_thread(read, *given) if kind == JSON else read(*given)
        if self._service.loaded.model.scope == "group" and asked.group is None:
            raise Refusal(422, "group", "this reward compares the samples of a group: send the group of each")
        answer = asyncio.wrap_future(self._service.ask(asked))
        try:
            verdict = await asyncio.wait_for(answer, self._settings.patience)
        except asyncio.TimeoutError as error:
            raise Refusal(
                504, "slow", f"there was no answer within {self._settings.patience:g} seconds", wait=1
            ) from error
        return _answer(asked, verdict, self._settings.fingerprint)


def _answer(asked: ParsedQuestion, verdict: Outcome, fingerprint: str) -> Answer:
    return Answer(
        version=VERSION,
        id=asked.id,
        fingerprint=fingerprint,
        scores=_numbers(verdict.rewards.value),
        parts={name: _numbers(part) for name, part in verdict.rewards.parts.items()},
        errors=[error if error is None else error[:500] for error in verdict.errors],
    )


def _numbers(scores: Tensor) -> list[float | None]:
    return [None if missing else score for score, missing in zip(scores.tolist(), scores.isnan().tolist(), strict=True)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
