import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.combinators.function import Function

MEDIA = Media(torch.full((2, 1, 3, 4, 4), 0.5))
ANSWERS = {
    "tensor": torch.tensor([1.0, 2.0]),
    "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "array": np.array([1.0, 2.0]),
    "numbers": [1, np.float32(2)],
    "scalars": [torch.tensor(1.0), torch.tensor(2)],
    "unscored": [1.0, float("nan")],
    "short": [1.0],
    "matrix": torch.ones(2, 1),
    "column": np.ones((2, 1)),
    "rows": [[1.0], [2.0]],
    "words": ["good", "bad"],
    "text": "ok",
    "single": 1.0,
    "nothing": None,
    "infinite": [1.0, float("inf")],
}


def answering(pixels, prompts):
    return ANSWERS[prompts[0]]


def failing(pixels, prompts):
    raise KeyError("lost")


def brightness(pixels, prompts):
    return pixels.mean((1, 2, 3, 4)) + torch.tensor([len(p) for p in prompts])


def score(name, *prompts):
    model = Function(f"{__name__}:{name}")
    return model.load(device=torch.device("cpu"))(media=MEDIA, prompts=prompts).value


def test_it_gets_pixels_and_prompts():
    assert score("brightness", "a", "abc").tolist() == [1.5, 3.5]


@pytest.mark.parametrize("kind", ["tensor", "half", "array", "numbers", "scalars"])
def test_it_takes_any_sequence_of_numbers(kind):
    assert torch.equal(score("answering", kind, ""), torch.tensor([1.0, 2.0]))


def test_nan_stays_unscored():
    assert score("answering", "unscored", "").isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "1 numbers for 2 samples"),
        ("matrix", r"an array of shape \[2, 1\], expected \[2\]: one number per sample"),
        ("column", r"an array of shape \[2, 1\], expected \[2\]: one number per sample"),
        ("rows", r"returned \[1.0\] for sample 0, not a finite number"),
        ("words", "'good' for sample 0"),
        ("text", "returned a str"),
        ("single", "returned a float"),
        ("nothing", "returned a NoneType"),
        ("infinite", "inf for sample 1"),
    ],
)
def test_what_is_not_a_score_is_refused_and_the_function_named(kind, message):
    with pytest.raises(RewardError, match=message) as error:
        score("answering", kind, "")
    assert f"{__name__}:answering" in str(error.value)


def setting(pixels, prompts):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    os.chdir("/")
    return [1.0, 2.0] if prompts[0] == "works" else {}["lost"]


@pytest.mark.parametrize("outcome", ["works", "fails"])
def test_what_it_sets_for_the_whole_process_is_put_back_and_told(outcome):
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()
    fails = nullcontext() if outcome == "works" else pytest.raises(RewardError)
    with pytest.warns(UserWarning, match="setting set the") as told, fails:
        score("setting", outcome, "")
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()) == before
    said = " ".join(str(warning.message) for warning in told)
    assert "set the default dtype of the process to torch.float64; it is torch.float32 again" in said
    for name in ("number of threads", "current folder"):  # of gradients the scorer has a context of its own
        assert f"function {__name__}:setting set the {name} of the process" in said


def test_an_exception_is_reported_with_its_cause():
    with pytest.raises(RewardError, match="failing raised KeyError: 'lost'") as error:
        score("failing", "", "")
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("brightness", "package.module:function"),
        ("no_such_package:f", "No module named"),
        ("math:no_such_function", "has no no_such_function"),
        ("math:pi", "a float, not a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(call, message):
    with pytest.raises(RewardError, match=message):
        Function(call).load(device=torch.device("cpu"))
