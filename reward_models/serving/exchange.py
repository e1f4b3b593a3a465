"""HTTP with patience: one connection pool, a deadline for everything, and repeats of what may be repeated."""

from __future__ import annotations

import asyncio
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from reward_models.base import RewardError

T = TypeVar("T")

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may pass."""
ANSWER = 16 * 2**20
"""Most bytes of an answer."""
QUOTED = 300
"""Characters of an answer that a message quotes."""
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 0.1, 10.0, 60.0
"""Seconds: mean pause after the first failure (it doubles), the longest, and the longest a server may ask for."""


class InvalidAnswer(ValueError):
    """What came back is not an answer to what was asked."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        deadline: Seconds for a question and all its repeats.
        attempt: Seconds for one attempt, from connecting to the last byte.
        attempts: Most attempts.
    """

    deadline: float = 300.0
    attempt: float = 120.0
    attempts: int = 8


class Unanswered(RewardError):
    """A question that got no answer within its deadline and attempts."""


class _Failed(Exception):
    """An attempt that may be repeated."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Exchange:
    """Asks one server, from a thread of its own.

    Proxies of the environment are not used and redirects are not followed: pictures and the token go to the address
    that was given or nowhere.

    Attributes:
        url: The server's address.
        patience: How long to try.
        start: How to start such a server, for messages.
    """

    def __init__(self, url: str, token: str | None, connections: int, patience: Patience, start: str) -> None:
        self.url, self.patience, self.start = url.rstrip("/"), patience, start
        headers = {"Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(
            headers=headers if token is None else {**headers, "Authorization": f"Bearer {token}"},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            timeout=None,  # a deadline of our own covers every attempt whole
            follow_redirects=False,
            trust_env=False,
        )
        self._turns = asyncio.Semaphore(connections)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop, self._client), daemon=True, name="reward client").start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` in the thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def get(self, path: str, read: Callable[[bytes], T]) -> T:
        """Return what `read` makes of the answer to GET; raises what `post` raises."""
        async with self._turns:
            return await self._ask("GET", path, None, {}, read)

    async def post(self, path: str, kind: str, body: Callable[[], bytes], read: Callable[[bytes], T]) -> T:
        """Return what `read` makes of the answer to POST; the body is made when it is this question's turn.

        Raises:
            Unanswered: If there was no answer in time.
            RewardError: If the answer is an error that a repeat would not change.
        """
        async with self._turns:
            content = await asyncio.to_thread(body)
            return await self._ask("POST", path, content, {"Content-Type": kind}, read)

    def all(self, questions: Sequence[Coroutine[Any, Any, T]], *, spare: bool) -> list[T | Unanswered]:
        """Ask all at once, and return the answer to each.

        Args:
            questions: What `post` returned.
            spare: Whether a question that got no answer leaves the others alone, and is returned as its error, as long
                as there is any answer at all.

        Raises:
            RewardError: The first; it ends the other questions.
        """
        found = self.run(_gathered(questions, spare=spare))
        failed = [answer for answer in found if isinstance(answer, Unanswered)]
        if failed and len(failed) == len(found):
            raise failed[0]
        return found

    async def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], read: Callable[[bytes], T]
    ) -> T:
        end, pause, last, attempt = self._now() + self.patience.deadline, FIRST_PAUSE, "nothing was tried", 0
        for attempt in range(1, self.patience.attempts + 1):
            allowed = min(end - self._now(), self.patience.attempt)
            if allowed <= 0:
                break
            try:
                return read(await asyncio.wait_for(self._once(method, path, body, headers), allowed))
            except _Failed as failure:
                last, wait = str(failure), failure.wait
            except InvalidAnswer as error:
                last, wait = f"an answer that is none: {error}", None
            except asyncio.TimeoutError:
                last, wait = f"no whole answer within {allowed:.3g} seconds", None
            # Full jitter, so that clients that failed together do not come back together. It decides no score.
            rest = min(wait, LONGEST_WAIT) if wait is not None else random.uniform(0, 2 * pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if attempt < self.patience.attempts:
                await asyncio.sleep(min(rest, max(0.0, end - self._now())))
        spent = self.patience.deadline - (end - self._now())
        raise Unanswered(f"{self.url} gave no answer in {spent:.3g} seconds and {attempt} attempts; the last: {last}")

    def _now(self) -> float:
        return self._loop.time()

    async def _once(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        try:
            async with self._client.stream(method, self.url + path, content=body, headers=headers) as response:
                _check_plain(response)
                content = bytearray()
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > ANSWER:
                        raise InvalidAnswer(f"more than {ANSWER} bytes")
        except httpx.ConnectError as error:
            raise _Failed(f"{error}; is the server running? ({self.start})") from error
        except httpx.TransportError as error:
            raise _Failed(f"{type(error).__name__} {error}".strip()) from error
        except httpx.StreamError as error:
            raise InvalidAnswer(str(error)) from error
        status = response.status_code
        if status == 200:
            return bytes(content)
        message = f"status {status} {_quote(bytes(content))}".strip()
        if status in AGAIN:
            raise _Failed(message, _seconds(response.headers.get("retry-after")))
        if 300 <= status < 400:
            where = _quote(response.headers.get("location", "nowhere").encode())
            raise RewardError(f"{self.url} redirects to {where}; redirects are not followed, give the address itself")
        if status in (401, 403):
            raise RewardError(f"{self.url} refuses access, {message}: look at the token or key it was given")
        raise RewardError(f"{self.url} refuses: {message}")


async def _gathered(questions: Sequence[Coroutine[Any, Any, T]], *, spare: bool) -> list[T | Unanswered]:
    async def answered(question: Coroutine[Any, Any, T]) -> T | Unanswered:
        try:
            return await question
        except Unanswered as error:
            if not spare:
                raise
            return error

    asking = [asyncio.ensure_future(answered(question)) for question in questions]
    try:
        return await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()


def _run(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Run the loop until it is stopped, and leave nothing open."""
    loop.run_forever()
    loop.run_until_complete(client.aclose())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _check_plain(response: httpx.Response) -> None:
    """Refuse an answer that would have to be unpacked: a small one can become a large one."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise InvalidAnswer(f"it is packed ({_quote(coding.encode())}), which was not asked for")


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; dates are not understood."""
    return float(header) if header is not None and header.isdecimal() and len(header) < 8 else None


def _quote(content: bytes) -> str:
    """Return the start of a server's message, safe for a terminal."""
    text = content[: 4 * QUOTED].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text)[:QUOTED].strip()
