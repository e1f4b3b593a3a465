"""What every contestant of the race does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What every contestant does.

    Attributes:
        pipeline: The tiny FLUX.
        learned: File of the prompts that are trained on.
        held_out: File of those that are measured on.
        side: Of a picture, in pixels.
        tokens: Of a text.
        strict: Weight of the all-or-nothing score in the reward.
        prompts: Prompts of an iteration.
        group: Samples of each.
        steps: Denoising steps of a sample.
        window: Of which so many are drawn with noise and trained.
        noise: The `a` of Flow-SDE.
        updates: Optimiser's steps of an iteration.
        rows: Samples in a call of the network, where the contestant does not choose it.
        clip: Range of ratios.
        rank: Of the LoRA; its alpha is the same.
        targets: Name endings of the layers that it adapts.
        learning_rate: Of AdamW.
        threads: Of an operation.
        seed: Of all that is drawn.
        images: Pictures of each held-out prompt.
    """

    pipeline: str = "assets/tiny_flux"
    learned: str = "assets/prompts/shapes_train.txt"
    held_out: str = "assets/prompts/shapes_test.txt"
    side: int = 32
    tokens: int = 12
    strict: float = 0.8
    prompts: int = 8
    group: int = 8
    steps: int = 10
    window: int = 2
    noise: float = 0.7
    updates: int = 2
    rows: int = 8
    clip: float = 1e-4
    rank: int = 16
    targets: tuple[str, ...] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
    learning_rate: float = 7e-4
    threads: int = 2
    seed: int = 0
    images: int = 64
