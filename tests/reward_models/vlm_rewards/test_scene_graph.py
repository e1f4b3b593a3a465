"""Scene graphs: what builds on a no is a no."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reward_models.base import Media, RewardError, load_reward
from reward_models.vlm_rewards.scene_graph import SceneGraph, YesOrNo, read_graphs, score
from tests.reward_models.vlm_rewards.test_reward_dance import CPU, EXACT, grey
from tests.support.bright_vlm import BrightVlm
from tests.support.tiny_rewards import scene_graph

COLUMNS = "item_id,text,proposition_id,dependency,question_natural_language"


def graph(*needs: tuple[int, ...]) -> dict[int, YesOrNo]:
    return {number: YesOrNo("?", one) for number, one in enumerate(needs, start=1)}


@pytest.mark.parametrize(
    ("needs", "answers", "share"),
    [
        (((), (1,), (2,), ()), (0, 1, 1, 1), 0.25),  # the third builds on the second, which builds on a no
        (((), (1,), (2,), ()), (1, 0, 1, 1), 0.5),
        (((), (), (1, 2)), (1, 0, 1), 1 / 3),
        (((2,), (3,), ()), (1, 1, 0), 1 / 3),  # in the order of the table, as the publishers do: the first still counts
        (((), (1,)), (1, 1), 1.0),
    ],
)
def test_a_question_counts_where_all_that_it_builds_on_does(
    needs: tuple[tuple[int, ...], ...], answers: tuple[float, ...], share: float
) -> None:
    torch.testing.assert_close(score(graph(*needs), torch.tensor(answers).float()), torch.tensor(share))


def test_an_answer_that_is_not_known_leaves_no_score(tmp_path: Path) -> None:
    assert score(graph((), (1,)), torch.tensor([0.0, torch.nan])).isnan()
    unsure = SceneGraph(BrightVlm(mass=0.05), scene_graph(tmp_path).questions)
    found = load_reward(unsure, device=CPU)(media=Media(grey(0.9)), prompts=["a red circle"])
    assert found.value.isnan().all()


def test_each_picture_is_asked_about_its_prompt(tmp_path: Path) -> None:
    model = scene_graph(tmp_path)
    prompts = ["two  red circles", "two red circles", "a green triangle"]  # white space does not count
    found = load_reward(model, device=CPU)(media=Media(torch.cat([grey(0.9), grey(0.2), grey(0.8)])), prompts=prompts)
    torch.testing.assert_close(found.value, torch.tensor([1.0, 0.0, 1.0]), **EXACT)
    torch.testing.assert_close(found.parts["answers"], torch.tensor([1.0, 0.0, 1.0]), **EXACT)
    assert isinstance(model.vlm, BrightVlm)
    assert [question.pieces[1] for question in model.vlm.asked][:2] == [
        "Are there circles? Answer yes or no.",
        "Are the circles red? Answer yes or no.",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("item_id,text\n", "there is no column dependency nor proposition_id nor question_natural_language"),
        (f"{COLUMNS}\nx,a fox,1,0,Is it?\nx,a fox,1,0,Is it?\n", ":3: question 1 of the prompt 'a fox' occurs twice"),
        (f"{COLUMNS}\nx,a fox,1,0,\n", ":2: a prompt or its question is missing"),
        (f"{COLUMNS}\nx,a fox,one,0,Is it?\n", ":2: got the number 'one' and the dependency '0', expected whole"),
        (f"{COLUMNS}\nx,a fox,1,,Is it?\n", "the dependency '', expected whole numbers"),
        (f"{COLUMNS}\nx,a fox,1,7,Is it?\n", "questions of the prompt 'a fox' build on question 7, which is not there"),
        (f'{COLUMNS}\nx,"a fox,1,0,Is it?\n', "unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_asked_is_refused(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "graphs.csv"
    file.write_text(content)
    with pytest.raises(RewardError, match="scene_graph: questions: ") as refused:
        read_graphs(str(file))
    assert says in str(refused.value)


def test_a_prompt_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"graphs.csv has no questions about the prompt 'a fox'"):
        scene_graph(tmp_path).check(["a fox"])
    with pytest.raises(RewardError, match="min_mass is a probability, got 2"):
        SceneGraph(BrightVlm(), "x", min_mass=2)
