"""Three numbers: what is shared by every rule."""

import math

import pytest
import torch
from torch.distributions import Normal

from samplers import Step

MEAN_RATIO = 1e-6
"""|rho - 1| where a stored action is compared with itself."""


def test_numbers_a_row_and_a_state_broadcast():
    step = Step(*torch.rand(3, 2, 5).add(0.1))
    x, v, noise = torch.randn(3, 2, 5, 4, 4)
    whole = step.sample(x, v, noise)
    for n in range(2):
        for k in range(5):
            one = Step(step.a[n, k], step.b[n, k], step.std[n, k])
            torch.testing.assert_close(whole[n, k], one.sample(x[n, k], v[n, k], noise[n, k]))


def test_coefficients_there_and_back():
    step = Step(*torch.rand(3, 4))
    assert step.coefficients.shape == (4, 3)
    again = Step.from_coefficients(step.coefficients)
    assert all(torch.equal(getattr(step, name), getattr(again, name)) for name in ("a", "b", "std"))


def test_a_shared_state_gives_many_actions_their_densities():
    step = Step.of(0.9, -0.2, 0.3)
    x, v, x_next = torch.randn(2, 1, 6), torch.randn(2, 1, 6), torch.randn(2, 7, 6)
    expected = torch.stack([step.log_prob(x[:, 0], v[:, 0], x_next[:, g]) for g in range(7)], 1)
    assert torch.equal(step.log_prob(x, v, x_next), expected)


def test_low_precision_inputs_are_computed_in_float32():
    step = Step.of(1.0, -0.1, 0.2)
    x, v, noise = torch.randn(3, 50).bfloat16()
    assert step.sample(x, v, noise).dtype == torch.float32
    assert torch.equal(step.mean(x, v), step.mean(x.float(), v.float()))


def test_the_gradient_of_the_density():
    step = Step.of(1.1, -0.3, 0.4)
    x, x_next = torch.randn(2, 3, 5)
    v = torch.randn(3, 5, requires_grad=True)
    step.log_prob(x, v, x_next).sum().backward()
    torch.testing.assert_close(v.grad, step.b * (x_next - step.mean(x, v.detach())) / step.std**2)


@pytest.mark.parametrize("std", [torch.tensor(0.0), torch.tensor([0.1, 0.0])])
def test_a_step_without_noise_has_no_density(std):
    step = Step(torch.ones_like(std), torch.ones_like(std), std)
    with pytest.raises(ValueError, match="std 0 has no density"):
        step.log_prob(*torch.zeros(3, 2, 4))


@pytest.mark.parametrize(("dtype", "visible"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-7)])
def test_an_action_is_stored_as_its_density_sees_it(dtype, visible):
    step = Step.of(1.0, -0.05, 0.12)
    x, v, noise = torch.randn(3, 65536)
    drawn = step.sample(x, v, noise)
    stored = drawn.to(dtype).float()
    old = step.log_prob(x, v, stored).mean()
    again = step.log_prob(x, v, stored.to(dtype).float()).mean()
    assert abs(math.expm1((again - old).item())) <= MEAN_RATIO
    # Without the round trip, rounding alone moves the ratio; in bfloat16 by more than many clip ranges allow.
    assert abs((again - step.log_prob(x, v, drawn).mean()).item()) > visible


def test_the_density_of_one_number():
    assert Step.of(2.0, 1.0, 0.5).log_prob(*torch.tensor([[1.0], [0.5], [2.0]])).item() == pytest.approx(
        Normal(2.5, 0.5).log_prob(torch.tensor(2.0)).item()
    )
