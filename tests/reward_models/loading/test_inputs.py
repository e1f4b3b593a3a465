"""Bad inputs of every scorer that looks at pictures: one clear error each, and never a score."""

import pytest
import torch

from reward_models.base import Media, RewardError
from tests.laws.test_rewards import LANGUAGES, build
from tests.support.tiny_rewards import TINY

CPU = torch.device("cpu")
NAMES = sorted({*TINY, "sharpness", "exposure"})
READERS = sorted(TINY.keys() - {"aesthetic", "consistency", "optical_flow"})
"""Those whose score depends on the prompt."""


@pytest.fixture(scope="module")
def loaded(tiny_rewards):
    made = {}

    def load(name):
        if name not in made:
            made[name] = (tiny_rewards(name) if name in TINY else build(name)).load(device=CPU)
        return made[name]

    return load


def clip(**changes):
    return Media(**{"pixels": torch.rand(1, 4, 3, 32, 32), "fps": 8.0, **changes})


def prompt_of(name):
    return LANGUAGES.get(name, ("a red circle",))[0]


BAD_PIXELS = {
    "bytes": (torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), "floating-point numbers in"),
    "0 to 255": (torch.full((1, 4, 3, 32, 32), 200.0), r"pixels in \[0, 1\], got values from 200 to 200"),
    "-1 to 1": (torch.linspace(-1, 1, 32).expand(1, 4, 3, 32, 32), "got values from -1 to 1"),
    "not numbers": (torch.full((1, 4, 3, 32, 32), float("nan")), "got values from nan"),
    "one infinite": (torch.full((1, 4, 3, 32, 32), 0.5).index_fill(4, torch.tensor([3]), float("inf")), "to inf"),
    "no width": (torch.zeros(1, 4, 3, 32, 0), "pictures without pixels"),
    "no frames": (torch.zeros(1, 0, 3, 32, 32), "pictures without pixels"),
    "no rows": (torch.zeros(0, 4, 3, 32, 32), "pictures without pixels"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", BAD_PIXELS)
def test_pixels_that_are_not_in_range_are_refused(loaded, name, bad):
    pixels, says = BAD_PIXELS[bad]
    with pytest.raises(RewardError, match=says):
        loaded(name)(media=clip(pixels=pixels), prompts=[prompt_of(name)] * len(pixels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_prompts_is_refused(loaded, name, count):
    with pytest.raises(RewardError, match=f"given 1 samples and {count} prompts"):
        loaded(name)(media=clip(), prompts=[prompt_of(name)] * count)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 32), (1, 1, 4, 32, 32), (1, 1, 1, 32, 32)])
def test_other_shapes_are_no_media(shape):
    with pytest.raises(RewardError, match=r"media need pixels \[B, F, 3, H, W\]"):
        Media(torch.zeros(shape))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("x" * 10_000, "has 10000 characters, at most 5000"),
        (None, "expected a text"),
    ],
    ids=["empty", "blank", "endless", "none"],
)
def test_prompts_that_say_nothing_or_have_no_end_are_refused(loaded, tiny_rewards, name, prompt, says):
    with pytest.raises(RewardError, match=says):
        loaded(name)(media=clip(), prompts=[prompt])
    with pytest.raises(RewardError, match=says):
        tiny_rewards(name).check([prompt_of(name), prompt])


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(READERS)))
def test_a_prompt_that_is_not_read_may_be_empty(loaded, name):
    assert loaded(name)(media=clip(), prompts=[""]).value.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_one_pixel_is_a_picture_or_an_error_but_never_a_missing_score(loaded, name):
    media, prompts = clip(pixels=torch.rand(1, 4, 3, 1, 1)), [prompt_of(name)]
    if name == "sharpness":
        with pytest.raises(RewardError, match="sides of at least 3 pixels"):
            loaded(name)(media=media, prompts=prompts)
    else:
        assert loaded(name)(media=media, prompts=prompts).value.isfinite()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"hpsv3", "ocr", "geneval", "scene_graph"}))
def test_half_precision_pixels_are_scored(loaded, name):
    media = clip()
    exact = loaded(name)(media=media, prompts=[prompt_of(name)]).value
    half = loaded(name)(media=clip(pixels=media.pixels.bfloat16()), prompts=[prompt_of(name)]).value
    assert half.dtype == torch.float32
    assert abs(half - exact) < 0.2 * (1 + abs(exact))
