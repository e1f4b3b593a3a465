"""Networks of transformers that see pictures and are not trained."""

from __future__ import annotations

from typing import Any

from reward_models.base import RewardError
from reward_models.loading.weights import Dtype, find_folder, load_pretrained


def frozen_network(
    name: str, kind: Any, weights: str, revision: str | None, *, dtype: Dtype, unused: str = "", also: str = ""
) -> Any:
    """Return a frozen transformers network.

    Args:
        name: Who asks, for messages.
        kind: Its class.
        weights: A folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What it computes in.
        unused: Regular expression of weights that the checkpoint may have beyond the network's.
        also: Another type that a checkpoint may say it is of, whose configuration and weights hold the network's.

    Raises:
        RewardError: If it is missing, damaged, or of another architecture.
    """
    folder = find_folder(name, weights, revision)
    try:
        config = kind.config_class.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise RewardError(f"{name}: {folder} holds no model: {error}") from error
    wanted = kind.config_class.model_type
    if config.model_type not in (wanted, also):
        raise RewardError(f"{name}: {folder} holds a model of type {config.model_type!r}, expected {wanted!r}")
    return load_pretrained(name, kind.from_pretrained, folder, config=config, dtype=dtype, unused=unused)
