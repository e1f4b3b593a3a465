"""Where an update goes when one region of the picture decides the reward: ViPO against scalar GRPO.

    python examples/where_credit_goes.py --steps 1 --seeds 0 --output docs/vipo_region.png

The reward is how red the drawn objects are; the background counts for nothing. Both methods run the DanceGRPO recipe
of the quickstart on the tiny FLUX pipeline and see the same first samples. Two things are measured on those samples, at
the latent positions that an object covers against all positions:

    credit   the energy of dL/dv before the first update: what the loss asks of each position
    update   the energy of the change of v after the steps, at the states where it was asked: what the weights, which
             all positions share, made of it

A share equal to the region's share of the positions is what an update that knows no region has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.config.load import load as load_run
from alignment.data.batches import Transitions
from alignment.policy.latent_grid import LatentGrid, latent_grid
from alignment.reports.pictures import encode, grid, heat
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from reward_models.base import Media

RECIPE = "quickstart_dancegrpo"
SCALAR = ["objective={type: clipped_surrogate, clip: 1e-4}"]
MAPPED = [
    "objective={type: vipo, clip: 2e-2}",
    "source.structure={type: perceptual, backbone: {type: saliency, patch: 4}, keep_mass: true}",
]
SHARED = [
    'source.reward={type: function, call: "examples.where_credit_goes:redness_of_objects"}',
    "evaluation.prompts=null",
    "device=cpu",
    "batch.updates=1",
]
DIFFERS = 0.25
"""How far a pixel's colour lies from the background's, in one channel, where it belongs to an object."""
COVERED = 0.25
"""Share of a position's pixels that an object covers where the position counts as its."""


def objects(pixels: Tensor) -> Tensor:
    """Return which pixels of pictures `[B, 1, 3, H, W]` belong to an object, `[B, H, W]` bool.

    The background is the colour that is the middle one of all pixels, channel by channel.
    """
    picture = pixels[:, 0]
    background = picture.flatten(2).median(dim=2).values[..., None, None]
    return (picture - background).abs().amax(dim=1) > DIFFERS


def redness_of_objects(pixels: Tensor, prompts: Sequence[str]) -> list[float]:
    """Return red minus half of green and blue, averaged over the pixels of objects; NaN where there are none."""
    red, green, blue = pixels[:, 0].unbind(dim=1)
    there = objects(pixels)
    total = ((red - (green + blue) / 2) * there).flatten(1).sum(dim=1)
    return (total / there.flatten(1).sum(dim=1)).tolist()


@dataclass(frozen=True)
class Shares:
    """What the positions of objects have of all: of their number, of the credit's energy, of the update's."""

    area: float
    credit: float
    update: float


def positions(energy: Tensor, place: LatentGrid) -> Tensor:
    """Return energy `[n, *latent]` summed over channels, `[n, height, width]`."""
    axes = [axis for axis, n in enumerate(place.shape, start=1) if n == 1]
    return energy.sum(axes).reshape(-1, place.height, place.width)


def answers(trainer: Trainer, batch: Transitions) -> Tensor:
    """Return the model output at every trained state, `[n, K, *latent]`."""
    found: dict[int, Tensor] = {}
    trainer.policy.replay(batch, lambda k, v: found.update({k: v.float()}), grad=False)
    return torch.stack([found[k] for k in sorted(found)], dim=1)


def asked(trainer: Trainer, batch: Transitions, before: Tensor) -> Tensor:
    """Return dL/dv at every trained state, `[n, K, *latent]`."""
    gradients = []
    for k in range(before.shape[1]):
        v = before[:, k].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(trainer.run.objective.loss(batch, k, v, None).per_row.sum(), v)
        gradients.append(gradient)
    return torch.stack(gradients, dim=1)


def share(energy: Tensor, region: Tensor) -> float:
    """Return the region's share of `energy` `[n, height, width]`, averaged over the pictures that have both."""
    whole = energy.flatten(1).sum(dim=1)
    there = (energy * region).flatten(1).sum(dim=1)
    counted = (whole > 0) & region.flatten(1).any(dim=1)
    return (there / whole)[counted].mean().item()


def measure(method: Sequence[str], seed: int, steps: int) -> tuple[Shares, Media, Tensor | None]:
    """Train `steps` steps and return the shares, with the first samples and their maps."""
    run = load_run(RECIPE, [*SHARED, *method, f"seed={seed}", f"steps={steps}"])
    trainer = load(run, Runtime(run))
    first = trainer.experience(trainer.context(0))
    batch, pixels = first.batch, first.media.pixels
    assert isinstance(batch, Transitions)
    place = latent_grid(trainer.policy.pipe, batch.x.shape[2:], pixels.shape)
    covered = torch.nn.functional.adaptive_avg_pool2d(objects(pixels).float()[:, None], (place.height, place.width))
    region = covered[:, 0] >= COVERED
    before = answers(trainer, batch)
    credit = asked(trainer, batch, before)
    for step in range(steps):
        ctx = trainer.context(step)
        trainer.learn(ctx, (first if step == 0 else trainer.experience(ctx)).batch)
    change = answers(trainer, batch) - before
    energies = (positions(z.square().sum(dim=1), place) for z in (credit, change))
    shares = Shares(share(torch.ones_like(covered[:, 0]), region), *(share(energy, region) for energy in energies))
    return shares, first.media, first.maps


def main() -> None:
    """Print the shares of every seed as JSON, and write a picture of samples over their maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", help="file for the picture")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        told = {}
        for name, method in {"scalar": SCALAR, "vipo": MAPPED}.items():
            shares, media, maps = measure(method, seed, arguments.steps)
            told[name] = {key: round(value, 3) for key, value in vars(shares).items()}
            if maps is not None and arguments.output and seed == arguments.seeds[0]:
                shown = slice(0, 72, 9)
                both = Media(torch.cat([media.pixels[shown], heat(media[shown], maps[shown]).pixels]))
                captions = [*["sample"] * 8, *["where its credit goes"] * 8]
                with open(arguments.output, "wb") as file:
                    file.write(encode(grid(both, captions, [""] * 16)[0]))
        print(json.dumps({"seed": seed, "steps": arguments.steps, **told}), flush=True)


if __name__ == "__main__":
    main()
