"""The head that LAION's aesthetic predictor and ImageReward share: five linear layers and no activation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reward_models.loading.weights import fill

_WIDTHS = (1024, 128, 64, 16, 1)
_PLACES = (0, 2, 4, 6, 7)
"""Numbers of the layers in checkpoints; between them lay dropout."""


def linear_head(name: str, state: Mapping[str, Tensor], width: int) -> nn.Module:
    """Return the head, float32 and frozen, that maps `[N, width]` to `[N, 1]`.

    Args:
        name: Who loads, for messages.
        state: Weights, called "layers.0.weight" and so on.
        width: Of what goes in.

    Raises:
        RewardError: If the weights are of something else.
    """
    with torch.device("meta"):
        sizes = zip(_PLACES, (width, *_WIDTHS), _WIDTHS, strict=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            (f"{place}", nn.Linear(before, after)) for place, before, after in sizes
        )
        head = nn.Sequential(OrderedDict[str, nn.Module](layers=nn.Sequential(layers)))
    fill(f"{name}, head", head, {key: weight.float() for key, weight in state.items()})
    return head.requires_grad_(False).eval()
