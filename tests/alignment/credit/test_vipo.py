"""Credit that differs from position to position: where positions are, what the loss makes of it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignment.config.run import Data, PolicySpec, Run
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.data.batches import Transitions
from alignment.errors import ConfigError, PipelineError
from alignment.objectives.kernels.surrogate import log_ratio
from alignment.objectives.policy_gradient.base import actions
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.vipo import ViPO
from alignment.policy.latent_grid import latent_grid
from alignment.reports.pictures import heat
from alignment.sources.on_policy_steps import OnPolicySteps
from reward_models.base import Media, Rewards
from reward_models.measures.jpeg import Jpeg
from samplers import Step
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All

ROWS, ACTIONS, CHANNELS, HEIGHT, WIDTH = 2, 3, 4, 3, 5
A, B, STD = 0.9, -0.3, 0.5
FLOAT32 = 1e-5  # relative, of densities computed in float32

STEPS = OnPolicySteps(2, Jpeg(), FlowSDE(), All(), group_size=2)
SPREAD = Perceptual(Saliency())


def transitions(credit: Tensor, maps: Tensor, packed: bool) -> Transitions:
    """Return one trained step; `maps` is `[ROWS, ACTIONS, height, width]`."""
    height, width = maps.shape[2:]
    latent = (height * width, CHANNELS) if packed else (CHANNELS, height, width)
    laid = maps.reshape(ROWS, ACTIONS, *((height * width, 1) if packed else (1, height, width)))
    x, v = torch.randn(2, ROWS, 1, *latent)
    return Transitions(
        prompts=("",) * ROWS,
        seeds=torch.arange(ROWS),
        group=torch.arange(ROWS),
        chunk=torch.zeros(ROWS, dtype=torch.int64),
        index=torch.zeros(ROWS, 1, dtype=torch.int64),
        x=x,
        x_next=(A * x + B * v)[:, :, None] + STD * torch.randn(ROWS, 1, ACTIONS, *latent),
        model_output=v,
        coefficients=torch.tensor([A, B, STD]).expand(ROWS, 1, 3),
        advantage=credit.reshape(ROWS, ACTIONS, *(1,) * len(latent)) * laid,
        mean_std=torch.full((ROWS,), STD),
    )


def gradient(objective: ViPO | ClippedSurrogate, batch: Transitions, at: Tensor | None = None) -> Tensor:
    v = (batch.model_output[:, 0] if at is None else at).clone().requires_grad_()
    (found,) = torch.autograd.grad(objective.loss(batch, 0, v, None).per_row.sum(), v)
    return found


@pytest.fixture(params=[False, True], ids=["by channel", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize(("channels", "factor"), [("sum", CHANNELS), ("mean", 1)])
def test_p3_a_map_of_ones_gives_the_scalar_gradient_times_a_constant(packed: bool, channels: str, factor: int) -> None:
    credit = torch.randn(ROWS, ACTIONS)
    batch = transitions(credit, torch.ones(ROWS, ACTIONS, HEIGHT, WIDTH), packed)
    found = gradient(ViPO(channels=channels), batch)
    scalar = gradient(ClippedSurrogate(), replace(batch, advantage=credit))
    torch.testing.assert_close(found, factor * scalar, rtol=FLOAT32, atol=FLOAT32 * found.abs().max().item())


def test_a_constant_map_is_scalar_grpo_bit_for_bit(packed: bool) -> None:
    """At the first update, where nothing is clipped; positions and channels are powers of two, as latents' are."""
    credit = torch.randn(ROWS, ACTIONS)
    batch = transitions(credit, torch.ones(ROWS, ACTIONS, 4, 8), packed)
    batch = replace(batch, x_next=batch.x_next[:, :, :1], advantage=batch.advantage[:, :1])
    scalar = replace(batch, advantage=credit[:, :1])
    assert torch.equal(gradient(ViPO(channels="mean"), batch), gradient(ClippedSurrogate(), scalar))


def test_p4_positions_learn_as_much_as_they_are_credited(packed: bool) -> None:
    credit, maps = torch.randn(ROWS, ACTIONS), torch.rand(ROWS, ACTIONS, HEIGHT, WIDTH)
    maps[..., 2:] = 0
    batch = transitions(credit, maps, packed)
    moved = batch.model_output[:, 0] + 0.01 * torch.randn_like(batch.model_output[:, 0])
    found = gradient(ViPO(), batch, moved)
    picture = found.transpose(1, 2).unflatten(2, (HEIGHT, WIDTH)) if packed else found
    assert not picture[..., 2:].any()
    assert picture[..., :2].all()
    twice = gradient(ViPO(), replace(batch, advantage=2 * batch.advantage), moved)
    torch.testing.assert_close(twice, 2 * found)


def test_p7_positions_add_up_to_the_scalar_ratio(packed: bool) -> None:
    batch = transitions(torch.ones(ROWS, ACTIONS), torch.ones(ROWS, ACTIONS, HEIGHT, WIDTH), packed)
    step, v = Step.from_coefficients(batch.coefficients[:, 0]), torch.randn_like(batch.model_output[:, 0])
    here = log_ratio(v, actions(step, batch, 0), batch.advantage, "sum")
    assert here.shape == batch.advantage.shape
    scalar = log_ratio(v, actions(step, batch, 0), batch.advantage.flatten(2)[:, :, 0], "mean")
    torch.testing.assert_close(here.flatten(2).mean(dim=2) / CHANNELS, scalar, rtol=FLOAT32, atol=FLOAT32)


def test_each_position_is_clipped_by_itself(packed: bool) -> None:
    batch = transitions(torch.ones(ROWS, ACTIONS), torch.ones(ROWS, ACTIONS, HEIGHT, WIDTH), packed)
    moved = batch.model_output[:, 0] + 0.3 * torch.randn_like(batch.model_output[:, 0])
    step = Step.from_coefficients(batch.coefficients[:, 0])
    ratio = log_ratio(moved, actions(step, batch, 0), batch.advantage, "sum").exp()
    dead = (ratio > 1 + ViPO().clip).all(dim=1)  # of every action
    found = gradient(ViPO(), batch, moved).expand_as(batch.x[:, 0])
    positions = found.abs().amax(dim=2 if packed else 1, keepdim=True)
    assert dead.any()
    assert not dead.all()
    assert torch.equal(positions == 0, dead)


def pipe(name: str, **facts: int) -> object:
    return type(name, (SimpleNamespace,), {})(**facts)


@pytest.mark.parametrize(
    ("name", "state", "pixels", "positions", "shape"),
    [
        ("StableDiffusionPipeline", (4, 64, 96), (1, 512, 768), (1, 64, 96), (1, 64, 96)),
        ("FluxPipeline", (45 * 45, 64), (1, 720, 720), (1, 45, 45), (2025, 1)),
        ("FluxPipeline", (52 * 78, 64), (1, 832, 1248), (1, 52, 78), (4056, 1)),
        ("QwenImagePipeline", (104 * 58, 64), (1, 928, 1664), (1, 58, 104), (6032, 1)),
        ("WanPipeline", (16, 21, 60, 104), (81, 480, 832), (21, 60, 104), (1, 21, 60, 104)),
        ("WanPipeline", (16, 1, 64, 64), (1, 512, 512), (1, 64, 64), (1, 1, 64, 64)),
        ("CogVideoXPipeline", (13, 16, 60, 90), (49, 480, 720), (13, 60, 90), (13, 1, 60, 90)),
        ("Kandinsky5T2VPipeline", (31, 64, 96, 16), (121, 512, 768), (31, 64, 96), (31, 64, 96, 1)),
        ("LTXPipeline", (21 * 16 * 22, 128), (161, 512, 704), (21, 16, 22), (7392, 1)),
    ],
)
def test_positions_of_states(name: str, state: tuple, pixels: tuple, positions: tuple, shape: tuple) -> None:
    frames, height, width = pixels
    made = torch.Size((2, frames, 3, height, width))
    grid = latent_grid(pipe(name, vae_temporal_compression_ratio=8), torch.Size(state), made)
    assert (grid.frames, grid.height, grid.width) == positions
    assert grid.shape == shape
    assert torch.broadcast_shapes(state, grid.shape) == state


@pytest.mark.parametrize("state", [(7392,), (2026, 64), (2, 2, 2, 2, 2)])
def test_states_that_are_no_grid_are_refused(state: tuple) -> None:
    with pytest.raises(PipelineError, match=r"a grid of positions\. Leave source\.structure out"):
        latent_grid(pipe("LTX2Pipeline"), torch.Size(state), torch.Size((2, 1, 3, 720, 720)))


def run(source: OnPolicySteps, objective: object) -> Run:
    return Run("x", PolicySpec("x"), Data("x"), source, objective, 1)


def test_a_map_meets_an_objective_that_has_a_form_for_it() -> None:
    assert run(replace(STEPS, structure=SPREAD), ViPO())
    with pytest.raises(ConfigError, match=r"ClippedSurrogate has no form for one; choose objective vipo"):
        run(replace(STEPS, structure=SPREAD), ClippedSurrogate())
    with pytest.raises(ConfigError, match="ViPO takes credit position by position"):
        run(STEPS, ViPO())


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["praised", "flipped"])
def test_a_policy_of_a_few_positions_climbs_and_flipped_credit_takes_it_down(sign: float) -> None:
    """States of noise, a reward that one position decides (it should be 3), plain gradient steps."""
    spot = torch.zeros(HEIGHT, WIDTH)
    spot[0, 0] = 1
    maps, v = spot.expand(ROWS, ACTIONS, HEIGHT, WIDTH), torch.zeros(CHANNELS, HEIGHT, WIDTH)
    for _ in range(30):
        drawn = transitions(torch.ones(ROWS, ACTIONS), maps, packed=False)
        noise = torch.randn(ROWS, 1, ACTIONS, CHANNELS, HEIGHT, WIDTH)
        old = v.expand(ROWS, 1, -1, -1, -1)
        batch = replace(drawn, model_output=old, x_next=(A * drawn.x + B * old)[:, :, None] + STD * noise)
        reward = -(batch.x_next[:, 0, :, :, 0, 0] - 3).square().mean(dim=2)
        credit = GroupNorm()(Rewards(reward.flatten()), batch.group.repeat_interleave(ACTIONS)).view(ROWS, ACTIONS)
        laid = credit.reshape(ROWS, ACTIONS, 1, 1, 1) * maps[:, :, None]
        v = v - 4 * sign * gradient(ViPO(), replace(batch, advantage=laid)).mean(dim=0)
    expected = -(B * v[:, 0, 0] - 3).square().mean().item()
    assert sign * (expected - -(3.0**2)) > 1
    assert v[:, 1:].abs().max() == 0  # what the map leaves out stays


def test_heat_is_bright_where_the_credit_went() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 1, 1, 0] = 3.0
    shown = heat(Media(torch.full((1, 5, 3, 8, 8), 0.5), fps=8.0), maps)
    assert (shown.pixels.shape, shown.fps) == ((1, 5, 3, 8, 8), 8.0)
    level = shown.pixels[0].mean(dim=1)
    assert (level[1:, 4:, :4] > level[1:, :4, :4]).all()
    assert level[0].unique().numel() == 1  # the first frame of a causal clip is alone
