"""How much moves in a clip: the optical flow between its frames, by torchvision's RAFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.error import URLError

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.models import get_weight
from torchvision.models.optical_flow import raft_large, raft_small

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards
from reward_models.loading.inputs import check_clips
from reward_models.loading.weights import fill, read_state

_NAME = "optical_flow"
_OFFICIAL = "C_T_V1"

_MULTIPLE = 8
"""RAFT works on an eighth of the picture, and looks at that on four scales."""
_LEAST = 128

_RATE = 8.0
"""Frames per second that VBench compares."""
_FASTEST = 0.05
"""Part of the pixels that counts."""
_THRESHOLD = 6 / 256
"""Of the shorter side: what moves less between two frames is still."""
_MOVING = 4 / 16
"""Part of the frames that has to move."""


@dataclass(frozen=True)
class OpticalFlow(RewardModel):
    """Score how fast the fastest twentieth of a clip moves, in units of VBench's threshold: 1 is just dynamic.

    Between frames about 1/8 s apart, the mean length of the largest 5 % of the flow, over 6/256 of the shorter side,
    averaged over the clip. The part "dynamic" is VBench's own verdict, 0 or 1: whether enough pairs of frames are above
    the threshold. Any motion counts, the camera's and flicker too: without a second reward, training learns to shake.
    The prompt is not read.

    Attributes:
        network: "raft_large" or "raft_small".
        weights: A file of torchvision's layout, or the name torchvision gives them. "C_T_V1" of the large network is
            the authors' own "things" checkpoint, which VBench uses.
        updates: Refinements of each flow.
        longest_side: Larger frames are shrunk to this; null looks at them as they are.

    Source: the dynamic degree of VBench (arXiv 2311.17982); RAFT (arXiv 2003.12039).
    """

    network: Literal["raft_large", "raft_small"] = "raft_large"
    weights: str = _OFFICIAL
    updates: int = 20
    longest_side: int | None = None

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.updates < 1 or (self.longest_side is not None and self.longest_side < 1):
            raise RewardError(f"{_NAME}: updates and longest_side are at least 1, got {self}")

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return a clip that pans over a texture and one that stands still, for torchvision's weights alone."""
        if Path(self.weights).is_file():
            return ()
        texture = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
        texture = interpolate(texture[None], size=(192, 256), mode="bilinear")[0]
        moving = torch.stack([texture[:, :128, 12 * i : 12 * i + 128] for i in range(3)])
        media = Media(torch.stack([moving, moving[:1].expand(3, -1, -1, -1)]), fps=_RATE)
        return (KnownAnswer("a clip that pans moves more than one that stands", media, ("", ""), best_first=True),)

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _OpticalFlowScorer:
        """Return the scorer.

        Raises:
            RewardError: If the weights cannot be found or are of another network.
        """
        build = {"raft_large": raft_large, "raft_small": raft_small}[self.network]
        with torch.device("meta"):
            network = build()
        fill(_NAME, network, _state(self.network, self.weights))
        return _OpticalFlowScorer(self, network.requires_grad_(False).eval().to(device), device)


def _state(network: str, weights: str) -> dict[str, Tensor]:
    if Path(weights).is_file():
        return read_state(_NAME, Path(weights))
    family = "".join(word.title() + "_" for word in network.split("_")) + "Weights"
    try:
        return dict(
            get_weight(f"{family}.{weights}").get_state_dict(progress=False, check_hash=True, weights_only=True)
        )
    except (KeyError, ValueError) as error:
        raise RewardError(f"{_NAME}: {weights!r} is neither a file nor weights of {network} in torchvision") from error
    except (URLError, OSError, RuntimeError) as error:
        raise RewardError(
            f"{_NAME}: torchvision could not fetch {weights}: {error}; give the path of a file"
        ) from error


@dataclass(frozen=True)
class _OpticalFlowScorer:
    model: OpticalFlow
    network: Any
    device: torch.device

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score clips; gradients reach the frames that are compared.

        Raises:
            RewardError: If these are pictures, or the frame rate of the clips is not known.
        """
        check_clips(_NAME, media, prompts)
        if media.fps is None:
            raise RewardError(f"{_NAME} needs the frames per second of a clip, and the media have none: give fps")
        apart = max(1, round(media.fps / _RATE))
        clips = media.pixels[:, ::apart] if media.pixels.shape[1] > apart else media.pixels[:, [0, -1]]
        speeds = torch.stack([self._speeds(clip) for clip in clips]).to(media.pixels.device)
        enough = round(_MOVING * clips.shape[1])
        dynamic = (speeds > 1).sum(1) >= enough
        return Rewards(speeds.mean(1), {"dynamic": dynamic.float()})

    def _speeds(self, clip: Tensor) -> Tensor:
        """Return the speed between neighbours of `[F, 3, H, W]`, `[F - 1]`, in thresholds."""
        frames = self._ready(clip.to(self.device).float())
        pairs = zip(frames[:-1].split(1), frames[1:].split(1), strict=True)
        flows = torch.cat([self.network(a, b, num_flow_updates=self.model.updates)[-1] for a, b in pairs])
        # The gradient of a length is not defined at zero, where nothing moves.
        lengths = (flows.square().sum(1) + torch.finfo(flows.dtype).eps).sqrt().flatten(1)
        fastest = lengths.topk(max(1, int(_FASTEST * lengths.shape[1])), dim=1).values.mean(1)
        return fastest / (_THRESHOLD * min(frames.shape[-2:]))

    def _ready(self, clip: Tensor) -> Tensor:
        """Return frames in [-1, 1] of a size that RAFT takes."""
        height, width = clip.shape[-2:]
        shrink = min(1.0, (self.model.longest_side or max(height, width)) / max(height, width))
        grow = max(1.0, _LEAST / (shrink * min(height, width)))
        if shrink * grow != 1:
            size = [round(side * shrink * grow) for side in (height, width)]
            clip = interpolate(clip, size=size, mode="bilinear", antialias=True)
        below, right = (-side % _MULTIPLE for side in clip.shape[-2:])
        return pad(clip * 2 - 1, (0, right, 0, below), mode="replicate")
