"""Extractors: a row depends on its own pixels, weights are found or named, and Inception is the one that FID is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment.cli.main import run
from alignment.config import build, registry
from alignment.errors import ConfigError, DataError
from alignment.features.base import Extractor
from alignment.features.clip import CLIP
from alignment.features.dinov2 import DINOv2
from alignment.features.i3d import I3D
from alignment.features.inception import Inception, as_tensorflow
from alignment.features.looks import Looks
from alignment.features.pixels import Pixels
from alignment.features.videomae import VideoMAE
from reward_models.loading.preprocess import centre_crop, resize
from tests.support.named_weights import filled
from tests.support.tiny_rewards import clip_folder

CPU = torch.device("cpu")
ROWS = 1e-5  # a network's rounding with another number of rows
WITH_WEIGHTS = ("clip", "dinov2", "i3d", "inception", "videomae")
FID = {2033: 2.200737, 964: 1.978918, 1925: 1.900812}
"""The largest features of a picture of noise, by pytorch-fid 0.3.0 with weights by their names."""


MOTION = {16: (-0.047932, -0.462274, 0.941922, -0.400562), 6: (-0.045371, -0.480337, 0.945864, -0.397007)}
"""First features of a clip of noise of so many frames, by the code of the content-debiased distance (9c83d29)."""


class Program(nn.Module):
    """What I3D's file takes and gives, without its network: the mean level of each frame."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert resize
        assert return_features
        assert not rescale
        return x.mean(1).mean(-1).mean(-1)


class Levels(nn.Module):
    """What NVIDIA's file of Inception takes and gives, without its network: the mean of each channel, of bytes."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        assert x.dtype == torch.uint8
        return x.float().mean(-1).mean(-1)


def dinov2(folder: Path) -> DINOv2:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return DINOv2(str(folder), side=28)


def program(folder: Path, kind: type[nn.Module]) -> str:
    torch.jit.script(kind()).save(str(folder / "program.pt"))
    return str(folder / "program.pt")


def videomae(folder: Path, width: int = 64, depth: int = 2) -> VideoMAE:
    """Return it with weights by their names, as the authors' file names them."""
    state = {"patch_embed.proj.weight": torch.empty(width, 3, 2, 14, 14), "patch_embed.proj.bias": torch.empty(width)}
    inner = width * 48 // 11
    for k in range(depth):
        shapes = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (width, inner), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        state |= {f"blocks.{k}.{name}": torch.empty(shape) for name, shape in shapes.items()}
    last = {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (174, width), "head.bias": (174,)}
    state |= {name: torch.empty(shape) for name, shape in last.items()}
    torch.save({"module": filled(state)}, folder / "videomae.pth")
    return VideoMAE(str(folder / "videomae.pth"))


TINY = {
    "clip": lambda folder: CLIP(str(clip_folder(folder))),
    "dinov2": dinov2,
    "i3d": lambda folder: I3D(program(folder, Program)),
    "inception": lambda folder: Inception(program(folder, Levels)),
    "looks": lambda folder: Looks(),
    "pixels": lambda folder: Pixels(),
    "videomae": lambda folder: videomae(folder, 16, 1),
}


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).float() / 255


@pytest.mark.parametrize("name", registry.known(Extractor))
@torch.no_grad()
def test_a_row_depends_on_its_own_pixels(tmp_path: Path, name: str) -> None:
    extractor = TINY[name](tmp_path)
    extractor.check()
    extract = extractor.load(device=CPU)
    pixels = noise(3, 9 if extractor.clips else 2, 3, 36, 40)
    found = extract(pixels)
    assert (found.shape[0], found.dtype, found.ndim) == (3, torch.float32, 2)
    torch.testing.assert_close(extract(pixels[[2, 0]]), found[[2, 0]], atol=ROWS, rtol=ROWS)
    assert not torch.allclose(found[0], found[1])
    if not extractor.clips:
        frames = torch.stack([extract(pixels[:, [n]]) for n in range(2)])
        torch.testing.assert_close(found, frames.mean(0), atol=ROWS, rtol=ROWS)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_missing_weights_are_named_with_their_licence_and_their_place(tmp_path: Path, name: str) -> None:
    asked = build.of_kind(Extractor, name, [f"weights={tmp_path / 'nowhere'}"])
    for act in (asked.check, lambda: asked.load(device=CPU)):
        with pytest.raises(ConfigError) as raised:
            act()
        for said in (f"features: {name}", "nowhere", asked.licence, asked.place):
            assert said in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["inception", "i3d"])
def test_what_is_no_network_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"x\.pt.*licence"):
        build.of_kind(Extractor, name, [f"weights={tmp_path / 'x.pt'}"]).load(device=CPU)


def test_weights_are_looked_for_before_pictures_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    words = ["eval", "assets/tiny_flux", "--on", "prompts", f"file={tmp_path / 'prompts.txt'}", "--reward", "colour"]
    words += ["--features", "dinov2", f"weights={tmp_path / 'nowhere'}", "--output", str(tmp_path / "out")]
    assert run(words) == 2
    assert "huggingface.co/facebook/dinov2-large" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def named_inception() -> dict[str, Tensor]:
    """Return the weights of Inception with TensorFlow's classes by their names, with variances that are some."""
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    state = filled(network.state_dict())
    return {name: value.abs() + 0.5 if name.endswith("running_var") else value for name, value in state.items()}


@torch.no_grad()
def test_inception_is_the_one_of_fid(tmp_path: Path) -> None:
    torch.save(named_inception(), tmp_path / "fid.pth")
    found = Inception(str(tmp_path / "fid.pth")).load(device=CPU)(noise(1, 1, 3, 299, 299))
    assert found.shape == (1, 2048)
    assert found[0].topk(3).indices.tolist() == list(FID)
    assert found[0, list(FID)].tolist() == pytest.approx(list(FID.values()), abs=ROWS)


def test_tensorflow_takes_the_new_pixel_from_the_corner_on() -> None:
    """A ramp stays one, from its first pixel on, and is flat beyond its last."""
    ramp = torch.linspace(0, 1, 50).expand(1, 3, 20, 50)
    wide = as_tensorflow(ramp, 299)
    expected = (torch.arange(299) * 50 / 299).clamp(max=49) / 49
    torch.testing.assert_close(wide, expected.expand(1, 3, 299, 299), atol=1e-6, rtol=0)
    assert torch.equal(as_tensorflow(ramp[..., :20], 20), ramp[..., :20])


@torch.no_grad()
def test_clip_sees_the_middle_square(tmp_path: Path) -> None:
    extract = CLIP(str(clip_folder(tmp_path))).load(device=CPU)
    pixels = noise(1, 1, 3, 40, 61)
    square = resize(centre_crop(pixels[0], 40), 32, 32)
    torch.testing.assert_close(extract(pixels), extract(square[None]), atol=ROWS, rtol=ROWS)


def test_i3d_wants_clips(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 9 frames, got 1"):
        I3D(program(tmp_path, Program)).load(device=CPU)(noise(1, 1, 3, 8, 8))


def test_i3d_sees_frames_from_minus_one_to_one(tmp_path: Path) -> None:
    clip = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    found = I3D(program(tmp_path, Program)).load(device=CPU)(clip)
    torch.testing.assert_close(found, torch.linspace(-1, 1, 9)[None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("frames", MOTION)
@torch.no_grad()
def test_videomae_is_the_one_of_the_content_debiased_distance(tmp_path: Path, frames: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, frames, 40, 56, 3), dtype=np.uint8)[:1]
    found = videomae(tmp_path).load(device=CPU)(torch.from_numpy(levels).permute(0, 1, 4, 2, 3).float() / 255)
    assert found.shape == (1, 64)
    assert found[0, :4].tolist() == pytest.approx(MOTION[frames], abs=ROWS)


def test_videomae_wants_clips(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 frames, got 1"):
        videomae(tmp_path, 16, 1).load(device=CPU)(noise(1, 1, 3, 8, 8))


def test_videomae_names_what_a_file_lacks(tmp_path: Path) -> None:
    state = torch.load(Path(videomae(tmp_path, 16, 1).weights), weights_only=True)["module"]
    for name in ("fc_norm.weight", "blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight"):
        torch.save({other: z for other, z in state.items() if other != name}, tmp_path / "less.pth")
        with pytest.raises(
            ConfigError, match=r"videomae: the checkpoint is of another architecture .*missing: .*licence"
        ):
            VideoMAE(str(tmp_path / "less.pth")).load(device=CPU)
