import io

import pytest
import torch
from PIL import Image

from reward_models.base import Media, RewardError
from reward_models.measures.jpeg import Jpeg

CPU = torch.device("cpu")


@pytest.fixture
def media():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 2, 3, 32, 32, generator=generator)
    return Media(torch.cat([noise, torch.full_like(noise, 0.5)]))


def test_noise_is_larger_than_grey(media):
    noise, grey = Jpeg().load(device=CPU)(media=media, prompts=["", ""]).value
    assert noise < grey < 0


def test_the_score_is_the_size_of_the_file(media):
    pixels = (media.pixels[1, 0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=60)
    score = Jpeg(quality=60).load(device=CPU)(media=media, prompts=["", ""]).value[1]
    torch.testing.assert_close(score, torch.tensor(-len(file.getvalue()) / 1000))


def test_incompressible_turns_the_sign(media):
    plain, turned = (Jpeg(incompressible=flag).load(device=CPU) for flag in (False, True))
    assert torch.equal(plain(media=media, prompts=["", ""]).value, -turned(media=media, prompts=["", ""]).value)


def test_a_higher_quality_is_a_larger_file(media):
    low, high = (Jpeg(quality=q).load(device=CPU)(media=media, prompts=["", ""]).value[0] for q in (30, 90))
    assert high < low


def test_an_impossible_quality_is_refused():
    with pytest.raises(RewardError, match="1 to 95"):
        Jpeg(quality=100)
