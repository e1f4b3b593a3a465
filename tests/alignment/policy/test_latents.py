"""The encode door: samples as states of the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from alignment.data.media import Clip, find_picture
from alignment.errors import DataError, PipelineError
from alignment.policy.latents import Latents, read_layout
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from samplers import Conductor
from tests.support.policies import CPU
from tests.support.tiny import FLUX_CALL

FLUX = Path(__file__).parents[3] / "assets/tiny_flux"
CALL = {"height": 32, "width": 32, "num_inference_steps": 4, "max_sequence_length": 12}
BACK = 0.05  # root mean square of a pixel: what the tiny VAE loses of a picture it knows
SAME = 1e-5  # float32


@pytest.fixture(scope="module")
def policy() -> Policy:
    made = load_policy(PolicySpec(str(FLUX), call=dict(CALL), lora=Lora(2)), device=CPU, seed=0)
    prepare(made, ("a red circle",))
    return made


def drawn(path: Path, size: tuple[int, int] = (32, 32)) -> Path:
    """Write a picture as the tiny FLUX knows them: a red square on dark ground."""
    image = Image.new("RGB", size, (24, 24, 32))
    image.paste((225, 40, 40), (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 4, size[1] // 2 + 4))
    image.save(path)
    return path


# ---- how a state lies in what is decoded -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (16, 64), (4, 3, 5, 6)])
def test_places_scales_and_shifts_are_found(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=generator)
    scale = 1 + torch.rand(count, generator=generator)
    shift = torch.randn(count, generator=generator)

    def decoded(state: Tensor) -> Tensor:
        moved = (state.to(dtype).flatten()[order] * scale.to(dtype) + shift.to(dtype)).double()
        return torch.cat([moved, torch.full((3,), 0.25, dtype=torch.float64)])  # numbers that nothing decides

    layout = read_layout(decoded, torch.Size(shape))
    assert torch.equal(order[layout.where], torch.arange(count))
    state = torch.rand(shape, generator=generator)
    torch.testing.assert_close(
        layout.state(decoded(state)), state, rtol=0, atol=SAME if dtype is torch.float32 else 0.1
    )


@pytest.mark.parametrize(
    ("decoded", "says"),
    [
        (lambda x: x.double().flatten()[1:], "11 of the 12 numbers"),
        (lambda x: x.double().flatten().square(), "of the 12 numbers"),
        (lambda x: (x + 0.2 * torch.sin(16 * torch.pi * x)).double().flatten(), "more than places, scales and shifts"),
        (lambda x: x.double().flatten().cumsum(0), "of the 12 numbers|more than places"),
    ],
)
def test_whatever_else_is_done_to_a_state_is_refused(decoded: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_layout(decoded, torch.Size((3, 4)))  # type: ignore[arg-type]


# ---- through a pipeline ----------------------------------------------------------------------------------------------


def test_a_sample_comes_back_through_the_pipelines_own_decoder(policy: Policy, tmp_path: Path) -> None:
    picture = find_picture(tmp_path, drawn(tmp_path / "a.png").name)
    state = policy.latents([picture])
    conductor = Conductor()
    policy.call(conductor, ("a red circle",), torch.zeros(1, dtype=torch.int64), pixels=False)
    assert conductor.final is not None
    assert state.shape == conductor.final.shape
    assert state.std() == pytest.approx(conductor.final.std().item(), rel=0.5)  # in the scale of the loop
    back = policy.latents._shown(state[0])
    assert (back - policy.latents.pixels(picture)).square().mean().sqrt() < BACK


def test_packing_is_the_pipelines_own(policy: Policy) -> None:
    state = torch.randn(policy.latents._look().shape, generator=torch.Generator().manual_seed(0))
    again = policy.latents._look().state(policy.latents._decoded(state))
    torch.testing.assert_close(again, state, rtol=0, atol=SAME * state.abs().max().item())


def test_samples_of_any_shape_are_scaled_to_cover_and_cut(policy: Policy, tmp_path: Path) -> None:
    wide = find_picture(tmp_path, drawn(tmp_path / "wide.png", (64, 32)).name)
    same = find_picture(tmp_path, drawn(tmp_path / "same.png").name)
    torch.testing.assert_close(policy.latents.pixels(wide), policy.latents.pixels(same))


def test_latents_are_encoded_once_and_kept_on_disk(policy: Policy, tmp_path: Path) -> None:
    picture = find_picture(tmp_path, drawn(tmp_path / "a.png").name)
    first = Latents(policy.pipe, policy.device, policy.ends, tmp_path / "cache")
    state = first([picture, picture])
    assert first.misses == 1
    second = Latents(policy.pipe, policy.device, policy.ends, tmp_path / "cache")
    assert torch.equal(second([picture]), state[:1])
    assert second.misses == 0
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(b"damaged")
    third = Latents(policy.pipe, policy.device, policy.ends, tmp_path / "cache")
    assert torch.equal(third([picture]), state[:1])
    assert third.misses == 1


def test_a_clip_is_no_picture(policy: Policy) -> None:
    with pytest.raises(DataError, match="has 5 frames, and FluxPipeline makes pictures"):
        policy.latents.check([Clip(Path("a.mp4"), "0", (32, 32), 5)])


def test_a_decoder_that_gives_back_something_else_is_refused(flux_folder: Path, tmp_path: Path) -> None:
    random = load_policy(PolicySpec(str(flux_folder), call=dict(FLUX_CALL), lora=Lora(2)), device=CPU, seed=0)
    prepare(random, ("a red circle",))
    with pytest.raises(PipelineError, match=r"cannot learn from pictures or clips of a file.*comes back from the VAE"):
        random.latents([find_picture(tmp_path, drawn(tmp_path / "a.png").name)])


def test_the_check_can_be_left_out_and_says_so(flux_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(str(flux_folder), call=dict(FLUX_CALL), lora=Lora(2), check_latents=False)
    random = load_policy(spec, device=CPU, seed=0)
    prepare(random, ("a red circle",))
    with pytest.warns(UserWarning, match=r"policy\.check_latents is off, and .*a\.png comes back from the VAE"):
        [state] = random.latents([find_picture(tmp_path, drawn(tmp_path / "a.png").name)])
    assert state.isfinite().all()
