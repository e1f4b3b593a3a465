"""What is remembered of operators on meta tensors is what torch returns, first and later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignment.preflight.plan import known_outputs
from alignment.preflight.plan.known_outputs import META, Remembering
from reward_models.foreign import ForeignCode


def full(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


CALLS: dict[str, Callable[[], Tensor]] = {
    "a sum": lambda: full(4, 1, 3) + full(5, 1),
    "of two types": lambda: full(4, dtype=torch.bfloat16) + full(4),
    "with a whole number": lambda: full(4, dtype=torch.int64) * 1,
    "with a number": lambda: full(4, dtype=torch.int64) * 1.0,
    "with a truth": lambda: full(4, dtype=torch.int64) * True,
    "of a transposed": lambda: full(4, 6).t() * 2,
    "of every other": lambda: full(4, 6)[:, ::2] * 2,
    "a product": lambda: full(2, 4, 6) @ full(6, 3),
    "a view": lambda: full(4, 6).flatten(),
    "in place": lambda: full(4, 6).add_(1),
    "another type": lambda: full(4, 6).to(torch.float16),
    "a layout": lambda: full(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "two outputs": lambda: full(4, 6).max(dim=1)[1],
    "parts": lambda: full(4, 6).chunk(2, dim=1)[1] * 1,
    "complex": lambda: torch.view_as_real(torch.view_as_complex(full(4, 2)).conj() * 2),
    "a convolution": lambda: torch.nn.functional.conv2d(full(1, 3, 8, 8), full(5, 3, 3, 3)),
}


def described(z: Tensor) -> tuple[object, ...]:
    return z.shape, z.stride(), z.dtype, z.storage_offset(), z.untyped_storage().nbytes(), z.device


@pytest.mark.parametrize("case", CALLS)
def test_it_is_what_torch_returns(case: str) -> None:
    expected = described(CALLS[case]())
    with Remembering():
        assert [described(CALLS[case]()) for _ in range(2)] == [expected, expected]


@pytest.mark.parametrize(
    ("make", "shares"),
    [
        (lambda z: z.view(2, 12), True),
        (lambda z: torch.ops.aten._unsafe_view(z, (2, 12)), True),  # a view whose schema does not say so
        (lambda z: z.add_(1), True),
        (lambda z: z.clone(), False),
        (lambda z: z + 1, False),
    ],
)
def test_what_shares_memory_still_does_and_nothing_else(make: Callable[[Tensor], Tensor], shares: bool) -> None:
    z = full(4, 6)
    with Remembering():
        first, second = make(z), make(z)
    for out in (first, second):
        assert (out.untyped_storage()._cdata == z.untyped_storage()._cdata) is shares
    assert (first.untyped_storage()._cdata == second.untyped_storage()._cdata) is shares


def test_numbers_are_never_made_up() -> None:
    with Remembering():
        assert [(torch.ones(3) + 1).tolist() for _ in range(2)] == [[2.0] * 3] * 2


def test_a_known_output_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Remembering():
        first = full(7, 11) + full(11)
        told: list[object] = []
        monkeypatch.setattr(known_outputs, "_outputs", lambda *given: told.append(given))
        second = full(7, 11) + full(11)
    assert not told
    assert described(first) == described(second)


def test_what_an_operator_cannot_do_is_not_our_error() -> None:
    with Remembering(), pytest.raises(LookupError), ForeignCode(lambda error: LookupError(str(error))):
        full(3).sum().item()
