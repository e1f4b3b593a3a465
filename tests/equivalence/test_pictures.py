"""Pipelines that start from pictures: every row gets its own, in rollout, replay, update and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Prompt, Transitions
from alignment.data.media import find_picture
from alignment.data.prompts import Prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, PipelineError
from alignment.objectives.forward_process.nft import NFT
from alignment.policy.call_forms import Form
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import microbatches
from alignment.world import World
from reward_models.base import Media, RewardModel, Rewards
from samplers import Conductor
from samplers.dynamics.base import Dynamics
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.pipelines.zoo import edits
from tests.support.policies import CPU, log_ratio, replayed
from tests.support.tiny import SD15_CALL, tiny_flux, tiny_sd15

RATIO = 1e-6
"""Of a first log ratio, as in every replay in float32."""

ROWS = 2e-5
"""Of pixels in [0, 1]: another number of rows rounds differently, and a decoder spreads it."""

GROUP = 3


@dataclass(frozen=True)
class Case:
    """A pipeline, what it is called with, and the form in which it is known to take pictures."""

    build: Callable[[], tuple[DiffusionPipeline, dict[str, object]]]
    form: Form
    dynamics: Dynamics = FlowSDE()


def img2img() -> tuple[DiffusionPipeline, dict[str, object]]:
    call = {name: value for name, value in SD15_CALL.items() if name not in ("height", "width")}
    pipe = StableDiffusionImg2ImgPipeline(**tiny_sd15().components, requires_safety_checker=False)
    return pipe, {**call, "strength": 1.0}


def member(name: str) -> Callable[[], tuple[DiffusionPipeline, dict[str, object]]]:
    def build() -> tuple[DiffusionPipeline, dict[str, object]]:
        made = getattr(edits, name)()
        return made.pipe, dict(made.call)

    return build


CASES = {
    "SD img2img": Case(img2img, Form.ROWS, DDIM()),  # draws its image latents from each row's generator
    "FLUX Kontext": Case(member("flux_kontext"), Form.ROWS),
    "LTX-Video": Case(member("ltx_i2v"), Form.ROWS),
    "HunyuanVideo": Case(member("hunyuan_i2v"), Form.ROWS),  # sees the picture in its text encoder, too
    "Wan": Case(member("wan_i2v"), Form.SHARED),
}


@dataclass(frozen=True)
class LikeTheSource(RewardModel):
    """Scores how near a sample is to what it was made from."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> LikeTheSource:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        assert media.source is not None
        return Rewards(-(media.pixels - media.source.pixels).abs().flatten(1).mean(1))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prompt, ...]:
    return made_prompts(tmp_path_factory.mktemp("pictures"), (32, 32), (32, 32))


@pytest.fixture(scope="module")
def policy(case: Case, prompts: tuple[Prompt, ...], tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return loaded(case, prompts, tmp_path_factory.mktemp("pipeline"))


def made_prompts(folder: Path, *sizes: tuple[int, int]) -> tuple[Prompt, ...]:
    """Return prompts with pictures of noise, one of each size."""
    found = []
    for k, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(k).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        found.append(Prompt(("a red circle", "a blue square")[k % 2], {"image": find_picture(folder, f"{k}.png")}))
    return tuple(found)


def loaded(case: Case, prompts: tuple[str, ...], folder: Path) -> Policy:
    pipe, call = case.build()
    pipe.save_pretrained(folder)
    policy = load_policy(PolicySpec(str(folder), call=call, lora=Lora(2)), device=CPU, seed=0)
    prepare(policy, prompts)
    return policy


def rolled_out(policy: Policy, case: Case, prompts: tuple[str, ...], *, shared_noise: bool) -> Transitions:
    source = OnPolicySteps(
        prompts=2, reward=LikeTheSource(), dynamics=case.dynamics, window=Fraction(0.5), group_size=GROUP,
        shared_noise=shared_noise,
    )  # fmt: skip
    return source(surroundings(policy), Prompts(prompts).at(0, 2, Draw(0))).batch


def surroundings(policy: Policy) -> Context:
    return Context(0, policy, Draw(0), World(PartialState(cpu=True), CPU), LikeTheSource())


def parts(batch: Batch, size: int) -> list[Tensor]:
    return list(microbatches(batch, torch.arange(len(batch)), size))


def test_the_form_is_found(policy: Policy, case: Case) -> None:
    assert policy.form is case.form


def test_a_picture_changes_what_is_made(policy: Policy, prompts: tuple[Prompt, ...]) -> None:
    swapped = Prompt(str(prompts[0]), prompts[1].inputs)
    made, other = (policy.generate((prompt,), torch.tensor([1]), {}).pixels for prompt in (prompts[0], swapped))
    assert not torch.allclose(made, other, atol=ROWS)


def test_rows_are_what_they_are_alone(policy: Policy, prompts: tuple[Prompt, ...]) -> None:
    rows = (prompts[1], prompts[0], prompts[1])
    together = policy.generate(rows, torch.tensor([5, 6, 7]), {})
    for k, prompt in enumerate(rows):
        alone = policy.generate((prompt,), torch.tensor([5 + k]), {})
        torch.testing.assert_close(together.pixels[k], alone.pixels[0], atol=ROWS, rtol=0)
        assert together.source is not None
        assert alone.source is not None
        assert torch.equal(together.source.pixels[k], alone.source.pixels[0])


@pytest.mark.parametrize("shared_noise", [True, False])
def test_a_replay_meets_every_row_with_its_picture(
    policy: Policy, case: Case, prompts: tuple[Prompt, ...], shared_noise: bool
) -> None:
    batch = rolled_out(policy, case, prompts, shared_noise=shared_noise)
    for part in parts(batch, 2):
        for k, model_output in enumerate(replayed(policy, batch[part])):
            assert log_ratio(batch[part], k, model_output).abs().max() <= RATIO


def test_a_clean_sample_method_learns_from_rows_with_pictures(policy: Policy, prompts: tuple[Prompt, ...]) -> None:
    ctx = surroundings(policy)
    policy.weights.keep("behaviour")
    source = OnPolicy(prompts=2, reward=LikeTheSource(), group_size=GROUP, weights="behaviour")
    experience = source(ctx, Prompts(prompts).at(0, 2, Draw(0)))
    assert experience.media.source is not None
    for part in parts(experience.batch, 4):
        NFT()(ctx, experience.batch[part], lambda loss: loss.per_row.mean().backward())
    gradients = [p.grad for p in policy.trainable.values()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients if g is not None)


def test_pictures_are_encoded_once(policy: Policy, prompts: tuple[Prompt, ...]) -> None:
    policy.generate(prompts, torch.tensor([1, 2]), {})
    before = policy.encodings.misses, policy.embeddings.misses
    policy.generate(prompts, torch.tensor([3, 4]), {})
    assert (policy.encodings.misses, policy.embeddings.misses) == before
    assert policy.encodings.answered > 0


def test_pictures_of_several_sizes_do_not_share_a_call_that_makes_them_alike(tmp_path: Path) -> None:
    wide = made_prompts(tmp_path, (32, 32), (64, 32))
    policy = loaded(CASES["FLUX Kontext"], wide, tmp_path / "pipeline")
    assert policy.form is Form.SHARED
    with pytest.raises(PipelineError, match="takes one prompt a call here, but rows of this call bring several"):
        policy.call(Conductor(), wide, torch.tensor([1, 2]), pixels=False)


def test_results_of_several_sizes_are_refused(tmp_path: Path) -> None:
    wide = made_prompts(tmp_path, (32, 32), (64, 32))
    with pytest.raises(PipelineError, match="pictures of different sizes give results of different sizes"):
        loaded(CASES["SD img2img"], wide, tmp_path / "pipeline")


def test_pictures_that_nobody_takes_are_refused(prompts: tuple[Prompt, ...], tmp_path: Path) -> None:
    flux = Case(lambda: (tiny_flux(), {"height": 16, "width": 16, "num_inference_steps": 2}), Form.ROWS)
    with pytest.raises(ConfigError, match=r"data\.prompts brings image, but FluxPipeline has no such argument"):
        loaded(flux, prompts, tmp_path)


def test_pictures_that_are_needed_and_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"WanImageToVideoPipeline needs image, which data\.prompts does not bring"):
        loaded(CASES["Wan"], ("a red circle",), tmp_path)


def test_frames_that_do_not_fit_are_refused_with_the_arithmetic(prompts: tuple[Prompt, ...], tmp_path: Path) -> None:
    build = CASES["Wan"].build
    wrong = replace(CASES["Wan"], build=lambda: (build()[0], {**build()[1], "num_frames": 6}))
    with pytest.raises(ConfigError, match=r"num_frames: 6 = 1 \+ 1 x 4 \+ 1, but .* use 5 or 9"):
        loaded(wrong, prompts, tmp_path)


def test_a_size_that_would_be_rounded_is_refused(tmp_path: Path) -> None:
    call = {"height": 18, "width": 16, "num_inference_steps": 2, "max_sequence_length": 24}
    with pytest.raises(ConfigError, match=r"policy\.call\.height: 18 was asked for and FluxPipeline makes 16"):
        loaded(Case(lambda: (tiny_flux(), call), Form.ROWS), ("a red circle",), tmp_path)
