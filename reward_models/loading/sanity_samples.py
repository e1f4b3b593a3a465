"""Samples that any model which reads captions has to get right."""

from __future__ import annotations

import torch

from reward_models.base import KnownAnswer, Media

_SIDE = 64


def colours() -> tuple[KnownAnswer, ...]:
    """Return a red and a blue picture under the caption of each: the one that fits scores above the other.

    Weak on purpose: it is about weights that are wrong, prompts in the wrong rows and channels in the wrong order.
    """
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    return tuple(
        KnownAnswer(
            says=f"under the caption '{caption}' the {name} picture scores above the {other} one",
            media=Media(torch.stack([fits, not_]).view(2, 1, 3, 1, 1).expand(-1, -1, -1, _SIDE, _SIDE)),
            prompts=(caption, caption),
            best_first=True,
        )
        for name, other, caption, fits, not_ in (
            ("red", "blue", "a plain red background", red, blue),
            ("blue", "red", "a plain blue background", blue, red),
        )
    )
