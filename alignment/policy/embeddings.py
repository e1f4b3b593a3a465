"""Prompt embeddings, computed once per prompt: a memory of a pipeline's own `encode_prompt`.

Nothing here knows a model. An answer is a tensor, a list of tensors, or a tuple of those and of nothing. For each kind
of call, the first prompt is encoded alone and twice over: what doubles is indexed by row, what does not is shared by
all rows. Where an answer has another structure, or a tensor another shape from one prompt to the next, nothing is kept
and the pipeline's own encoders answer.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
import xxhash
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.data import tensor_files
from alignment.errors import PipelineError, PipelineRefused
from alignment.policy.pipeline_call import calling_pipeline

_IN_MEMORY = 4096
"""Prompts kept in memory where a folder holds them all; a T5-XXL embedding of 512 tokens takes 4 MB."""

_NUMBERS = ("num_images_per_prompt", "num_videos_per_prompt")
"""How often an answer is repeated, row by row."""

_SAMPLED = 64
"""Numbers of each weight that tell encoders apart: reading all of T5-XXL would take longer than a hundred prompts."""

_CPU_EXACT, _CUDA_EXACT = (torch.autocast(device, enabled=False) for device in ("cpu", "cuda"))

Arguments = dict[str, Any]
Answer = tuple[Tensor | None, ...]
RowLayout = Literal["common", "stacked", "listed"]
"""How a part of an answer serves rows: one for all, an entry of a tensor, or of a list, whose shapes may differ."""

_LAYOUTS: tuple[RowLayout, ...] = ("common", "stacked", "listed")


@dataclass(frozen=True)
class _Row:
    """The answer for one prompt, on the CPU.

    Attributes:
        tensors: What `encode_prompt` returned.
        layouts: How each of them serves rows.
        bare: Whether the answer is its only part, and no tuple.
    """

    tensors: Answer
    layouts: tuple[RowLayout, ...]
    bare: bool = False

    def joins(self, other: _Row) -> bool:
        """Whether both can be rows of one batch: equal shapes, and equal contents of what is common."""
        if (self.layouts, self.bare) != (other.layouts, other.bare):
            return False
        return all(
            (a is b is None)
            or layout == "listed"
            or (a is not None and b is not None and a.shape == b.shape and (layout == "stacked" or torch.equal(a, b)))
            for a, b, layout in zip(self.tensors, other.tensors, self.layouts, strict=True)
        )


class Embeddings:
    """Stands in for `pipe.encode_prompt`, where a pipeline has one; it puts itself in place.

    Attributes:
        cacheable: Whether all answers so far could be kept.
        misses: Prompts that were encoded.
        answered: Calls answered from memory.
        passed_on: Calls that the pipeline's own encoders answered.
    """

    def __init__(self, pipe: Any, folder: Path | None) -> None:
        self._pipe = pipe
        self._aside: dict[str, nn.Module] = {}
        if hasattr(pipe, "encode_prompt"):
            # What is computed once and kept deserves the precision of its weights.
            self._encode: Callable[..., Any] = _CPU_EXACT(_CUDA_EXACT(pipe.encode_prompt))
            self._signature = inspect.signature(pipe.encode_prompt)
            vars(pipe)["encode_prompt"] = self
        self._rows: OrderedDict[str, _Row] = OrderedDict()
        self._first: dict[str, _Row] = {}
        self._folder = None if folder is None else folder / _fingerprint(pipe)
        self._released = False
        self._mixed, self._bare = True, False
        self.cacheable = True
        self.misses = self.answered = self.passed_on = 0

    def __call__(self, *args: object, **named: object) -> Any:
        """Answer as `encode_prompt` does, from memory where it can.

        Raises:
            PipelineError: For a prompt that was never embedded, once the text encoders are released.
        """
        bound = self._signature.bind(*args, **named)
        bound.apply_defaults()
        arguments: Arguments = dict(bound.arguments)
        rows = self._known(arguments) if self.cacheable else None
        if rows is None:
            self._refuse_if_released(arguments.get("prompt"))
            self.passed_on += 1
            return self._encode(*args, **named)
        self.answered += 1
        return _collate(rows, torch.device(arguments.get("device") or self._pipe._execution_device))

    def settle(self, *, mixed: bool, bare: bool = False) -> None:
        """Set what calls will be like.

        Args:
            mixed: Whether rows of one call may have different prompts: answers that do not fit together are kept if
                not.
            bare: Whether each has one row, whose texts come without a list around them; encoders take both for one.
        """
        self._mixed, self._bare, self.passed_on = mixed, bare, 0

    def release(self) -> None:
        """Take the text encoders out of the pipeline, if every embedding was kept; `restore` puts them back."""
        if not self.cacheable or self.passed_on or not self.answered:
            return
        self._released = True
        self._aside = text_encoders(self._pipe)
        vars(self._pipe).update(dict.fromkeys(self._aside))

    def restore(self) -> None:
        """Put the text encoders back: the pipeline needs them for more than its prompts."""
        vars(self._pipe).update(self._aside)
        self._released = self.cacheable = False

    @property
    def released(self) -> tuple[str, ...]:
        """Names of the encoders that have left the pipeline."""
        return tuple(self._aside) if self._released else ()

    def _known(self, arguments: Arguments) -> list[_Row] | None:
        """Return the row of every prompt, or None where this call cannot be answered by rows."""
        if self._bare:
            arguments = {name: [v] if _is_a_text(name, v) else v for name, v in arguments.items()}
        texts = arguments.get("prompt")
        if not _is_texts(texts):
            return None
        times = [name for name in _NUMBERS if isinstance(arguments.get(name), int)]
        results = math.prod(arguments[name] for name in times)
        arguments = arguments | dict.fromkeys(times, 1) | ({"batch_size": 1} if "batch_size" in arguments else {})
        kind = _digest({name: v for name, v in arguments.items() if not _is_texts(v) and not _shows_pictures(v)})
        rows: list[_Row] = []
        different: dict[object, _Row] = {}  # a group's prompt is looked up once
        for name, one in _one_by_one(arguments, len(texts)):
            row = different.get(name) or self._row(kind, one)
            if row is None:
                self.cacheable = False
                return None
            different[name] = row
            rows += [row] * results
        return rows if all(row.joins(rows[0]) for row in different.values()) else None

    def _row(self, kind: str, arguments: Arguments) -> _Row | None:
        key = _digest(arguments)
        row = self._rows.get(key) or self._from_disk(key)
        if row is None:
            row = self._fresh(kind, arguments)
            if row is not None:
                self._to_disk(key, row)
        if row is None or (not row.joins(self._first.setdefault(kind, row)) and self._mixed):
            return None
        self._rows[key] = row
        self._rows.move_to_end(key)
        if self._folder is not None and len(self._rows) > _IN_MEMORY:
            self._rows.popitem(last=False)
        return row

    def _fresh(self, kind: str, arguments: Arguments) -> _Row | None:
        self._refuse_if_released(arguments["prompt"])
        self.misses += 1
        answer = self._encode(**arguments)
        once = _parts(answer)
        if once is None:
            return None
        layouts: tuple[RowLayout, ...]
        if kind in self._first:
            layouts = self._first[kind].layouts
        else:
            doubled = {name: 2 if name == "batch_size" else _twice(v) for name, v in arguments.items()}
            try:
                with calling_pipeline(self._pipe):
                    answer_to_two = self._encode(**doubled)
                twice = _parts(answer_to_two)
            except PipelineRefused:  # some encode one picture a call
                twice = tuple(map(_repeated, once))
            if twice is None or len(twice) != len(once):
                return None
            layouts = tuple(_layout(a, b) for a, b in zip(once, twice, strict=True))
            if any(isinstance(part, list) != (layout == "listed") for part, layout in zip(once, layouts, strict=True)):
                return None
        tensors = tuple(part[0] if isinstance(part, list) else part for part in once)
        return _Row(tuple(None if z is None else z.detach().cpu() for z in tensors), layouts, answer is once[0])

    def _refuse_if_released(self, prompt: object) -> None:
        if self._released:
            raise PipelineError(
                f"no embedding of {prompt!r} under these arguments was kept, and the text encoders have left memory: "
                "every prompt, with every set of call arguments, has to be given to Policy.prepare"
            )

    def _from_disk(self, key: str) -> _Row | None:
        tensors = tensor_files.read(self._folder, key)
        if tensors is None:
            return None
        try:
            layouts = tuple(_LAYOUTS[number] for number in tensors.pop("layouts").tolist())
            bare = bool(tensors.pop("bare"))
        except LookupError:  # of another version: encoded and written again
            return None
        return _Row(tuple(tensors.get(str(i)) for i in range(len(layouts))), layouts, bare)

    def _to_disk(self, key: str, row: _Row) -> None:
        tensors = {str(i): z for i, z in enumerate(row.tensors) if z is not None}
        tensors["layouts"] = torch.tensor([_LAYOUTS.index(layout) for layout in row.layouts])
        tensors["bare"] = torch.tensor(row.bare)
        tensor_files.write(self._folder, key, tensors, "embeddings")


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """Return the pipeline's text encoders by component name."""
    return {k: m for k, m in pipe.components.items() if k.startswith("text_encoder") and isinstance(m, nn.Module)}


def _collate(rows: Sequence[_Row], device: torch.device) -> Any:
    columns = zip(*(row.tensors for row in rows), strict=True)
    parts = tuple(_joined(column, layout, device) for layout, column in zip(rows[0].layouts, columns, strict=True))
    return parts[0] if rows[0].bare else parts


def _joined(column: Sequence[Tensor | None], layout: RowLayout, device: torch.device) -> Tensor | list[Tensor] | None:
    given = [z.to(device) for z in column if z is not None]
    if not given:
        return None
    if layout == "listed":
        return given
    return torch.cat(given) if layout == "stacked" else given[0]


def _one_by_one(arguments: Arguments, count: int) -> Iterator[tuple[object, Arguments]]:
    """Yield the arguments of each row, texts and pictures one per row, after what equal rows of the call have equal."""
    by_row = {n: v for n, v in arguments.items() if isinstance(v, list | Tensor) and _is_by_row(v) and len(v) == count}
    for i in range(count):
        items = (i if isinstance(value, Tensor) else value[i] for value in by_row.values())
        name = tuple(item if isinstance(item, str | int) else id(item) for item in items)
        yield name, arguments | {key: value[i : i + 1] for key, value in by_row.items()}


def _is_by_row(value: object) -> bool:
    return _is_texts(value) or _shows_pictures(value)


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    if isinstance(value, Image):
        return [value, value]
    return value * 2 if isinstance(value, list) and _is_by_row(value) else value


def _repeated(part: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    """Return what two rows would have given: parts of one row are taken for parts by row."""
    if isinstance(part, Tensor):
        return torch.cat([part, part]) if part.ndim and len(part) == 1 else part
    return None if part is None else part * 2


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_a_text(name: str, value: object) -> bool:
    return isinstance(value, str) and name.startswith(("prompt", "negative_prompt"))


def _shows_pictures(value: object) -> bool:
    """Return whether an argument holds pictures: as they are, or as tensors `[n, ...]`."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, Image | Tensor) for item in value)
    return isinstance(value, Image) or (isinstance(value, Tensor) and value.ndim > 0)


def _parts(answer: object) -> tuple[Tensor | list[Tensor] | None, ...] | None:
    """Return the parts of an answer, or None where it has another structure."""
    parts: tuple[Any, ...] = answer if isinstance(answer, tuple) else (answer,)
    known = all(
        z is None or isinstance(z, Tensor) or (isinstance(z, list) and z and all(isinstance(e, Tensor) for e in z))
        for z in parts
    )
    return parts if known else None


def _layout(once: Tensor | list[Tensor] | None, twice: Tensor | list[Tensor] | None) -> RowLayout:
    if isinstance(once, list) and isinstance(twice, list) and len(once) == 1 and len(twice) == 2:
        return "listed"
    if isinstance(once, Tensor) and isinstance(twice, Tensor) and once.ndim:
        return "stacked" if twice.shape == (2 * once.shape[0], *once.shape[1:]) else "common"
    return "common"


def _digest(arguments: Arguments) -> str:
    """Return a name for these arguments, whatever device they are on."""
    described = {name: [v] if isinstance(v, Image) else v for name, v in arguments.items() if name != "device"}
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=_content).encode()).hexdigest()


def _content(value: object) -> object:
    """Return what identifies a value that JSON cannot hold."""
    if isinstance(value, Image):
        return [value.mode, value.size, xxhash.xxh3_128_hexdigest(value.tobytes())]
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(flat.numpy().tobytes())]
    return str(value)


def _fingerprint(pipe: Any) -> str:
    """Return a name for what makes prompt embeddings: vocabularies, configuration, samples of every weight."""
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, PreTrainedTokenizerBase):
            described = json.dumps([component.get_vocab(), component.model_max_length], sort_keys=True)
            digest.update(f"{name}{described}".encode())
    for name, encoder in sorted(text_encoders(pipe).items()):
        add_network(digest, name, encoder)
    return digest.hexdigest()[:16]


def add_network(digest: Any, name: str, network: Any) -> None:
    """Add what decides a network's outputs to a digest: its configuration, samples of every weight."""
    digest.update(f"{name}{network.config}".encode())
    for key, weight in network.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(len(flat) // _SAMPLED, 1)].float().cpu()
        digest.update(key.encode() + sample.numpy().tobytes() + str(weight.dtype).encode())
