"""Sizes that a pipeline would silently round: refused before anything is trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alignment.data.batches import inputs_of
from alignment.data.media import Clip
from alignment.errors import ConfigError, DataError
from alignment.policy.call_forms import check_inputs
from alignment.policy.latent_grid import TEMPORAL

_ROUNDED = 128
"""Pixels: what is off by less was rounded; what is off by more, as in upscaling, is meant."""


def check_media(pipe: Any, calls: Mapping[str, Mapping[str, object]], files: Mapping[str, Sequence[str]]) -> None:
    """Refuse prompts and call arguments whose media do not fit the pipeline.

    Args:
        pipe: The pipeline.
        calls: Arguments of its `__call__` by their key, those of training first.
        files: Prompts, by what messages call them: the key that names their file, or words.

    Raises:
        ConfigError: If arguments do not fit.
        DataError: If prompts do not.
    """
    own = next(iter(calls.values()))
    check_inputs(pipe, files, own)
    for key, arguments in calls.items():
        check_frames(pipe, arguments, key)
    check_clips(files, own)


def check_frames(pipe: Any, call: Mapping[str, object], key: str) -> None:
    """Refuse a number of frames that does not fit the pipeline's latent frames.

    A pipeline whose own default does not fit either, because its frames are counted in another way, is left alone.

    Raises:
        ConfigError: With the arithmetic.
    """
    frames = call.get("num_frames")
    ratio = next((getattr(pipe, name) for name in TEMPORAL if hasattr(pipe, name)), 1)
    default = inspect.signature(type(pipe).__call__).parameters.get("num_frames")
    if not isinstance(frames, int) or default is None or not isinstance(default.default, int):
        return
    latent, over = divmod(frames - 1, ratio)
    if frames < 1 or (over and (default.default - 1) % ratio == 0):
        near = " or ".join(str(1 + n * ratio) for n in (latent, latent + 1) if n >= 0)
        raise ConfigError(
            f"{key}.num_frames: {frames} = 1 + {latent} x {ratio} + {over}, but a latent frame of "
            f"{type(pipe).__name__} holds {ratio} frames after the first: use {near}"
        )


def check_picture_size(pipe: Any, call: Mapping[str, object], made: Tensor) -> None:
    """Refuse a height or width that the pipeline rounded.

    Args:
        pipe: The pipeline.
        call: What it was called with.
        made: What came out, `[n, F, 3, H, W]`.

    Raises:
        ConfigError: Saying what it makes.
    """
    for name, got in {"height": made.shape[-2], "width": made.shape[-1]}.items():
        asked = call.get(name)
        if isinstance(asked, int) and 0 < abs(asked - got) < _ROUNDED:
            raise ConfigError(
                f"policy.call.{name}: {asked} was asked for and {type(pipe).__name__} makes {got}; ask for {got}, or "
                "another size that it can make"
            )


def check_clips(files: Mapping[str, Sequence[str]], call: Mapping[str, object]) -> None:
    """Refuse clips that are not as long as what is made of them, or not as long as each other.

    Equally long clips that are shorter than what is made are continued by the pipeline: a warning, not an error.

    Raises:
        DataError: Naming the first clip that does not fit, with the arithmetic.
    """
    clips: dict[str, list[Clip]] = {}
    where, whole = next(iter(files)), [prompt for prompts in files.values() for prompt in prompts]
    for prompt in whole:
        for name, clip in inputs_of(prompt).items():
            if isinstance(clip, Clip):
                clips.setdefault(name, []).append(clip)
    made = call.get("num_frames")
    for name, found in clips.items():
        wanted = made if isinstance(made, int) else found[0].frames
        length = found[0].frames
        if length < wanted and all(clip.frames == length for clip in found):
            warnings.warn(
                f"{where}: each {name} has {length} of the {wanted} frames of policy.call.num_frames: what is "
                "made goes on from there, if the pipeline does that",
                stacklevel=2,
            )
            continue
        for clip in found:
            if clip.frames != wanted:
                short = wanted - clip.frames
                says = f"{short} too few: lengthen it" if short > 0 else f"{-short} too many: cut it"
                raise DataError(
                    f"{where}: the {name} {clip.path} has {clip.frames} frames where {wanted} are wanted, {says}, "
                    "or change policy.call.num_frames"
                )
