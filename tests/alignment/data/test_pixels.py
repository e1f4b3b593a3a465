"""What pipelines hand back: layouts, colours and ranges."""

import inspect

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    MarigoldDepthPipeline,
    MarigoldNormalsPipeline,
)
from PIL import Image

from alignment.data.pixels import as_clips, in_colour
from alignment.errors import PipelineError
from samplers.dynamics.ddim import DDIM
from tests.pipelines.zoo import decoders, images, texts
from tests.support.policies import PROMPTS, ROWS, build, plan, replayed, transitions
from tests.support.toy import ToyNetwork, ToyPipeline

FRAMES = torch.rand(2, 2, 3, 8, 10)
"""Two clips of two frames."""


@pytest.mark.parametrize("place", [1, 2, 4])
def test_clips_have_channels_after_frames(place):
    made = FRAMES.movedim(2, place)
    for form in (made, list(made), made.numpy(), list(made.numpy())):
        assert torch.equal(as_clips(form), FRAMES)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("place", [1, 3])
def test_a_picture_is_a_clip_of_one_frame(place, channels):
    picture = torch.rand(2, channels, 8, 10)
    assert torch.equal(as_clips(picture.movedim(1, place)), picture[:, None])


@pytest.mark.parametrize("made", [torch.rand(2, 5, 8, 8), torch.rand(3, 8, 8), [], None, ["a picture"]])
def test_what_is_no_picture_is_refused(made):
    with pytest.raises(PipelineError, match=r"hands back .* where pictures \[n, 3, H, W\]"):
        as_clips(made)


def test_grey_is_three_colours_and_what_is_transparent_lies_on_white():
    assert torch.equal(in_colour(FRAMES), FRAMES)
    grey = in_colour(FRAMES[:, :, :1])
    assert grey.shape == FRAMES.shape
    assert torch.equal(grey[:, :, 2], FRAMES[:, :, 0])
    half = in_colour(torch.cat([FRAMES, torch.full((2, 2, 1, 8, 10), 0.5)], dim=2))
    torch.testing.assert_close(half, FRAMES / 2 + 0.5)
    clear = in_colour(torch.cat([FRAMES, torch.zeros(2, 2, 1, 8, 10)], dim=2))
    assert torch.equal(clear, torch.ones_like(FRAMES))


def made_of(x, output_type):
    """Return pictures of points, in [0, 1] and with colours both dark and bright."""
    return torch.stack([x.sigmoid().mean(1), torch.full((len(x),), 0.01), torch.full((len(x),), 0.98)], 1)


def as_usual(x, output_type):
    return made_of(x, output_type)[:, :, None, None]


def with_signs(x, output_type):
    return as_usual(x, output_type) if output_type == "np" else 2 * as_usual(x, output_type) - 1


def overshooting(x, output_type):
    return 1.06 * as_usual(x, output_type) - 0.03


def last(x, output_type):
    return as_usual(x, output_type).movedim(1, 3).numpy()


def transparent(x, output_type):
    return torch.cat([as_usual(x, output_type), torch.ones(len(x), 1, 1, 1)], 1)


def no_picture(x, output_type):
    return as_usual(x, output_type) * 7 - 3


class Showing(ToyPipeline):
    """Shows its points in some way, and knows no output without pixels."""

    shows = staticmethod(as_usual)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=4, generator=(), output_type="pt", return_dict=True):
        """Denoise one point a prompt."""
        if output_type not in ("pt", "np"):
            raise ValueError(f"output_type {output_type} is unknown")
        denoise = inspect.unwrap(ToyPipeline.__call__)  # gradients are the caller's business
        (x,) = denoise(self, prompt, num_inference_steps, generator, "latent", return_dict)
        return (self.shows(x, output_type),)


diffusers.Showing = Showing


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Showing(ToyNetwork(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shows", [as_usual, with_signs, overshooting, last, transparent])
def test_a_pipeline_shows_its_samples_in_a_way_of_its_own(shows, folder, monkeypatch):
    plain = build(folder, {}).generate(PROMPTS, torch.tensor([1, 2]), {}).pixels
    monkeypatch.setattr(Showing, "shows", staticmethod(shows))
    made = build(folder, {}).generate(PROMPTS, torch.tensor([1, 2]), {}).pixels
    assert made.shape == (2, 1, 3, 1, 1)
    torch.testing.assert_close(made, (1.06 * plain - 0.03).clamp(0, 1) if shows is overshooting else plain)


def test_numbers_that_are_no_pixels_are_refused(folder, monkeypatch):
    monkeypatch.setattr(Showing, "shows", staticmethod(no_picture))
    with pytest.raises(PipelineError, match=r"Showing hands back numbers from -2.9 to 3.9 where pixels in \[0, 1\]"):
        build(folder, {})


@pytest.mark.parametrize("kind", [MarigoldDepthPipeline, MarigoldNormalsPipeline])
def test_a_pipeline_of_one_picture_a_call_that_knows_no_latents(kind, tmp_path):
    """Marigold: depths are grey pictures; normals are directions, and no pixels."""
    words, encoder = texts.clip()
    scheduler = DDIMScheduler(**images.BETAS, clip_sample=False, prediction_type="v_prediction")
    pipe = kind(images.unet(2 * 4), decoders.kl(), scheduler, encoder, words, default_processing_resolution=0)
    pipe.save_pretrained(tmp_path / "pipeline")
    call = {"num_inference_steps": 4, "image": Image.new("RGB", (16, 16), "green")}
    if kind is MarigoldNormalsPipeline:
        with pytest.raises(PipelineError, match="MarigoldNormalsPipeline hands back numbers from -"):
            build(tmp_path / "pipeline", call)
        return
    policy = build(tmp_path / "pipeline", call)
    (made,) = policy.generate(PROMPTS[:1], torch.tensor([1]), {}).pixels[:, 0]
    assert made.shape == (3, 16, 16)
    assert torch.equal(made[0], made[1])
    _, batch = transitions(policy, plan(policy, DDIM()))
    for k, model_output in enumerate(replayed(policy, batch)):
        torch.testing.assert_close(model_output, batch.model_output[:, k], atol=ROWS, rtol=ROWS)
