"""Objects in a picture: which, where and how sure, by Mask2Former in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from reward_models.base import RewardError
from reward_models.loading.weights import Dtype, Provenance, find_folder, load_pretrained
from reward_models.verifiers.geneval_rules import OBJECTS

_OTHER_NAMES = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv", "mouse": "computer mouse",
    "remote": "tv remote", "keyboard": "computer keyboard", "pottedplant": "potted plant", "hair dryer": "hair drier",
    "diningtable": "dining table",
}  # fmt: skip
"""COCO's names, and those of older lists, where GenEval says something else."""


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        score: How sure the detector is, in [0, 1].
        box: (left, top, right, bottom) in pixels, the last two just outside.
        mask: `[H, W]` bool.
    """

    score: float
    box: tuple[int, int, int, int]
    mask: Tensor


@dataclass(frozen=True)
class Detector:
    """A loaded detector.

    Attributes:
        kinds: GenEval's name of each of the detector's classes that has one.
    """

    model: Any
    processor: Any
    kinds: Mapping[int, str]
    provenance: Provenance

    def __call__(self, pixels: Tensor, *, least: float) -> dict[str, list[Instance]]:
        """Return what is found in a picture `[3, H, W]` in [0, 1], by kind, surest first, if surer than `least`."""
        levels = (pixels.detach().float() * 255).round().clamp(0, 255).byte()
        ready = self.processor(images=levels.cpu(), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.no_grad():
            answer = self.model(**ready)
        size = tuple(pixels.shape[-2:])
        found = self.processor.post_process_instance_segmentation(
            answer, threshold=least, target_sizes=[size], return_binary_maps=True
        )[0]
        segments = found["segments_info"]
        kinds: dict[str, list[Instance]] = {}
        for mask, segment in zip(found["segmentation"] if segments else (), segments, strict=True):
            if segment["label_id"] in self.kinds and mask.any():
                left, top, right, bottom = (int(side) for side in masks_to_boxes(mask[None].float())[0])
                box = (left, top, right + 1, bottom + 1)
                kinds.setdefault(self.kinds[segment["label_id"]], []).append(
                    Instance(segment["score"], box, mask.bool())
                )
        return {kind: sorted(objects, key=lambda one: -one.score) for kind, objects in kinds.items()}


def load_detector(name: str, source: str, *, revision: str | None, device: torch.device, dtype: Dtype) -> Detector:
    """Load a Mask2Former that was trained on COCO's instances.

    Args:
        name: Who loads, for messages.
        source: Folder or hub id.
        revision: Of the hub's repository.
        device: Where it runs.
        dtype: What it computes in.

    Raises:
        RewardError: If this is not such a detector.
    """
    from transformers import AutoConfig, AutoImageProcessor, Mask2FormerForUniversalSegmentation

    folder = find_folder(name, source, revision)
    try:
        config, processor = AutoConfig.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise RewardError(f"{name}: {folder} holds no detector: {error}") from error
    if config.model_type != "mask2former":
        raise RewardError(f"{name}: {folder} holds a model of type {config.model_type!r}, expected 'mask2former'")
    kinds = _kinds(name, folder, config.id2label or {})
    load = Mask2FormerForUniversalSegmentation.from_pretrained
    model = load_pretrained(name, load, folder, config=config, dtype=dtype, unused=r".*relative_position_index")
    files: Sequence[Path] = sorted([*folder.glob("*.safetensors")] or [*folder.glob("*.bin")])
    return Detector(model.to(device), processor, kinds, Provenance(tuple(files), str(processor)))


def _kinds(name: str, folder: Path, labels: Mapping[Any, str]) -> dict[int, str]:
    named = {int(number): _OTHER_NAMES.get(label.lower(), label.lower()) for number, label in labels.items()}
    if lacking := sorted(set(OBJECTS) - set(named.values())):
        raise RewardError(
            f"{name}: the detector in {folder} does not know {len(lacking)} of GenEval's {len(OBJECTS)} objects: "
            f"{', '.join(lacking[:3])}; it was not trained on COCO"
        )
    return {number: kind for number, kind in named.items() if kind in OBJECTS}
