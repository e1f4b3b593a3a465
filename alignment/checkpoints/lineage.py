"""What the adapters that a run begins with were trained on, compared with what they lie on now."""

from __future__ import annotations

import warnings

from alignment.checkpoints.adapter_files import lying_under
from alignment.checkpoints.artifacts import read_card
from alignment.errors import CheckpointError
from alignment.policy.networks.adapter_places import CARD_DATA
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.weights import Brought


def compare_bases(spec: PolicySpec, base: str, brought: Brought) -> None:
    """Warn of adapters that were trained on other weights than those under them now.

    That is what the cards of our checkpoints and exports say; of files that other programs wrote nobody knows it.

    Args:
        spec: The policy.
        base: Hash of its pipeline's content.
        brought: The adapters.
    """
    for place, numbers in brought.under.items():
        if not (place.folder / CARD_DATA).is_file():
            continue
        try:
            card = read_card(place.folder)
        except CheckpointError:  # another program's file of that name
            continue
        told = card.config["policy"]
        loaded_alike = (told.get("dtype"), told.get("quantize")) == (spec.dtype, spec.quantize)
        if loaded_alike and card.base not in (None, base):
            warnings.warn(
                f"{place.key}: {place.name} was trained on {told.get('single_file') or told['pipeline']}, and "
                f"{spec.single_file or spec.pipeline} is another base, by content: what it does "
                "here is not what it was trained to do",
                stacklevel=2,
            )
        under = lying_under(card.config)
        for then, weight in ((under[k], brought.frozen[n][1]) for k, n in numbers.items() if k < len(under)):
            if weight != then["weight"]:
                warnings.warn(
                    f"{place.key}: {place.name} was trained on top of {then['path']} at weight {then['weight']}, which "
                    f"has weight {weight} here (policy.adapters)",
                    stacklevel=2,
                )
