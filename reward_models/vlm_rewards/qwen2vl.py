"""Reward models made of Qwen2-VL: marked tokens of an instruction, and a small head on what is read there.

HPSv3 and VideoAlign were trained with transformers 4.45, which gives the body plain positions 0, 1, 2, ... where a
reward model calls it. Later versions give it positions in time, height and width, and scores are then wrong by more
than their own spread; so the positions are passed here, whatever the version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.base import RewardError
from reward_models.loading.weights import Dtype, Provenance, fill, find_folder, load_pretrained, quiet_transformers

FACTOR = 28
"""Sides of what Qwen2-VL sees are multiples of this."""

_READ = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
"""What the body takes of what the processor makes. The rest is about positions, which are passed."""

PLACE = "{text_prompt}"
"""Where an instruction takes the prompt."""


def instruction(name: str) -> str:
    """Return the text a checkpoint was trained with; a byte more or less is another model."""
    return (Path(__file__).parent / "instructions" / f"{name}.txt").read_text(encoding="utf-8")


def fitted_size(name: str, frames: Tensor, *, fewest: int, most: int) -> tuple[int, int]:
    """Return (height, width), multiples of `FACTOR`, in which Qwen2-VL looks at frames `[F, 3, H, W]`.

    Args:
        name: Who asks, for messages.
        frames: What is looked at.
        fewest: Pixels per frame, at least, where the shape allows it.
        most: Pixels per frame, at most.

    Raises:
        RewardError: If the shape is extreme.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        return smart_resize(*frames.shape[-2:], factor=FACTOR, min_pixels=fewest, max_pixels=most)
    except ValueError as error:
        raise RewardError(f"{name} cannot look at pictures of {tuple(frames.shape[-2:])} pixels: {error}") from error


@dataclass(frozen=True)
class Qwen2VLReader:
    """A loaded model that reads pictures or clips under an instruction.

    Attributes:
        name: Of the reward, for messages.
        body: Qwen2-VL without its language head.
        head: From what is read at a marked token to numbers; float32.
        processor: Of the body.
        marks: Ids of the marked tokens.
        instruction: With `PLACE` for the prompt, and each marked token once.
        clips: Whether it looks at clips rather than pictures.
        provenance: What it was loaded from.
    """

    name: str
    body: Any
    head: nn.Module
    processor: Any
    marks: tuple[int, ...]
    instruction: str
    clips: bool
    provenance: Provenance

    def __call__(self, media: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Return the head's numbers at each marked token, `[B, marks, numbers]` float32.

        Args:
            media: A clip `[F, 3, h, w]` each, of fitting sides; F = 1 for pictures.
            prompts: One text each.

        Raises:
            RewardError: If a prompt has one of the model's control tokens in it.
        """
        inputs = self._inputs(media, prompts)
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        read = self.body(**inputs, position_ids=positions, use_cache=False).last_hidden_state
        rows = [read[ids == mark] for mark in self.marks]
        return self.head(torch.stack(rows, 1).float())

    def _inputs(self, media: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Tensor]:
        control = self.processor.tokenizer.get_added_vocab()
        for row, prompt in enumerate(prompts):
            if inside := [token for token in control if token in prompt]:
                raise RewardError(f"{self.name}: prompt {row} has the control token {inside[0]} in it; take it out")
        texts = self.processor.apply_chat_template(
            [_conversation(self.instruction.replace(PLACE, prompt), clip=self.clips) for prompt in prompts],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        # The pixels are in [0, 1] and of the right size already, and every frame is wanted.
        how = {"do_rescale": False, "do_resize": False}
        if self.clips:
            with quiet_transformers():  # it warns of limits on pixels, which were kept here already
                inputs = self.processor(
                    text=texts, videos=list(media), padding=True, return_tensors="pt",
                    videos_kwargs={**how, "do_sample_frames": False},
                )  # fmt: skip
        else:
            pictures = [frame for clip in media for frame in clip]
            inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt", images_kwargs=how)
        wanted = (
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
        )
        return {
            key: value.to(self.body.device, self.body.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
            if key in wanted
        }


def _conversation(text: str, *, clip: bool) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video" if clip else "image"}, {"type": "text", "text": text}]}]


@dataclass(frozen=True)
class Qwen2VLCheckpoint:
    """What there is to load.

    Attributes:
        name: Of the reward.
        base: Folder or hub id of the Qwen2-VL it was made of, for configuration and vocabulary.
        marks: The marked tokens, which extend the vocabulary.
        clips: Whether it looks at clips.
        dtype: What the body computes in.
    """

    name: str
    base: str
    marks: tuple[str, ...]
    clips: bool
    dtype: Dtype


def load_reader(
    what: Qwen2VLCheckpoint,
    state: Mapping[str, Tensor],
    *,
    head: nn.Module,
    files: tuple[Path, ...],
    device: torch.device,
) -> Qwen2VLReader:
    """Put a checkpoint's tensors into Qwen2-VL and the head.

    Args:
        what: What there is to load.
        state: The checkpoint, adapters merged, with the names of transformers 4.45 or later ones.
        head: On the meta device; its weights are called "rm_head.0.weight" and so on.
        files: Where the state came from.
        device: Where it runs.

    Raises:
        RewardError: If something is missing, or of another architecture.
    """
    from transformers import AutoConfig, AutoProcessor, Qwen2VLModel

    folder = find_folder(what.name, what.base, weights=False)
    try:
        config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise RewardError(f"{what.name}: base: {folder} does not hold Qwen2-VL: {error}") from error
    if config.model_type != "qwen2_vl":
        raise RewardError(f"{what.name}: base: {folder} holds a {config.model_type!r} model, expected 'qwen2_vl'")
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(list(what.marks), special_tokens=True)
    tokenizer.padding_side = "right"
    config.text_config.vocab_size = len(tokenizer)  # checkpoints were cut to the vocabulary
    inside = {key.removeprefix("rm_head."): value for key, value in state.items() if key.startswith("rm_head.")}
    fill(f"{what.name}, head", head, {key: value.float() for key, value in inside.items()})
    rest = {_renamed(key): value for key, value in state.items() if not key.startswith(("rm_head.", "lm_head."))}
    load = Qwen2VLModel.from_pretrained
    body = load_pretrained(what.name, load, None, config=config, dtype=what.dtype, state=rest)
    text = instruction(what.name)
    return Qwen2VLReader(
        name=what.name,
        body=body.to(device),
        head=head.requires_grad_(False).eval().to(device),
        processor=processor,
        marks=tuple(tokenizer.convert_tokens_to_ids(list(what.marks))),
        instruction=text,
        clips=what.clips,
        provenance=Provenance(files, f"{what.base}; {text}"),
    )


def _renamed(key: str) -> str:
    """Return a weight's name in the bare body, from its name in transformers 4.45 or in later versions."""
    if key.startswith(("model.language_model.", "model.visual.")):
        return key.removeprefix("model.")
    return re.sub(r"^model\.", "language_model.", key)


def merged(name: str, state: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Return a PEFT state dict with its adapters folded in, and the names of the model it was made of.

    W + scale B A, in float32.

    Args:
        name: Who loads, for messages.
        state: Names such as "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight".
        scale: Of the adapters: alpha / rank, or alpha / sqrt(rank).

    Raises:
        RewardError: If an adapter has no weight to go to.
    """
    plain = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    weights = {key.replace(".base_layer.", "."): value for key, value in plain.items() if ".lora_" not in key}
    for key in plain:
        if ".lora_A." not in key:
            continue
        target, other = re.sub(r"\.lora_A\.(default\.)?", ".", key), key.replace(".lora_A.", ".lora_B.")
        if target not in weights or other not in plain:
            raise RewardError(f"{name}: the checkpoint has the adapter {key} without what it belongs to")
        update = scale * (plain[other].float() @ plain[key].float())
        weights[target] = weights[target].float() + update
    return weights
