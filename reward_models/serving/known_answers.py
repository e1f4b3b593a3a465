"""Known answers on their way from a reward server to its clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from reward_models.base import KnownAnswer, Media, RewardError

MOST = torch.finfo(torch.float32).max
"""Stands for a band without an end: JSON has no infinity."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    says: str
    prompts: tuple[str, ...]
    fps: Finite | None
    bands: tuple[tuple[Finite, Finite], ...]
    best_first: bool


class _Metadata(BaseModel):
    answers: str


class _Header(BaseModel):
    metadata: _Metadata = Field(alias="__metadata__")


_LIST = TypeAdapter(list[_Listed])


def pack(answers: Sequence[KnownAnswer]) -> bytes:
    """Return known answers as a safetensors file."""
    tensors: dict[str, Tensor] = {"count": torch.tensor(len(answers))}
    listed: list[_Listed] = []
    for number, answer in enumerate(answers):
        tensors[f"pixels.{number}"] = answer.media.pixels.float().cpu().contiguous().clone()
        if answer.media.source is not None:
            tensors[f"source.{number}"] = answer.media.source.pixels.float().cpu().contiguous().clone()
        bands = tuple((max(low, -MOST), min(high, MOST)) for low, high in answer.bands)
        listed.append(
            _Listed(
                says=answer.says,
                prompts=answer.prompts,
                fps=answer.media.fps,
                bands=bands,
                best_first=answer.best_first,
            )
        )
    return safetensors.torch.save(tensors, {"answers": _LIST.dump_json(listed).decode()})


def unpack(file: bytes) -> list[KnownAnswer]:
    """Return the known answers of such a file.

    Raises:
        RewardError: If it is not such a file.
    """
    size = int.from_bytes(file[:8], "little")
    try:
        listed = _LIST.validate_json(_Header.model_validate_json(file[8 : 8 + size]).metadata.answers)
        tensors = safetensors.torch.load(file)
        return [_answer(number, one, tensors) for number, one in enumerate(listed)]
    except (ValidationError, SafetensorError, LookupError, ValueError, TypeError) as error:
        raise RewardError(f"the known answers of the server cannot be read: {str(error)[:200]}") from error


def _answer(number: int, one: _Listed, tensors: dict[str, Tensor]) -> KnownAnswer:
    source = tensors.get(f"source.{number}")
    media = Media(tensors[f"pixels.{number}"], one.fps, None if source is None else Media(source))
    return KnownAnswer(one.says, media, one.prompts, one.bands, one.best_first)
