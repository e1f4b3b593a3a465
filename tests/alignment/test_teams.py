"""Processes that work at the same samples count as one, and one of them asks for scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from alignment.meetings import Meetings
from alignment.world import World
from reward_models.base import Media
from reward_models.combinators.function import Function

CPU = torch.device("cpu")
asked: list[int] = []


def red(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: how red a picture is; unknown for the first."""
    asked.append(len(pixels))
    value = pixels[:, 0, 0].mean((1, 2))
    value[0] = torch.nan
    return value


REWARD = Function(f"{__name__}:red")


def worlds(processes: int, team: int) -> list[World]:
    store = HashStore()
    states: list[Any] = [SimpleNamespace(process_index=k, num_processes=processes) for k in range(processes)]
    return [World(s, CPU, Meetings(store, s.process_index, processes, 60.0, lambda: None), team=team) for s in states]


def test_a_team_has_one_rank_and_one_share() -> None:
    four = worlds(4, 2)
    assert [(one.rank, one.size, one.processes, one.main) for one in four] == [
        (0, 2, 4, True), (0, 2, 4, False), (1, 2, 4, False), (1, 2, 4, False),
    ]  # fmt: skip
    assert [one.share(6) for one in four] == [slice(0, 3), slice(0, 3), slice(3, 6), slice(3, 6)]
    assert all(one.in_step and not one.spread for one in four)


@pytest.mark.parametrize("team", [1, 2, 4])
def test_one_of_a_team_asks_and_all_have_the_same_scores(team: int) -> None:
    asked.clear()
    four = worlds(4, team)
    media = Media(torch.rand(5, 1, 3, 4, 4))

    first, *others = [[world.score(REWARD, media, ("a",) * 5, None).value for _ in range(3)] for world in four]
    assert asked == [5] * (3 * 4 // team)
    for scores in others:
        torch.testing.assert_close(scores, first, rtol=0, atol=0, equal_nan=True)
    assert first[0].isnan().tolist() == [True, False, False, False, False]
