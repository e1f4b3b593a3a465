"""Which networks have tokens that can be divided, and what is said of the others."""

from __future__ import annotations

import pytest

from alignment.errors import ConfigError
from alignment.policy.networks.token_plans import PLANS, check_divisible, modules_called, token_plan
from tests.pipelines.zoo import built, videos
from tests.pipelines.zoo.images import flux_transformer, unet


def test_a_network_that_says_it_itself_is_read() -> None:
    plan = token_plan(flux_transformer())
    assert plan is not None
    assert plan.texts
    assert plan.joined == {"proj_out": (1,)}


def test_text_that_is_not_divided_is_known() -> None:
    plan = token_plan(videos.wan_transformer())  # type: ignore[arg-type]  # a builder of several classes
    assert plan is not None
    assert not plan.texts


@pytest.mark.parametrize(
    "name",
    ["stable_diffusion_3", "cogvideox", "hunyuan_video", "hunyuan_video_1_5", "skyreels_v2", "ltx_video", "ltx2"],
)
def test_every_module_that_a_plan_names_is_there(name: str) -> None:
    network = built(name).pipe.components["transformer"]
    plan = PLANS[type(network).__name__]
    for pattern in [*plan.cut, *plan.joined]:
        assert list(modules_called(network, pattern)), pattern


@pytest.mark.parametrize(
    ("network", "context", "words"),
    [
        (unet(), 2, "nothing says how the tokens of UNet2DConditionModel can be divided over 2 processes"),
        (flux_transformer(), 3, r"3 processes cannot share the \d heads .* evenly; use one of 1, 2"),
        (
            videos.hunyuan_transformer(condition="token_replace"),
            2,
            r"a way of their own \(image_condition_type: token_r",
        ),
    ],
)
def test_what_cannot_be_divided_is_said(network: object, context: int, words: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel.context: .*{words}"):
        check_divisible(network, context)  # type: ignore[arg-type]  # modules, all of them
