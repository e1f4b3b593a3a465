"""What every structure and every backbone keeps, and what ViPO's module keeps beside; new files are found by listing.

P1, P2, P5 and P6 are the properties by which the module was specified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from alignment.config import registry
from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.clip import CLIP
from alignment.credit.backbones.dinov2 import DINOv2
from alignment.credit.backbones.dinov3 import DINOv3
from alignment.credit.backbones.resnet import ResNet
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.backbones.sam2 import SAM2
from alignment.credit.structures.base import Sampled, Structure
from alignment.credit.structures.maps import in_time, smoothed
from alignment.credit.structures.motion import Motion
from alignment.credit.structures.perceptual import Perceptual, projections, signs, standing_out
from alignment.credit.structures.prompt_difference import PromptDifference
from alignment.credit.structures.reward_gradient import RewardGradient
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, PipelineError
from alignment.objectives.policy_gradient.vipo import ViPO
from alignment.policy.latent_grid import LatentGrid
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from alignment.sources.on_policy_steps import OnPolicySteps
from reward_models.base import Media, RewardModel, load_reward
from reward_models.combinators.cropped import Cropped
from reward_models.measures.colour import Colour
from reward_models.measures.exposure import Exposure
from reward_models.measures.jpeg import Jpeg
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from tests.support.tiny_rewards import clip_folder
from tests.support.toy import ToyNetwork, ToyPipeline, toy_run

CPU = torch.device("cpu")
ROWS = 1e-5  # a network's rounding with another number of rows
BINARY = 0.1  # how near 0 and 1 a map of two clusters comes, beside noise of a twentieth of their distance


def dinov2(folder: Path) -> DINOv2:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return DINOv2(str(folder), shortest=28, longest=56)


def clip(folder: Path) -> CLIP:
    return CLIP(str(clip_folder(folder)), shortest=16, longest=64)


def resnet(folder: Path) -> ResNet:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(folder)
    return ResNet(str(folder), shortest=16, longest=64)


def dinov3(folder: Path) -> DINOv3:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, image_size=32, num_register_tokens=2)).save_pretrained(folder)
    return DINOv3(str(folder), shortest=32, longest=64)


def sam2(folder: Path) -> SAM2:
    from transformers import Sam2Config, Sam2Model

    stages = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "window_size_per_stage": [8, 4, 4, 4], "global_attention_blocks": [3],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {"backbone_config": stages, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16}
    hidden = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16},
        mask_decoder_config={**hidden, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    Sam2Model(config).save_pretrained(folder)
    return SAM2(str(folder), shortest=64, longest=96)


BACKBONES: dict[str, Callable[[Path], Backbone]] = {
    "clip": clip, "dinov2": dinov2, "dinov3": dinov3, "resnet": resnet, "sam2": sam2,
    "saliency": lambda folder: Saliency(),
}  # fmt: skip
STRUCTURES: dict[str, Structure] = {
    "motion": Motion(),
    "perceptual": Perceptual(Saliency()),
    "prompt_difference": PromptDifference(),
    "reward_gradient": RewardGradient(Exposure()),
}
PIXELS = [name for name in STRUCTURES if name != "prompt_difference"]  # what makes maps of pixels alone
GRIDS = {
    "picture": (LatentGrid(1, 8, 8, (1, 8, 8)), 1, 32, 32),
    "odd": (LatentGrid(1, 5, 7, (35, 1)), 1, 21, 30),
    "clip": (LatentGrid(3, 4, 6, (1, 3, 4, 6)), 9, 16, 24),
    "cut otherwise": (LatentGrid(4, 4, 6, (1, 4, 4, 6)), 6, 16, 24),
}


@pytest.fixture(params=sorted(BACKBONES))
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return BACKBONES[request.param](tmp_path)


@pytest.fixture(params=PIXELS)
def structure(request: pytest.FixtureRequest) -> Structure:
    return STRUCTURES[request.param]


def sampled(pixels: Tensor, reward: RewardModel = Exposure()) -> Sampled:
    """Return samples for structures that ask no policy."""
    nobody = cast(Policy, None)
    scorer = functools.partial(load_reward, device=CPU)
    n = len(pixels)
    return Sampled(Media(pixels), ("",) * n, torch.zeros(n, 1), torch.arange(n), Draw(0), nobody, reward, scorer)


class Spot(ToyPipeline):
    """Denoises pictures of 4 x 4 positions; a prompt that says something adds to the output at one of them."""

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor]:
        return (torch.tensor([[float(bool(text))] for text in prompt]),)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 3,
        generator: Sequence[torch.Generator] = (),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        (told,) = self.encode_prompt(prompt)
        x = torch.stack([torch.randn(2, 4, 4, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        place = torch.zeros(4, 4)
        place[1, 2] = 1.0
        for t in self.scheduler.timesteps:
            v = self.transformer(x[:, :, 0, 0], (t / 1000).expand(len(x)))[:, :, None, None] + x
            x = self.scheduler.step(v + told[:, :, None, None] * place, t, x, return_dict=False)[0]
        return (x,) if output_type == "latent" else (x[:, :1].repeat(1, 3, 1, 1).sigmoid(),)


def test_every_file_holds_one_and_is_tested() -> None:
    assert set(registry.known(Backbone)) == set(BACKBONES)
    assert set(registry.known(Structure)) == set(STRUCTURES)


def test_tokens_are_a_vector_a_patch_and_those_of_each_row_alone(backbone: Backbone) -> None:
    see = backbone.load(device=CPU)
    pictures = torch.rand(3, 3, 30, 44)
    with torch.no_grad():
        tokens = see(pictures)
        alone = torch.cat([see(picture[None]) for picture in pictures])
    assert tokens.shape[:1] + tokens.shape[4:] == (3,)
    assert tokens.shape[1] < tokens.shape[2]  # as pictures are
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, alone, rtol=ROWS, atol=ROWS)


@pytest.mark.parametrize("kind", [CLIP, DINOv2, DINOv3, ResNet, SAM2])
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, kind: type) -> None:
    folder = dinov2(tmp_path).weights if kind is not DINOv2 else resnet(tmp_path).weights
    with pytest.raises(ConfigError, match=r"source\.structure\.backbone: .* holds a model of type"):
        kind(folder).load(device=CPU)
    with pytest.raises(ConfigError, match=r"source\.structure\.backbone: .*nowhere"):
        kind(str(tmp_path / "nowhere")).load(device=CPU)


@pytest.mark.parametrize("name", GRIDS)
def test_p1_maps_fill_the_unit_interval_at_the_latents_own_positions(structure: Structure, name: str) -> None:
    grid, frames, height, width = GRIDS[name]
    if isinstance(structure, Motion) and frames == 1:
        with pytest.raises(PipelineError, match=r"source\.structure: maps of motion are made from clips"):
            structure.load(device=CPU)(sampled(torch.rand(2, frames, 3, height, width)), grid)
        return
    maps = structure.load(device=CPU)(sampled(torch.rand(2, frames, 3, height, width)), grid)
    assert maps.shape == (2, grid.frames, grid.height, grid.width)
    assert (maps.dtype, maps.device) == (torch.float32, CPU)
    torch.testing.assert_close(maps.flatten(1).aminmax(dim=1), (torch.zeros(2), torch.ones(2)))
    assert grid.lay(maps).shape == (2, *grid.shape)
    assert torch.equal(grid.lay(maps).flatten(), maps.flatten())


def test_maps_of_a_batch_are_those_of_its_rows(structure: Structure) -> None:
    grid, frames, height, width = GRIDS["clip"]
    pixels, make = torch.rand(3, frames, 3, height, width), structure.load(device=CPU)
    torch.testing.assert_close(make(sampled(pixels), grid), torch.cat([make(sampled(c[None]), grid) for c in pixels]))


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_where_nothing_differs_credit_stays_as_it_was(structure: Structure, level: float) -> None:
    grid, frames, height, width = GRIDS["clip"]
    pixels = torch.full((1, frames, 3, height, width), level)
    assert torch.equal(structure.load(device=CPU)(sampled(pixels), grid), torch.ones(1, 3, 4, 6))


def test_maps_that_keep_mass_have_mean_one_and_point_the_same_way() -> None:
    grid, frames, height, width = GRIDS["picture"]
    pixels = torch.rand(2, frames, 3, height, width)
    plain, kept = (
        Perceptual(Saliency(), keep_mass=keep).load(device=CPU)(sampled(pixels), grid) for keep in (False, True)
    )
    torch.testing.assert_close(kept.flatten(1).mean(dim=1), torch.ones(2))
    torch.testing.assert_close(kept / kept.amax(dim=(1, 2, 3), keepdim=True), plain)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), flips=st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3))
@pytest.mark.parametrize("front", ["rare", "centre"])
def test_p2_the_sign_of_a_component_does_not_matter(front: str, seed: int, flips: list[float]) -> None:
    tokens = torch.randn(24, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z, _ = projections(tokens - tokens.mean(dim=0), 3)
    flip = torch.tensor(flips, dtype=torch.float64)
    assert torch.equal(z * flip * signs(z * flip, (1, 4, 6), front), z * signs(z, (1, 4, 6), front))


MASS = 0.9  # of a map that has to lie where alone there is something


def test_a_reward_that_reads_one_patch_has_its_credit_there() -> None:
    grid, frames, height, width = GRIDS["picture"]
    reward = Cropped(Exposure(), (0.25, 0.5, 0.5, 0.75))
    maps = RewardGradient().load(device=CPU)(sampled(torch.rand(2, frames, 3, height, width), reward), grid)
    assert (maps[:, 0, 4:6, 2:4].sum(dim=(1, 2)) >= MASS * maps.sum(dim=(1, 2, 3))).all()
    named = RewardGradient(reward, keep_mass=True).load(device=CPU)(
        sampled(torch.rand(1, frames, 3, height, width), Jpeg()), grid
    )
    assert named[:, 0, 4:6, 2:4].sum() >= MASS * named.sum()
    torch.testing.assert_close(named.mean(), torch.tensor(1.0))


def test_a_reward_that_reads_all_alike_leaves_credit_as_it_was() -> None:
    grid, frames, height, width = GRIDS["odd"]
    maps = RewardGradient().load(device=CPU)(sampled(torch.rand(2, frames, 3, height, width), Colour()), grid)
    assert torch.equal(maps, torch.ones(2, 1, 5, 7))


@pytest.mark.parametrize("named", [True, False])
def test_a_reward_without_gradient_is_refused(named: bool) -> None:
    structure, run = (RewardGradient(Jpeg()), Colour()) if named else (RewardGradient(), Jpeg())
    told = structure.problem(run)
    assert told is not None
    assert "Jpeg gives none that reaches the pixels; name a differentiable reward" in told
    with pytest.raises(ConfigError, match="Jpeg gives none"):
        toy_run(Path(), OnPolicySteps(2, run, FlowSDE(), All(), structure=structure), ViPO(), 1)


def test_credit_of_a_clip_is_where_it_moves() -> None:
    grid, frames, height, width = GRIDS["clip"]
    clip = torch.rand(1, 1, 3, height, width).repeat(1, frames, 1, 1, 1)
    clip[:, ::2, :, 4:8, 8:12] = 1.0
    maps = Motion().load(device=CPU)(sampled(clip), grid)
    assert maps[..., 1, 2].sum() >= MASS * maps.sum()
    still = Motion().load(device=CPU)(sampled(clip[:, :1].repeat(1, frames, 1, 1, 1)), grid)
    assert torch.equal(still, torch.ones_like(still))


def test_credit_goes_where_the_prompt_has_a_say() -> None:
    pipe = Spot(ToyNetwork(), FlowMatchEulerDiscreteScheduler())
    policy = load_policy(PolicySpec("", call={"num_inference_steps": 3}), device=CPU, seed=0, pipe=pipe)
    prepare(policy, ("a spot", ""), visits=True)
    samples = replace(sampled(torch.rand(3, 1, 3, 4, 4)), prompts=("a spot", "", "a spot"), policy=policy)
    samples = replace(samples, x0=torch.randn(3, 2, 4, 4))
    maps = PromptDifference().load(device=CPU)(samples, LatentGrid(1, 4, 4, (1, 4, 4)))
    for row in (0, 2):
        assert maps[row, 0, 1, 2] >= MASS * maps[row].sum()
    assert torch.equal(maps[1], torch.ones(1, 4, 4))  # nothing was said: credit stays as it was


@pytest.mark.parametrize("times", [(), (0.0,), (1.5,)])
def test_times_that_are_none_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"times in \(0, 1\]"):
        PromptDifference(times)


def test_a_reflected_border_is_scipys() -> None:
    score = torch.rand(2, 5, 7)
    for sigma in (0.5, 1.0, 3.0):
        expected = torch.stack([torch.from_numpy(gaussian_filter(one.numpy(), sigma)) for one in score])
        torch.testing.assert_close(smoothed(score, sigma, "reflected"), expected, rtol=ROWS, atol=ROWS)


def clusters(front: Tensor) -> Tensor:
    """Return tokens of two clusters, `[1, h, w, 12]`; `front` `[h, w]` says which are of the second."""
    centres = torch.randn(2, 12)
    return (centres[front.long()] + 0.05 * torch.randn(*front.shape, 12))[None]


def test_p5_two_clusters_make_a_map_of_two_levels_and_moving_tokens_moves_it() -> None:
    few = torch.zeros(6, 8, dtype=torch.bool)
    few[1:4, 2:5] = True
    tokens = clusters(few)
    score = standing_out(tokens, 1, "rare")
    assert score is not None
    assert score[0][few].min() > 1 - 2 * BINARY
    assert score[0][~few].max() < 2 * BINARY
    order = torch.randperm(48)
    moved = standing_out(tokens.flatten(1, 2)[:, order].unflatten(1, (6, 8)), 3, "rare")
    still = standing_out(tokens, 3, "rare")
    assert still is not None
    torch.testing.assert_close(moved, still.flatten(1)[:, order].unflatten(1, (6, 8)))


def test_the_centre_is_in_front_even_where_it_is_the_larger_part() -> None:
    most = torch.zeros(8, 8, dtype=torch.bool)
    most[1:7, 1:7] = True
    tokens = clusters(most)
    rare, centre = (standing_out(tokens, 1, front) for front in ("rare", "centre"))
    assert rare is not None
    assert centre is not None
    assert centre[0][most].mean() > 1 - 2 * BINARY
    assert rare[0][most].mean() < 2 * BINARY


def test_p6_shares_sum_to_one_and_one_component_is_the_first() -> None:
    tokens = torch.randn(1, 5, 5, 9)
    centred = tokens.double().flatten(0, 2)
    centred = centred - centred.mean(dim=0)
    z, variance = projections(centred, 3)
    share = variance / variance.sum()
    expected = torch.linalg.svdvals(centred)[:3].square()
    torch.testing.assert_close(share, expected / expected.sum())
    first = z[:, 0] * signs(z, (1, 5, 5), "rare")[0]
    ranged = (first - first.min()) / (first.max() - first.min())
    torch.testing.assert_close(standing_out(tokens, 1, "rare"), ranged.float().reshape(1, 5, 5))


def test_wide_and_narrow_tokens_are_projected_alike() -> None:
    tokens = torch.randn(10, 30, dtype=torch.float64)
    tokens = tokens - tokens.mean(dim=0)
    wide, variance = projections(tokens, 3)
    narrow, same = projections(tokens @ torch.linalg.svd(tokens, full_matrices=False)[2].T[:, :9], 3)
    torch.testing.assert_close(variance, same)
    torch.testing.assert_close(wide.abs(), narrow.abs())


def test_smoothing_keeps_a_constant_and_spreads_a_point_alike() -> None:
    torch.testing.assert_close(smoothed(torch.ones(2, 3, 4), 1.0), torch.ones(2, 3, 4))
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 1.0
    there = smoothed(point, 1.0)
    torch.testing.assert_close(there, there.flip(1).transpose(1, 2))
    assert there.argmax() == 4 * 9 + 4
    assert torch.equal(smoothed(point, 0.0), point)


def test_the_first_frame_of_a_causal_clip_is_alone() -> None:
    score = torch.arange(9.0)[:, None, None]
    assert in_time(score, 3).flatten().tolist() == [0.0, 2.5, 6.5]
    assert in_time(score[:6], 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert in_time(score, 1).flatten().tolist() == [4.0]
    assert in_time(score[:3], 3).flatten().tolist() == [0.0, 1.0, 2.0]
