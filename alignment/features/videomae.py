"""VideoMAE: the features of a Fréchet distance of clips that sees how they move, where FVD mostly sees frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alignment.errors import DataError
from alignment.features.base import Extract, Extractor
from alignment.features.checkpoints import WithWeights
from reward_models.loading.weights import check_complete, fill, read_state

_SIDE, _FRAMES = 224, 16
"""Of the clips that it was trained on."""
_HEADS = 16
"""Of the giant network, whose file does not say it."""
_EPS = 1e-6
"""Of its norms."""
_TOGETHER = 2
"""Clips that the network sees in one call: the giant one has 2,048 positions a clip."""
_HEAD = ("head.weight", "head.bias")
"""The classifier, which is not looked at."""
_NAMES = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "blocks.": "encoder.layer.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.q_bias": ".attention.attention.query.bias",
    ".attn.v_bias": ".attention.attention.value.bias",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
"""What transformers calls the modules of the authors."""


@dataclass(frozen=True)
class VideoMAE(Extractor, WithWeights):
    """The mean over positions of VideoMAE V2's last layer, after its norm, before its classifier.

    Clips are seen as at most 16 frames, evenly taken, the first and the last among them; an odd last frame is left out,
    for the network takes two at a time. Published numbers take 16 frames that follow each other.

    Attributes:
        weights: The authors' file `vit_g_hybrid_pt_1200e_ssv2_ft.pth`, or "owner/name/file" on the hub.

    Source: Ge et al., "On the Content Bias in Fréchet Video Distance" (arXiv 2404.12391), with the giant network
        fine-tuned on Something-Something V2; levels in [0, 1] as they are, sides scaled bilinearly to 224. Positions
        of fewer frames are interpolated in time, as theirs are.
    """

    weights: str = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"

    distance: ClassVar[Literal["cosine", "euclidean"]] = "euclidean"
    clips: ClassVar[bool] = True
    licence: ClassVar[str] = "Apache-2.0 on one page of its authors, CC-BY-NC-4.0 on others"
    place: ClassVar[str] = "huggingface.co/OpenGVLab/InternVideoMAE_models, mae-g"

    def check(self) -> None:
        """Look for the file."""
        self.file(self.weights)

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded network."""
        network, norm = self._network()
        network.to(device)
        norm.to(device)
        positions = network.embeddings.position_embeddings
        moments, sides = _FRAMES // network.config.tubelet_size, _SIDE // network.config.patch_size

        def see(clips: Tensor) -> Tensor:
            if clips.shape[1] < network.config.tubelet_size:
                raise DataError(
                    f"{self.asks} takes clips of at least {network.config.tubelet_size} frames, got {clips.shape[1]}; "
                    "leave it out for pictures"
                )
            return torch.cat([_mean_position(part) for part in clips.split(_TOGETHER)])

        def _mean_position(clips: Tensor) -> Tensor:
            taken = clips.shape[1] // network.config.tubelet_size
            frames = clips[:, : taken * network.config.tubelet_size].float()
            scaled = interpolate(frames.flatten(0, 1), (_SIDE, _SIDE), mode="bilinear", align_corners=False)
            patches = network.embeddings.patch_embeddings(scaled.unflatten(0, frames.shape[:2]))
            hidden = patches + _in_time(positions, moments, sides, taken).to(patches)
            return norm(network.encoder(hidden).last_hidden_state.mean(1))

        return see

    def _network(self) -> tuple[Any, nn.Module]:
        """Return the network up to its last layer, and the norm after it."""
        with self.published():
            state = dict(read_state(self.asks, self.file(self.weights)))
            wanted = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "fc_norm.weight", "fc_norm.bias")
            check_complete(self.asks, [name for name in wanted if name not in state], ())
            network = _built(state)
            norm = nn.LayerNorm(network.config.hidden_size, _EPS)
            fill(self.asks, norm, {side: state.pop(f"fc_norm.{side}") for side in ("weight", "bias")})
            fill(self.asks, network, _renamed({name: z for name, z in state.items() if name not in _HEAD}))
        return network.requires_grad_(False).eval(), norm.requires_grad_(False).eval()


def _built(state: Mapping[str, Tensor]) -> Any:
    """Return a network of the sizes that the authors' tensors have, without numbers."""
    from transformers import VideoMAEConfig, VideoMAEModel

    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    config = VideoMAEConfig(
        image_size=_SIDE,
        patch_size=patch,
        num_frames=_FRAMES,
        tubelet_size=tubelet,
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_attention_heads=_HEADS,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        layer_norm_eps=_EPS,
        use_mean_pooling=True,
    )
    with torch.device("meta"):
        return VideoMAEModel(config)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by transformers' names, which has queries, keys and values apart."""
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        block, fused, _ = name.partition(".attn.qkv.weight")
        if fused:
            for part, z in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                made[f"{block}.attention.attention.{part}.weight"] = z
        else:
            made[name] = tensor
    return made


def _in_time(positions: Tensor, moments: int, sides: int, taken: int) -> Tensor:
    """Return the embeddings of positions for another number of moments, `[1, taken * sides^2, d]`."""
    if taken == moments:
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (moments, sides, sides))
    factor = (taken + 0.1) / moments  # the tenth, as the authors have it, against rounding
    return interpolate(grid, scale_factor=(factor, 1.0, 1.0), mode="trilinear").flatten(2).transpose(1, 2)
