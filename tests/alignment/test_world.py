"""What processes exchange."""

from __future__ import annotations

import itertools

import pytest
import torch

from alignment.world import buckets


@pytest.mark.parametrize("size", [4, 40, 100, 10_000])
def test_tensors_go_in_buckets_in_their_order(size: int) -> None:
    tensors = [torch.empty(count) for count in (3, 7, 1, 30, 2, 2)]
    made = list(buckets(iter(tensors), size))
    assert [z.data_ptr() for bucket in made for z in bucket] == [z.data_ptr() for z in tensors]
    assert all(len(bucket) == 1 or sum(z.nbytes for z in bucket) <= size for bucket in made)
    for first, second in itertools.pairwise(made):  # none could have held one more
        assert sum(z.nbytes for z in [*first, second[0]]) > size
