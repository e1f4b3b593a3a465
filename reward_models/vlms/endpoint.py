"""A vision-language model behind an OpenAI-compatible address: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import httpx
import torch
from PIL import Image
from torch import Tensor

from reward_models.base import RewardError
from reward_models.serving.exchange import QUOTED, Exchange, InvalidAnswer, Patience, Unanswered
from reward_models.vlms.answers import chance_of, first_words, text_of, verdict_of
from reward_models.vlms.base import Question, Verdicts, Vlm, fit

T = TypeVar("T")
_JSON = "application/json"
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
        deadline: Seconds for one question, attempts and pauses included.
        on_failure: What happens to a sample whose question failed: it stops the run, or has no score.
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
            raise RewardError(f"vlm: url {self.url!r} is not an address: {error}") from error
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

    def waits(self) -> bool:
        """Return True: the server does the reading."""
        return True

    def load(self, *, device: torch.device) -> EndpointReader:
        """Return the client, once the endpoint has reported that it serves the model.

        Raises:
            RewardError: If it cannot be reached, or serves another model.
        """
        reader = EndpointReader(self, device)
        reader.check_model()
        return reader


class EndpointReader:
    """A client of one endpoint, with its pool of connections."""

    def __init__(self, described: Endpoint, device: torch.device) -> None:
        self.described, self.device = described, device
        patience = Patience(described.deadline, described.timeout, described.attempts)
        start = "vllm serve MODEL, or another with this interface"
        self._exchange = Exchange(described.url, _key(described), described.concurrency, patience, start)

    def check_model(self) -> None:
        """Refuse an endpoint that does not serve the model.

        Raises:
            RewardError: If it cannot be reached, or serves another model.
        """
        with _naming(self.described):
            names = self._exchange.run(self._exchange.get("/models", lambda content: _names(_parsed(content))))
        if self.described.model not in names:
            raise RewardError(
                f"vlm: {self.described.url} does not serve {self.described.model}; it serves {str(names)[:QUOTED]}"
            )

    def verdicts(self, questions: Sequence[Question], *, reasoning: int = 0) -> Verdicts:
        """Return how likely yes and no are, from the log-probabilities of the answer; see `Reader`.

        For each place the endpoint reports the likeliest tokens only. Where one of the two words is not among them, its
        probability is taken to be the largest it can be, never 0; where neither is, there was no verdict.
        """
        asks = {"max_tokens": reasoning or 1, "logprobs": True, "top_logprobs": _TOP}
        found = self._all(questions, asks, lambda answer: verdict_of(answer, reasoned=bool(reasoning)))
        missing = (math.nan, math.nan)
        yes, no = zip(*(missing if pair is None else pair for pair in found), strict=True)
        return Verdicts(*(torch.tensor(column, dtype=torch.float32, device=self.device) for column in (yes, no)))

    def chances(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return how likely each answer is as the first word, by the likeliest tokens that are reported; see `Reader`.

        NaN for a question that failed, where those are excluded.
        """
        asks = {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        found = self._all(questions, asks, first_words)
        rows = [math.nan if p is None else chance_of(p, one) for p, one in zip(found, answers, strict=True)]
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def write(self, questions: Sequence[Question], *, tokens: int) -> list[str]:
        """Return what the model writes; nothing for a question that failed, where those are excluded."""
        return [text or "" for text in self._all(questions, {"max_tokens": tokens}, text_of)]

    def _all(
        self, questions: Sequence[Question], asks: Mapping[str, object], read: Callable[[Any], T]
    ) -> list[T | None]:
        """Return `read` of the answer to each question; None for those that failed and are excluded."""
        with _naming(self.described):
            asking = [self._ask(question, asks, read) for question in questions]
            found = self._exchange.all(asking, spare=self.described.on_failure == "exclude")
        if failed := [answer for answer in found if isinstance(answer, Unanswered)]:
            warnings.warn(f"{len(failed)} of {len(found)} samples have no score: {failed[0]}", stacklevel=4)
        return [None if isinstance(answer, Unanswered) else answer for answer in found]

    def _ask(self, question: Question, asks: Mapping[str, object], read: Callable[[Any], T]) -> Coroutine[Any, Any, T]:
        def body() -> bytes:
            fixed = {"model": self.described.model, "messages": [self._message(question)], "temperature": 0, "seed": 0}
            return json.dumps({**fixed, **asks, **self.described.extra}).encode()

        return self._exchange.post("/chat/completions", _JSON, body, lambda content: read(_parsed(content)))

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


def _key(described: Endpoint) -> str | None:
    if described.key_variable is None:
        return None
    if not os.environ.get(described.key_variable):
        raise RewardError(f"vlm: the key of {described} is to be in ${described.key_variable}, which is empty")
    key = os.environ[described.key_variable].strip()
    if not (key.isascii() and key.isprintable()):
        raise RewardError(f"vlm: the key of {described} in ${described.key_variable} has letters that no key has")
    return key


@contextmanager
def _naming(described: Endpoint) -> Iterator[None]:
    """Name the model in every error."""
    try:
        yield
    except RewardError as error:
        raise RewardError(f"vlm: {described}: {error}") from error


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer(f"it is not JSON but {content[:80]!r}") from error


def _names(answer: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError) as error:
        raise InvalidAnswer(f"its list of models is not one: {str(answer)[:80]}") from error


def _data_url(frame: Tensor) -> str:
    levels = (frame.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
