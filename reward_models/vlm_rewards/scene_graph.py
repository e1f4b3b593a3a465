"""Scene graphs: yes-or-no questions about a prompt, each worth asking only where what it builds on is there."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from reward_models.base import Media, RewardError, RewardModel, Rewards, Scorer
from reward_models.loading.inputs import check_media, check_prompts
from reward_models.loading.whole_files import read_whole
from reward_models.vlm_rewards.questions import PLAIN_ANSWER, clips_of, thinned
from reward_models.vlms.base import Reader, Vlm

_NAME = "scene_graph"
_COLUMNS = ("text", "proposition_id", "dependency", "question_natural_language")
_FRAMES = 8
"""Of a clip that are shown."""
_FPS = 16.0
"""Frames per second that are assumed of clips without a frame rate."""


@dataclass(frozen=True)
class YesOrNo:
    """A question about a prompt.

    Attributes:
        question: To be answered by yes or no.
        needs: Numbers of the questions that it builds on: a colour builds on the object that has it.
    """

    question: str
    needs: tuple[int, ...]


@dataclass(frozen=True)
class SceneGraph(RewardModel):
    """Score the share of questions that a model says yes to, and yes to all that they build on.

    Parts: "answers", the share of yes, whatever a question builds on.

    Attributes:
        vlm: The model that is asked.
        questions: A `.csv` file with the questions about each prompt, such as DPG-Bench's `dpg_bench.csv`: a question
            per row, with its prompt (`text`), its number (`proposition_id`) and the numbers it builds on
            (`dependency`, separated by commas; 0: none).
        min_mass: Smallest p(yes) + p(no) at which an answer counts as one, in [0, 1]; with less the picture has no
            score.

    Source: Davidsonian scene graphs (arXiv 2310.18235), as DPG-Bench scores by them (ELLA, arXiv 2403.05135,
        compute_dpg_bench.py): given the same answers, scores are its own. Its model is mPLUG, which writes; ours is
        asked which of yes and no is likelier. Its code leaves out the first row of the table, and with it the pictures
        of that prompt, where other questions build on the row; here it counts.
    """

    differentiable: ClassVar[bool] = False

    vlm: Vlm
    questions: str
    min_mass: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_mass <= 1:
            raise RewardError(f"{_NAME}: min_mass is a probability, got {self.min_mass}")

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"SceneGraph by {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the file has no questions about."""
        check_prompts(_NAME, prompts)
        graphs = read_graphs(self.questions)
        for prompt in prompts:
            _about(prompt, graphs, self.questions)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> Scorer:
        """Load the model that is asked."""
        return _AnsweringGraphs(self, self.vlm.load(device=device))


@dataclass(frozen=True)
class _AnsweringGraphs:
    model: SceneGraph
    reader: Reader

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; see `SceneGraph`."""
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        graphs = read_graphs(self.model.questions)
        rows = [_about(prompt, graphs, self.model.questions) for prompt in prompts]
        questions = [
            thinned((clip, f"{asked.question} {PLAIN_ANSWER}"), media.fps or _FPS, _FRAMES)
            for clip, row in zip(clips_of(media), rows, strict=True)
            for asked in row.values()
        ]
        verdicts = self.reader.verdicts(questions)
        yes = (verdicts.log_odds > 0).float().masked_fill(~(verdicts.mass >= self.model.min_mass), torch.nan)
        pairs = list(zip(rows, yes.split([len(row) for row in rows]), strict=True))
        alone = torch.stack([answers.mean() for _, answers in pairs])
        return Rewards(torch.stack([score(row, answers) for row, answers in pairs]), {"answers": alone})


def score(graph: Mapping[int, YesOrNo], answers: Tensor) -> Tensor:
    """Return the share of questions that are answered by yes, and build on none that counts as a no.

    Args:
        graph: The questions by number, in the order in which they are looked at.
        answers: 1 for yes, 0 for no, of each question; NaN makes the score NaN.
    """
    counts = dict(zip(graph, answers.tolist(), strict=True))
    for number, asked in graph.items():
        if any(counts[need] == 0 for need in asked.needs):
            counts[number] = 0.0 * counts[number]  # which keeps what is not known
    return answers.new_tensor(list(counts.values())).mean()


@cache
def read_graphs(file: str) -> dict[str, dict[int, YesOrNo]]:
    """Return the questions of a table by prompt, whose white space does not count.

    Raises:
        RewardError: Naming the file and line that cannot be used.
    """
    try:
        text = read_whole(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{_NAME}: questions: {file} cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, dict[int, YesOrNo]] = {}
    try:
        if lacking := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
            raise ValueError(f"there is no column {' nor '.join(lacking)}")
        for row in reader:
            prompt, number, asked = _read(row)
            graph = found.setdefault(prompt, {})
            if number in graph:
                raise ValueError(f"question {number} of the prompt {prompt[:40]!r} occurs twice")
            graph[number] = asked
    except (ValueError, csv.Error) as error:
        raise RewardError(
            f"{_NAME}: questions: {file}:{reader.line_num}: {error}; a row has {', '.join(_COLUMNS)}"
        ) from error
    for prompt, graph in found.items():
        if unknown := sorted({need for asked in graph.values() for need in asked.needs} - graph.keys()):
            raise RewardError(
                f"{_NAME}: questions: {file}: questions of the prompt {prompt[:40]!r} build on question {unknown[0]}, "
                "which is not there"
            )
    return found


def _read(row: Mapping[str, str | None]) -> tuple[str, int, YesOrNo]:
    prompt, number, needs, question = (" ".join((row[name] or "").split()) for name in _COLUMNS)
    if not prompt or not question:
        raise ValueError("a prompt or its question is missing")
    if not number.isdecimal() or not all(need.strip().isdecimal() for need in needs.split(",")):
        raise ValueError(f"got the number {number!r} and the dependency {needs!r}, expected whole numbers")
    return prompt, int(number), YesOrNo(question, tuple(int(need) for need in needs.split(",") if int(need)))


def _about(prompt: str, graphs: Mapping[str, dict[int, YesOrNo]], file: str) -> dict[int, YesOrNo]:
    if (graph := graphs.get(" ".join(prompt.split()))) is None:
        raise RewardError(f"{_NAME}: {file} has no questions about the prompt {prompt[:80]!r}")
    return graph
