"""How the rows of a call are passed to a pipeline, when they bring pictures.

Pipelines agree on texts: a list has one per row. They do not agree on pictures: a list is one per row for some, several
for every row for others, and refused by the rest; some take one row per call. Which form a pipeline takes is measured:
its rows are compared with the same rows run alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from alignment.data.batches import Prompt, inputs_of
from alignment.data.media import Clip, Picture
from alignment.errors import ConfigError, PipelineError
from samplers import Call, Conductor, Native, Skip

_SHARE_OF_EFFECT = 0.1
"""Rows that met each other's pictures are off by about as much as another picture changes them."""

_ROUNDING = 1e-5
"""Of the largest number: float32 with another number of rows. Coarser dtypes pass by the effect or not at all."""

_SAME = 1e-2
"""Of the largest number: what another number of rows does in bfloat16. Another noise or picture does far more."""

_TEXTS = ("prompt_", "negative_prompt")
"""How the names of further text arguments begin; pipelines want one text a row where `prompt` is a list."""

_MEDIA = re.compile(
    r"^(?!num_|output_|callback|max_)(?!.*(embed|latents|scale|sigma|attention|length|crop|ip_adapter)).*(image|video|mask)"
)
"""Names of arguments that are media."""

_OF_A_RUN = ("data.prompts", "evaluation.prompts")
"""Keys of a run's prompts, whose columns it may name."""

_NUMBERS = ("num_images_per_prompt", "num_videos_per_prompt")

Answer = TypeVar("Answer")


class Form(Enum):
    """One way to pass n rows to a pipeline, most useful first."""

    ROWS = "a prompt and a picture a row"
    SHARED = "a prompt a row, one picture for all of them"
    ALIKE = "a prompt and a picture a row, the same in all of them"
    REPEATED = "one prompt and one picture, n times"
    ALONE = "one row a call"
    BARE = "one row a call, nothing of it in lists"

    @property
    def single(self) -> bool:
        """Whether a call has one row."""
        return self in (Form.ALONE, Form.BARE)

    @property
    def mixes(self) -> bool:
        """Whether rows of one call may bring different pictures."""
        return self is Form.ROWS

    def same(self, prompt: str) -> object:
        """Return what the rows of one call must share.

        Rows that share a picture share their prompt, too, as those of a group do: prompts that were read together with
        a picture have any length, and do not fit into one call.
        """
        return None if self is Form.ROWS else prompt

    def calls(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the rows of each call that `prompts` take: as few calls as can be."""
        if self.single:
            return [[row] for row in range(len(prompts))]
        calls: dict[object, list[int]] = {}
        for row, prompt in enumerate(prompts):
            calls.setdefault(self.same(prompt), []).append(row)
        return list(calls.values())

    def companions(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return those of `prompts` that may share a call with the first."""
        return tuple(prompts[row] for row in self.calls(prompts)[0])

    def prompts_per_call(self, asked: int | None) -> int | None:
        """Return how many different prompts go into one call where `asked` are wanted; None: all of them."""
        return asked if self.mixes else 1

    def chunk(self, prompts: Sequence[str], group: Tensor) -> Tensor:
        """Return which rows may share a call, `[n]`: all of them, those of one group, or none."""
        if self.single:
            return torch.arange(len(group))
        return torch.zeros_like(group) if len(self.calls(prompts)) == 1 else group

    def chunks(self, number: int, rows: int) -> Tensor:
        """Return which of the rows of call `number` may share a replay, `[n]`, apart from those of other calls."""
        return number * rows + torch.arange(rows) if self.single else torch.full((rows,), number)


Observe = Callable[[Form, Sequence[str], Tensor], Tensor]
"""observe(form, prompts, seeds) -> `[n, d]`: what the first round of the pipeline makes of these rows."""


def arrange(form: Form, pipe: Any, prompts: Sequence[str], common: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a call of `pipe` with rows of `prompts`.

    Args:
        form: How.
        pipe: The pipeline.
        prompts: One per row, with what they bring.
        common: Arguments of every call; texts and pictures among them are those of rows that bring no others.

    Raises:
        PipelineError: If rows bring different prompts and the form has room for one.
    """
    by_row = {name: value for name, value in common.items() if _is_by_row(name, value)}
    rows = [{"prompt": str(prompt), **by_row, **inputs_of(prompt)} for prompt in prompts]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if len(form.calls(prompts)) > 1:
        raise PipelineError(f"{type(pipe).__name__} takes one prompt a call here, but rows of this call bring several")
    texts = {name: column for name, column in columns.items() if isinstance(column[0], str)}
    pictures = {name: [_opened(value) for value in column] for name, column in columns.items() if name not in texts}
    if form in (Form.ROWS, Form.ALIKE):
        return {**common, **texts, **pictures}
    given = {name: column[0] for name, column in pictures.items()}
    if form is Form.BARE:
        return {**common, **{name: column[0] for name, column in texts.items()}, **given}
    if form in (Form.SHARED, Form.ALONE):
        return {**common, **texts, **given}
    number = next(name for name in _NUMBERS if _takes(pipe, name))
    return {**common, **{name: column[:1] for name, column in texts.items()}, **given, number: len(prompts)}


def check_inputs(pipe: Any, files: Mapping[str, Sequence[str]], common: Mapping[str, object]) -> None:
    """Refuse prompts that bring what the pipeline does not take, or lack what it needs.

    Args:
        pipe: The pipeline.
        files: Prompts by the key that names their file; or, where no run names one, by words for them.
        common: Arguments of every call.

    Raises:
        ConfigError: Naming the arguments.
    """
    name, parameters = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    media = [argument for argument in parameters if _MEDIA.search(argument)]
    needed = {argument for argument in media if parameters[argument].default is inspect.Parameter.empty}
    for key, prompts in files.items():
        brought = set(inputs_of(prompts[0])) if prompts else needed
        if unknown := sorted(brought - parameters.keys()):
            takes = f"it takes {', '.join(media)}" if media else "it takes no pictures"
            todo = f"data.columns says which column is which argument: {{{media[0] if media else 'ARGUMENT'}: COLUMN}}"
            if key not in _OF_A_RUN:
                todo = "Ask it for prompts without, or ask a pipeline that takes them"
            raise ConfigError(f"{key} brings {', '.join(unknown)}, but {name} has no such argument; {takes}. {todo}")
        if lacking := sorted(needed - brought - common.keys()):
            todo = f"add the column, or say with data.columns what it is called: {{{lacking[0]}: COLUMN}}"
            if key not in _OF_A_RUN:
                todo = "ask it for prompts that do, or ask a pipeline that needs none"
            raise ConfigError(f"{name} needs {', '.join(lacking)}, which {key} does not bring: {todo}")


def find_form(pipe: Any, prompts: Sequence[str], observe: Observe, *, pictured: bool) -> Form:
    """Return the first form whose rows come out as they do alone.

    Args:
        pipe: The pipeline.
        prompts: All there will be.
        observe: Runs the pipeline.
        pictured: Whether the rows of every call come with pictures.

    Raises:
        PipelineError: If results differ in size with the pictures.
    """
    if not pictured:
        return Form.ROWS
    first, seeds = prompts[0], torch.tensor([0, 1])
    alone = observe(Form.SHARED, (first,), seeds[:1])
    other = _most_different(prompts)
    if other is not None and _mixes(first, other, alone, observe):
        return Form.ROWS
    twins = torch.cat([alone, observe(Form.SHARED, (first,), seeds[1:])])
    for form in (Form.SHARED, Form.ALIKE, Form.REPEATED):
        if form is Form.REPEATED and not any(_takes(pipe, name) for name in _NUMBERS):
            continue
        try:
            off = _distance(observe(form, (first, first), seeds), twins)
        except PipelineError:
            continue
        if off <= _SAME * twins.abs().max():
            return form
    return Form.ALONE


def first_accepted(call: Callable[[Form], Answer], otherwise: Callable[[], None] | None = None) -> Answer:
    """Return the result of a call with one row: passed in lists of one, or without lists if those are refused.

    Args:
        call: Makes it.
        otherwise: Changes something for a second try, if all forms are refused.
    """
    try:
        return call(Form.SHARED)
    except PipelineError as refused:
        try:
            return call(Form.BARE)
        except PipelineError:
            if otherwise is None:
                raise refused from refused.__cause__
    otherwise()
    return first_accepted(call)


def makes_two(call: Call, prompt: str, rounds: int) -> bool:
    """Return whether the pipeline makes two rows in one call, each as it makes it alone."""

    def state(rows: int, *, pixels: bool) -> Tensor:
        conductor = Conductor([Native(), *([Skip()] * (rounds - 1))])
        call(conductor, (prompt,) * rows, torch.arange(rows), pixels=pixels)
        assert conductor.final is not None
        return conductor.final.float()

    try:
        two = state(2, pixels=True)
    except PipelineError:
        return False
    alone = state(1, pixels=False)
    return bool(_distance(two[:1], alone) <= _SAME * alone.abs().max())


def _mixes(first: str, other: str, alone: Tensor, observe: Observe) -> bool:
    """Return whether rows with different pictures come out of one call as they come out of two."""
    seeds = torch.tensor([0, 1])
    apart = [alone, observe(Form.SHARED, (other,), seeds[1:])]
    if apart[0].shape != apart[1].shape:
        raise PipelineError(
            "pictures of different sizes give results of different sizes, which cannot be compared: set "
            "policy.call.height and width, or bring the pictures to one size"
        )
    borrowed = observe(Form.SHARED, (Prompt(str(first), inputs_of(other)),), seeds[:1])
    if borrowed.shape != alone.shape:
        return False
    try:
        off = _distance(observe(Form.ROWS, (first, other), seeds), torch.cat(apart))
    except PipelineError:
        return False
    effect = (borrowed - alone).abs().max()
    return bool(off <= max(_SHARE_OF_EFFECT * effect, _ROUNDING * alone.abs().max()))


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).abs().max() if found.shape == wanted.shape else torch.tensor(torch.inf)


def _most_different(prompts: Sequence[str]) -> str | None:
    """Return a prompt with other pictures than the first one's, of another size if there is one."""
    others = [prompt for prompt in prompts if _pictures(prompt) != _pictures(prompts[0])]
    unequal = (prompt for prompt in others if _sizes(prompt) != _sizes(prompts[0]))
    return next(unequal, others[0] if others else None)


def _sizes(prompt: str) -> list[tuple[int, int]]:
    return [picture.size for picture in _pictures(prompt).values()]


def _pictures(prompt: str) -> dict[str, Picture | Clip]:
    return {name: value for name, value in inputs_of(prompt).items() if isinstance(value, Picture | Clip)}


def _is_by_row(name: str, value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, str) and name.startswith(_TEXTS))


def _opened(value: object) -> object:
    return value.open() if isinstance(value, Picture | Clip) else value


def _takes(pipe: Any, name: str) -> bool:
    return name in inspect.signature(type(pipe).__call__).parameters


def brings_pictures(prompts: Sequence[str], common: Mapping[str, object]) -> bool:
    """Return whether rows come with pictures: their own, or one that a config gives to all of them."""
    return bool(_pictures(prompts[0])) or any(isinstance(value, Image.Image) for value in common.values())
