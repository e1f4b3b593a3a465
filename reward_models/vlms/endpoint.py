"""A vision-language model behind an OpenAI-compatible address: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import httpx
import torch
from PIL import Image
from torch import Tensor

from reward_models.base import RewardError
from reward_models.vlms._answers import Unreadable, text_of, verdict_of
from reward_models.vlms.base import Question, Verdicts, Vlm, fit

T = TypeVar("T")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LARGEST_ANSWER = 16 * 2**20
_FIRST_PAUSE = 0.25  # seconds; doubles with every attempt
_TOP = 20  # alternatives asked for at each place; vLLM's default limit


@dataclass(frozen=True)
class Endpoint(Vlm):
    """Ask a served model over HTTP, by the chat interface that OpenAI defined, with log-probabilities.

    Pictures travel as PNG, so pixels are rounded to 256 levels; a clip travels as its frames. Redirects and proxies of
    the environment are not followed: pictures and the key go where the config says and nowhere else.

    Attributes:
        url: Base address up to the version, such as "http://127.0.0.1:8000/v1".
        model: Name under which it is served.
        key_variable: Environment variable with the access key; null sends none.
        concurrency: Questions on the way at once.
        attempts: How often a question is asked before giving up, where trying again can help.
        timeout: Seconds for one attempt.
        deadline: Seconds for all questions of a batch, attempts and pauses included.
        on_failure: What becomes of a sample that could not be asked about: it stops the run, or has no score.
        side: Longest side in pixels that the model is shown; larger pictures are scaled down. Null: as they are.
        extra: Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}.
    """

    url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 16
    attempts: int = 4
    timeout: float = 60.0
    deadline: float = 600.0
    on_failure: Literal["raise", "exclude"] = "raise"
    side: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise RewardError(f"vlm: url {self.url!r} is no address: {error}") from error
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise RewardError(
                f"vlm: url is 'http://HOST:PORT/v1', without a password in it (key_variable is for that), got {url}"
            )
        if (
            min(self.concurrency, self.attempts, 1 if self.side is None else self.side) < 1
            or min(self.timeout, self.deadline) <= 0
        ):
            raise RewardError("vlm: concurrency, attempts and side are at least 1, timeout and deadline above 0")

    def __str__(self) -> str:
        """Return what is asked, and where."""
        return f"{self.model} at {self.url}"

    def load(self, *, device: torch.device) -> EndpointReader:
        """Return the client, once the endpoint has said that it serves the model.

        Raises:
            RewardError: If it cannot be reached, or serves another model.
        """
        reader = EndpointReader(self, device)
        reader.check_model()
        return reader


class _Transient(Exception):
    """Something that may be gone at the next attempt."""


class EndpointReader:
    """A client of one endpoint, with its pool of connections."""

    def __init__(self, described: Endpoint, device: torch.device) -> None:
        self.described, self.device = described, device
        headers = {"Accept-Encoding": "identity"}  # or a small answer could unpack into a large one
        if described.key_variable is not None:
            if not os.environ.get(described.key_variable):
                raise RewardError(f"vlm: the key of {described} is to be in ${described.key_variable}, which is empty")
            headers["Authorization"] = f"Bearer {os.environ[described.key_variable]}"
        limits = httpx.Limits(max_connections=described.concurrency)
        self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False, trust_env=False)
        weakref.finalize(self, self._client.close)

    def check_model(self) -> None:
        """Refuse an endpoint that does not serve the model.

        Raises:
            RewardError: If it cannot be reached, or serves another model.
        """
        until = time.monotonic() + self.described.deadline
        names = self._persist(lambda: _names(self._exchange("GET", "models", None, until)), until)
        if self.described.model not in names:
            raise RewardError(f"vlm: {self.described.url} does not serve {self.described.model}; it serves {names}")

    def verdicts(self, questions: Sequence[Question], *, reasoning: int = 0) -> Verdicts:
        """Return how likely yes and no are, from the log-probabilities of the answer; see `Reader`.

        Of each place the endpoint tells the likeliest tokens only. Where one of the two words is not among them, its
        probability is taken to be the largest it can be, never 0; where neither is, there was no verdict.
        """
        asks = {"max_tokens": reasoning or 1, "logprobs": True, "top_logprobs": _TOP}
        found = self._all(questions, asks, lambda answer: verdict_of(answer, reasoned=bool(reasoning)))
        missing = (math.nan, math.nan)
        yes, no = zip(*(missing if pair is None else pair for pair in found), strict=True)
        return Verdicts(*(torch.tensor(column, dtype=torch.float32, device=self.device) for column in (yes, no)))

    def write(self, questions: Sequence[Question], *, tokens: int) -> list[str]:
        """Return what the model writes; nothing for a question that failed, where those are excluded."""
        return [text or "" for text in self._all(questions, {"max_tokens": tokens}, text_of)]

    def _all(
        self, questions: Sequence[Question], asks: Mapping[str, object], read: Callable[[Any], T]
    ) -> list[T | None]:
        """Return what `read` makes of the answer to each question; None for those that failed and are excluded."""
        until = time.monotonic() + self.described.deadline

        def one(question: Question) -> T | RewardError:
            body = {"model": self.described.model, "messages": [self._message(question)], "temperature": 0, "seed": 0}
            content = json.dumps({**body, **asks, **self.described.extra}).encode()
            try:
                return self._persist(lambda: read(self._exchange("POST", "chat/completions", content, until)), until)
            except _GaveUp as error:
                return error

        with ThreadPoolExecutor(self.described.concurrency) as pool:
            found = list(pool.map(one, questions))
        failed = [answer for answer in found if isinstance(answer, RewardError)]
        if failed and (self.described.on_failure == "raise" or len(failed) == len(found)):
            raise failed[0]
        if failed:
            warnings.warn(f"{len(failed)} of {len(found)} samples have no score: {failed[0]}", stacklevel=4)
        return [None if isinstance(answer, RewardError) else answer for answer in found]

    def _persist(self, attempt: Callable[[], T], until: float) -> T:
        """Return what an attempt returns, trying again while that can help and there is time."""
        problem = "no time was left"
        for number in range(self.described.attempts):
            if time.monotonic() >= until:
                break
            try:
                return attempt()
            except (_Transient, Unreadable) as error:
                problem = str(error)
            pause = _FIRST_PAUSE * 2**number
            if number + 1 < self.described.attempts:
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
        raise _GaveUp(
            f"vlm: {self.described} did not answer: {problem} (at most {self.described.attempts} attempts of "
            f"{self.described.timeout:g} s within {self.described.deadline:g} s for the batch)"
        )

    def _exchange(self, method: str, path: str, content: bytes | None, until: float) -> Any:
        """Return the JSON that the endpoint answers.

        Raises:
            _Transient: If trying again can help.
            RewardError: If it cannot.
        """
        until = min(until, time.monotonic() + self.described.timeout)
        url, headers = f"{self.described.url.rstrip('/')}/{path}", {"Content-Type": "application/json"}
        left = max(until - time.monotonic(), 0.001)
        try:
            with self._client.stream(method, url, content=content, headers=headers, timeout=left) as response:
                text = _received(response, until)
        except httpx.HTTPError as error:
            raise _Transient(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        self._check_status(response, text)
        try:
            return json.loads(text)
        except ValueError as error:
            raise _Transient(f"its answer is not JSON but {text[:80]!r}") from error

    def _check_status(self, response: httpx.Response, text: bytes) -> None:
        said, status = text[:200].decode(errors="replace"), response.status_code
        if status in _TRANSIENT:
            raise _Transient(f"status {status}: {said}")
        if response.is_redirect:
            target = response.headers.get("location", "nowhere")
            raise RewardError(f"vlm: {self.described} redirects to {target}; put the final address in url")
        if status in (401, 403):
            raise RewardError(f"vlm: {self.described} refuses access (status {status}); see key_variable. {said}")
        if not response.is_success:
            raise RewardError(f"vlm: {self.described} refuses the question with status {status}: {said}")

    def _message(self, question: Question) -> dict[str, object]:
        content: list[dict[str, object]] = []
        for piece in question.pieces:
            if isinstance(piece, str):
                content.append({"type": "text", "text": piece})
                continue
            if len(piece) > 1:
                content.append({"type": "text", "text": f"({len(piece)} frames, {question.fps:g} a second)"})
            frames = fit(piece, self.described.side)
            for frame in frames:
                content.append({"type": "image_url", "image_url": {"url": _data_url(frame)}})
        return {"role": "user", "content": content}


class _GaveUp(RewardError):
    """The endpoint failed for this question, and might not for another."""


def _received(response: httpx.Response, until: float) -> bytes:
    """Return the body, unless it is endless or comes in drops."""
    text = bytearray()
    for chunk in response.iter_raw():
        text += chunk
        if len(text) > _LARGEST_ANSWER:
            raise _Transient(f"its answer is longer than {_LARGEST_ANSWER:,} bytes")
        if time.monotonic() > until:
            raise _Transient("its answer took too long to arrive")
    return bytes(text)


def _names(answer: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError) as error:
        raise Unreadable(f"its list of models is not one: {str(answer)[:80]}") from error


def _data_url(frame: Tensor) -> str:
    levels = (frame.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
