"""A reward in another process, on this machine or another: the client of `visalign serve-reward`."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards, Scope
from reward_models.combinators.pieces import put_together
from reward_models.serving.exchange import QUOTED, Exchange, InvalidAnswer, Patience
from reward_models.serving.known_answers import unpack
from reward_models.serving.token import token_of
from reward_models.serving.wire import PROTOCOL, TENSORS, VERSION, Answer, ParsedQuestion, levels, write

_LARGEST = torch.finfo(torch.float32).max
_START = "visalign serve-reward NAME"
_SAME = 1e-3
"""Scores of a sample alone and among others may differ by this share of the largest: half precision does."""


@dataclass(frozen=True)
class Remote(RewardModel):
    """Score on a server. Start it with `visalign serve-reward NAME`, in an environment of its own if need be.

    Before anything is scored, the server reports its model and its known answers, which are then scored over the same
    route as samples. Every answer is checked: its version, its request, that the model is still the same, and one
    finite score per sample. An invalid answer is requested again within the deadline, and never becomes a number.

    Attributes:
        url: Address of the server, "http://127.0.0.1:8765".
        scope: "group" where the served model compares the samples of a group.
        token_file: File with the server's token; null takes it from VISALIGN_REWARD_TOKEN, where that is set.
        fingerprint: Of the model that the server must have, as `/info` reports it; null accepts the model it has at the
            start, and requires that it stays.
        pixels: "uint8" sends the nearest of 256 levels, as a picture file holds; "float32" what was sampled, four
            times the bytes.
        rows: Samples in one request.
        connections: Requests at once.
        on_failure: "error", or "exclude": samples that the server could not score, and requests it did not answer,
            get no score (NaN). A call in which nothing was scored is an error either way.
        deadline: Seconds for one request and its repeats.
        attempt: Seconds for one attempt.
        attempts: Most attempts.
    """

    url: str
    scope: Scope = "sample"  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
    token_file: str | None = None
    fingerprint: str | None = None
    pixels: Literal["uint8", "float32"] = "uint8"
    rows: int = 16
    connections: int = 4
    on_failure: Literal["error", "exclude"] = "error"
    deadline: float = 300.0
    attempt: float = 120.0
    attempts: int = 8

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise RewardError(f"remote: url is like http://127.0.0.1:8765, got {self.url!r}")
        if parts.username is not None or parts.password is not None:
            raise RewardError("remote: the url holds a password; put a token into a file and name it: token_file")
        at_least = {"rows": 1, "connections": 1, "attempts": 1}
        for name, least in at_least.items():
            if vars(self)[name] < least:
                raise RewardError(f"remote: {name} has to be at least {least}, got {vars(self)[name]}")
        for name in ("deadline", "attempt"):
            if not vars(self)[name] > 0:
                raise RewardError(f"remote: {name} is in seconds and more than 0, got {vars(self)[name]}")

    def __str__(self) -> str:
        """Return where it is."""
        return f"remote reward {self.url}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse a token that cannot be read; the server is asked when it is loaded."""
        token_of(self.token_file)

    def waits(self) -> bool:
        """Return True: the server does the work."""
        return True

    def load(self, *, device: torch.device) -> _RemoteScorer:
        """Connect to the server and check it.

        Raises:
            RewardError: If it cannot be reached, has another model, or does not reproduce its known answers.
        """
        patience = Patience(self.deadline, self.attempt, self.attempts)
        exchange = Exchange(self.url, token_of(self.token_file), self.connections, patience, _START)
        info = exchange.run(exchange.get("/info", _read_info))
        if info.scope != self.scope:
            raise RewardError(f"{self} serves {info.model} of scope {info.scope}, expected {self.scope}: set scope")
        if self.fingerprint not in (None, info.fingerprint):
            raise RewardError(f"{self} serves {info.model} {info.fingerprint}, expected {self.fingerprint}")
        scorer = _RemoteScorer(self, exchange, info.fingerprint, min(self.rows, info.limits.rows))
        for answer in exchange.run(exchange.get("/v1/known-answers", unpack)):
            scorer.examine(answer)
        return scorer


class _ServedLimits(BaseModel):
    rows: Annotated[int, Field(ge=1)]


class _Info(BaseModel):
    model_config = ConfigDict(strict=True)

    protocol: Literal["visalign-reward"]
    version: int
    model: Annotated[str, Field(max_length=QUOTED)]
    scope: Scope
    fingerprint: Annotated[str, Field(max_length=QUOTED)]
    limits: _ServedLimits


def _read_info(content: bytes) -> _Info:
    try:
        info = _Info.model_validate_json(content)
    except ValidationError as error:
        raise InvalidAnswer(f"/info is not that of a {PROTOCOL} server") from error
    if info.version != VERSION:
        raise RewardError(f"the server speaks version {info.version} of {PROTOCOL}, this program version {VERSION}")
    return info


@dataclass(frozen=True)
class _RemoteScorer:
    model: Remote
    exchange: Exchange
    fingerprint: str
    rows: int

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score `media` in several requests at once."""
        pieces = self._pieces(len(media), group)
        asked = [
            self._asked(media[rows.to(media.pixels.device)], [prompts[int(row)] for row in rows], rows, group)
            for rows in pieces
        ]
        found = self.exchange.all([self._ask(one) for one in asked], spare=self.model.on_failure == "exclude")
        answers = [answer for answer in found if isinstance(answer, Answer)]
        errors = [error for answer in answers for error in answer.errors if error is not None]
        scored = sum(score is not None for answer in answers for score in answer.scores)
        if errors and (self.model.on_failure == "error" or not scored):
            raise RewardError(
                f"{self.model} could not score {len(errors)} of {len(media)} samples: {errors[0][:QUOTED]}"
            )
        answered = [(rows, _rewards(a)) for rows, a in zip(pieces, found, strict=True) if isinstance(a, Answer)]
        return put_together(answered, len(media), media.pixels.device)

    def examine(self, answer: KnownAnswer) -> None:
        """Score each known answer as a batch and, where samples are scored by themselves, one by one.

        Raises:
            RewardError: If a score is not the known one.
        """
        group = torch.zeros(len(answer.media), dtype=torch.int64) if self.model.scope == "group" else None
        whole = self(media=answer.media, prompts=answer.prompts, group=group).value
        try:
            answer.check(whole)
        except RewardError as error:
            raise RewardError(f"{self.model} does not give its known answers: {error}") from error
        if group is None:
            alone = [
                self(media=answer.media[i : i + 1], prompts=answer.prompts[i : i + 1]).value for i in range(len(whole))
            ]
            apart = (torch.cat(alone) - whole).abs().max().item()
            if not apart <= _SAME * max(1.0, whole.abs().max().item()):
                raise RewardError(f"{self.model} scores a sample differently among others: by {apart:g}")

    def _pieces(self, count: int, group: Tensor | None) -> list[Tensor]:
        """Return the rows of each request; groups stay whole."""
        if group is None:
            return list(torch.arange(count).split(self.rows))
        pieces: list[Tensor] = []
        for rows in ((group == one).nonzero()[:, 0].cpu() for one in group.unique()):
            if pieces and len(pieces[-1]) + len(rows) <= self.rows:
                pieces[-1] = torch.cat([pieces[-1], rows])
            else:
                pieces.append(rows)
        return pieces

    def _asked(self, media: Media, prompts: list[str], rows: Tensor, group: Tensor | None) -> ParsedQuestion:
        convert = levels if self.model.pixels == "uint8" else lambda pixels: pixels.detach().float().clamp(0, 1)
        source = None if media.source is None else convert(media.source.pixels)
        ids = None if group is None else group[rows]
        return ParsedQuestion(uuid.uuid4().hex, tuple(prompts), media.fps, convert(media.pixels), source, ids)

    def _ask(self, asked: ParsedQuestion) -> Coroutine[Any, Any, Answer]:
        return self.exchange.post(
            "/v1/score", TENSORS, lambda: write(asked), lambda content: self._read(content, asked)
        )

    def _read(self, content: bytes, asked: ParsedQuestion) -> Answer:
        """Return an answer that is one."""
        try:
            answer = Answer.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise InvalidAnswer(f"{where or 'JSON'}: {problem['msg']}"[:200]) from error
        if answer.id != asked.id:
            raise InvalidAnswer("it is the answer to another request")
        for name, column in {"scores": answer.scores, "errors": answer.errors, **answer.parts}.items():
            if len(column) != len(asked):
                raise InvalidAnswer(f"{len(column)} {name} for {len(asked)} samples")
        for column in (answer.scores, *answer.parts.values()):
            if any(score is not None and abs(score) > _LARGEST for score in column):
                raise InvalidAnswer("a score that float32 cannot hold")
        if answer.fingerprint != self.fingerprint:
            other = answer.fingerprint[:QUOTED]
            raise RewardError(
                f"{self.model} serves another model than at the start ({other}, not {self.fingerprint}); scores of two "
                "models cannot be mixed"
            )
        return answer


def _rewards(answer: Answer) -> Rewards:
    columns = {name: _numbers(scores) for name, scores in {"": answer.scores, **answer.parts}.items()}
    return Rewards(columns.pop(""), columns)


def _numbers(scores: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if score is None else score for score in scores], dtype=torch.float32)
