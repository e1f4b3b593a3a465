"""A watch sees what falls while something else is trained on, seldom what does not, and does what it was asked to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.config import checks
from alignment.config.run import Evaluation, Optimizer, Output, Run, Watch
from alignment.errors import Alarmed, ConfigError, DataError
from alignment.features.dinov2 import DINOv2
from alignment.features.pixels import Pixels
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.reports import report
from alignment.reports.run_folder import Evaluated
from alignment.reports.statistics import fall
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training import session
from alignment.training.sights import DIVERSITY, DRIFT, LOOKS, Sights
from alignment.training.watch import Alarm, Watching
from reward_models.base import Media
from reward_models.combinators.function import Function
from reward_models.combinators.weighted import Weighted, WeightedPart
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from tests.support.toy import GROUPS, REWARD, points, saved, toy_run

EVALUATIONS, PICTURES = 8, 40
RUNS = 1000
RATE = 0.05
OF_RUNS = 0.027  # four standard errors of a rate of .05 over so many runs
GOLD = "right"


def near_the_left_mode(picture: Tensor, prompts: object) -> Tensor:
    """Reward: minus the distance to (-2, 0)."""
    return -(points(picture) - torch.tensor([-2.0, 0.0])).norm(dim=1)


LEFT = Function(f"{__name__}:near_the_left_mode")


def seen(scores: np.ndarray) -> Evaluated:
    media = Media(torch.zeros(len(scores), 1, 3, 1, 1))
    return Evaluated(("a",) * len(scores), torch.arange(len(scores)), {GOLD: torch.from_numpy(scores)}, media)


# ---- what it sees ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "right or wrong"])
def test_runs_in_which_nothing_falls_are_seldom_alarmed(kind: str) -> None:
    """Evaluations of one noise share most of a picture's score; what is left is drawn anew each time."""
    draw, alarmed = np.random.default_rng(0), 0
    for _ in range(RUNS):
        watching = Watching(Watch((GOLD,), false_alarms=RATE), EVALUATIONS, PICTURES)
        base = draw.normal(size=PICTURES)
        for step in range(EVALUATIONS):
            scores = base + 0.5 * draw.normal(size=PICTURES)
            watching.look(step, seen(scores if kind == "normal" else (scores > 0).astype(np.float64)))
        alarmed += bool(watching.alarms)
    assert alarmed / RUNS <= RATE + OF_RUNS


def test_a_fall_is_seen_and_the_best_is_known() -> None:
    draw = np.random.default_rng(0)
    watching, base = Watching(Watch((GOLD,)), EVALUATIONS, PICTURES), draw.normal(size=PICTURES)
    for step, mean in enumerate((0.0, 0.5, 1.0, 0.2)):
        alarm = watching.look(step, seen(base + mean + 0.3 * draw.normal(size=PICTURES)))
        assert (alarm is not None) == (step == 3)
        assert watching.best == min(step, 2)
    assert alarm is not None
    assert (alarm.metric, alarm.since, alarm.now) == (GOLD, 2, 3)
    assert alarm.change < alarm.at_most < 0


@pytest.mark.parametrize("chance", [0.05, 1e-3])
def test_the_end_of_a_fall_is_students(chance: float) -> None:
    """Below the true mean as often as it says: 20,000 draws of seven, within five standard errors."""
    draw = np.random.default_rng(0)
    below = sum(fall(draw.normal(size=7).tolist(), chance)[1] < 0 for _ in range(20_000)) / 20_000
    assert abs(below - chance) < 5 * (chance / 20_000) ** 0.5


def test_what_was_not_scored_is_left_out() -> None:
    assert fall([1.0, float("nan"), 3.0], 0.05) == fall([1.0, 3.0], 0.05)
    assert all(map(np.isnan, fall([1.0, float("nan")], 0.05)))


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"watch.gold: evaluations do not measure beauty, but right"):
        Watching(Watch(("beauty",)), 2, 4).look(0, seen(np.zeros(4)))


# ---- beside scores ---------------------------------------------------------------------------------------------------

ALSO = ("diversity", "drift", "looks")
PROMPTS, IMAGES, WIDE = 10, 4, 6
ALIKE = 120  # simulated runs
OF_ALIKE = 0.08  # four standard errors of a rate of .05 over so many
START = np.random.default_rng(7).normal(size=(PROMPTS * IMAGES, len(LOOKS) + WIDE))
"""Looks and features of the pictures before training: their spread is 1."""


def watching_all(**settings: object) -> Watching:
    watch = Watch((GOLD,), ALSO, **settings)
    return Watching(watch, EVALUATIONS, PROMPTS * IMAGES, Sights.of(watch, PROMPTS, torch.device("cpu")))


def look(watching: Watching, step: int, rows: np.ndarray) -> Alarm | None:
    """Look at pictures of which nothing but looks and features is known."""
    sights = watching.sights
    assert sights is not None
    result = seen(np.zeros(len(rows)))
    return watching.look(step, replace(result, scores={**result.scores, **sights.scores(torch.from_numpy(rows))}))


def test_what_is_measured_beside_scores() -> None:
    """Two prompts, three images: the first two are a pair, the third has no partner."""
    sights = Sights(ALSO, 2, Pixels(), lambda pixels: pixels)
    before = torch.zeros(6, len(LOOKS) + 1)
    before[:, -1] = torch.tensor([0.0, 1.0, 3.0, 5.0, 9.0, 9.0])
    first = sights.scores(before)
    nan = torch.nan
    torch.testing.assert_close(first[DIVERSITY], torch.tensor([3.0, 4.0, nan, nan, nan, nan]), equal_nan=True)
    assert first[DRIFT].eq(0).all()
    later = before + torch.arange(6)[:, None]
    found = sights.scores(torch.cat([later, later[:2]]))  # and two more pictures than before training
    torch.testing.assert_close(found[DRIFT], torch.tensor([0, 1, 2, 3, 4, 5, nan, nan]), equal_nan=True)
    assert found[LOOKS[2]][:6].tolist() == [0, 1, 2, 3, 4, 5]


def test_runs_that_stay_within_bounds_are_seldom_alarmed() -> None:
    draw, alarmed = np.random.default_rng(0), 0
    for _ in range(ALIKE):
        watching = watching_all(false_alarms=RATE)
        for step in range(EVALUATIONS):
            look(watching, step, START + 0.5 * draw.normal(size=START.shape) * (step > 0))
        alarmed += bool(watching.alarms)
    assert alarmed / ALIKE <= RATE + OF_ALIKE


def altered(what: str) -> np.ndarray:
    """Return looks and features in which one thing has changed, far beyond what is left to chance."""
    rows = START + 0.1 * np.random.default_rng(1).normal(size=START.shape)
    if what == DIVERSITY:  # a prompt's pictures all look like its first
        rows[:, len(LOOKS) :] = np.tile(rows[:PROMPTS, len(LOOKS) :], (IMAGES, 1))
    elif what == DRIFT:
        rows[:, len(LOOKS) :] += 3.0
    elif what == "half a spread":
        rows[:, : len(LOOKS)] -= 0.5
    else:
        rows[:, LOOKS.index(what)] -= 2.0
    return rows


@pytest.mark.parametrize("what", [DIVERSITY, DRIFT, LOOKS[0], LOOKS[5], "half a spread"])
def test_what_has_changed_beside_scores_is_seen(what: str) -> None:
    watching = watching_all()
    assert look(watching, 0, START) is None
    alarm = look(watching, 5, altered(what))
    if what == "half a spread":
        assert alarm is None, "watch.room allows a whole one"
        return
    assert alarm is not None
    assert (alarm.metric, alarm.since, alarm.now) == (what, 0, 5)
    assert alarm.change < alarm.at_most < 0
    assert f"{what} has {'fallen' if what == DIVERSITY else 'moved'} farther" in str(alarm)


# ---- what it does ----------------------------------------------------------------------------------------------------


def hacked(folder: Path, watch: Watch | None, **changes: object) -> Run:
    """Return a run that goes to the left, and measures how far it is from the right."""
    measured = Weighted({"left": WeightedPart(LEFT, 1.0), GOLD: WeightedPart(REWARD, 0.0)})
    source = OnPolicySteps(
        prompts=GROUPS, dynamics=FlowSDE(0.7), group_size=8, shared_noise=False, window=All(), reward=LEFT
    )
    evaluation = Evaluation(
        str(folder / "prompts.txt"), measured, images_per_prompt=16, every=2, curve_images_per_prompt=16
    )
    run = toy_run(
        folder, source, ClippedSurrogate(clip=1e-1), 12, optimizer=Optimizer(learning_rate=5e-3), evaluation=evaluation
    )
    return replace(run, watch=watch, output=Output(str(folder / "runs"), save_every=3, keep=1), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("watched"), updates=500)


def weights(run: Run, step: int) -> dict[str, Tensor]:
    place = Path(run.output.folder) / run.name / f"checkpoint-{step}" / "state" / "trainable.safetensors"
    return load_file(place)


def told(run: Run) -> dict:
    return json.loads((Path(run.output.folder) / run.name / "summary.json").read_text())["watch"]


def test_it_warns_and_keeps_the_best(folder: Path) -> None:
    run = hacked(folder, Watch((GOLD,), ALSO), name="warned")
    session.train(run)
    found = told(run)
    final = json.loads((folder / "runs" / "warned" / "evaluation" / "final.json").read_text())["scores"]
    assert {DIVERSITY, DRIFT, *LOOKS} <= final.keys()
    assert min(final[DRIFT]) > 0
    assert found["alarms"]
    assert {alarm["did"] for alarm in found["alarms"]} == {"warn"}
    left = {path.name for path in (folder / "runs" / "warned").glob("checkpoint-*")}
    assert left == {f"checkpoint-{found['best']}", "checkpoint-12"}
    assert found["best"] < found["alarms"][0]["now"]


def test_it_stops_and_the_run_can_go_on(folder: Path) -> None:
    run = hacked(folder, Watch((GOLD,), on_alarm="stop"), name="stopped")
    with pytest.raises(
        Alarmed, match=r"stopped by the watch: right has fallen since step \d+, .* The best is .*checkpoint-"
    ):
        session.train(run)
    with pytest.raises(Alarmed):  # unless it is told otherwise
        session.train(run, "latest")
    session.train(replace(run, watch=Watch((GOLD,))), "latest")
    whole = hacked(folder, None, name="unwatched")
    session.train(whole)
    for name, weight in weights(whole, 12).items():
        torch.testing.assert_close(weights(run, 12)[name], weight, rtol=0, atol=0)


@pytest.fixture(scope="module")
def back(folder: Path) -> Run:
    """Return a run that went back, all its checkpoints kept."""
    run = hacked(folder, Watch((GOLD,), ALSO, on_alarm="rollback", slower=0.25), name="back")
    run = replace(run, output=replace(run.output, keep=9))
    session.train(run)
    return run


def test_it_goes_back_and_on_more_slowly(folder: Path, back: Run) -> None:
    lines = [json.loads(line) for line in (folder / "runs" / "back" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    alarms = [alarm for alarm in told(back)["alarms"] if alarm["did"] == "rollback"]
    assert alarms
    before, after = (lines[alarms[0]["now"] + k]["learning_rate"] for k in (-1, 0))
    assert after / before == pytest.approx(0.25)
    evaluations = folder / "runs" / "back" / "evaluation"
    base, final = (json.loads((evaluations / f"{name}.json").read_text()) for name in ("base", "final"))
    fallen = json.loads((evaluations / f"step-{alarms[0]['now']:06d}.json").read_text())
    base, fallen, final = (np.mean(one["scores"][GOLD]) for one in (base, fallen, final))
    assert fallen < final <= base, "less is lost than when it was alarmed first"


@pytest.mark.parametrize("died", [3, 6, 9])
def test_a_run_that_went_back_and_was_resumed_is_the_run_that_was_not(folder: Path, back: Run, died: int) -> None:
    again = replace(back, name=f"resumed after {died}")
    place = folder / "runs" / again.name
    shutil.copytree(folder / "runs" / back.name, place)
    for path in place.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > died:
            shutil.rmtree(path)
    session.train(again, "latest")
    for name, weight in weights(back, 12).items():
        torch.testing.assert_close(weights(again, 12)[name], weight, rtol=0, atol=0)
    assert told(again) == told(back)


def test_alarms_are_shown_and_a_damaged_record_of_them_is_named(folder: Path, back: Run) -> None:
    place = folder / "runs" / "shown"
    shutil.copytree(folder / "runs" / back.name, place)
    report.write(place)
    assert "Watch, step" in (place / "report.html").read_text()
    (place / "watch.jsonl").write_text('{"now": 1}\n')
    with pytest.raises(DataError, match=r"watch.jsonl is damaged \(line 1 is no alarm\)"):
        report.write(place)


def test_weights_that_are_missing_are_named_before_anything_is_loaded(folder: Path) -> None:
    run = hacked(folder, Watch((GOLD,), ("drift",), DINOv2("/nowhere")), name="no weights")
    with pytest.raises(ConfigError, match="features: dinov2: /nowhere is not a folder"):
        session.train(run)
    assert not (folder / "runs" / run.name).exists()


def test_drift_needs_what_was_before_training(folder: Path, back: Run) -> None:
    place = folder / "runs" / "unseen"
    shutil.copytree(folder / "runs" / back.name, place)
    base = place / "evaluation" / "base.safetensors"
    save_file({"pixels": load_file(base)["pixels"]}, base)
    with pytest.raises(ConfigError, match=r"watch.also: .* does not hold what pictures were before training"):
        session.train(replace(back, name="unseen", steps=13), "latest")


REFUSED = {
    "no gold": (Watch(()), {}, "watch.gold: it names no metric"),
    "no evaluations": (Watch((GOLD,)), {"every": 0}, "watch: it looks at evaluations, and there are none"),
    "always": (Watch((GOLD,), false_alarms=0.5), {}, "watch.false_alarms: got 0.5"),
    "never": (Watch((GOLD,), false_alarms=0.0), {}, "watch.false_alarms: got 0.0"),
    "alone": (
        Watch((GOLD,), ("drift",)),
        {"curve_images_per_prompt": 1},
        "watch.also: diversity and drift compare two",
    ),
    "no room": (Watch((GOLD,), ("looks",), room=0.0), {}, "watch.room: got 0.0"),
    "faster": (Watch((GOLD,), slower=2.0), {}, "watch.slower: got 2.0"),
}


@pytest.mark.parametrize(("watch", "changes", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_watch_is_refused(folder: Path, watch: Watch, changes: dict, says: str) -> None:
    run = hacked(folder, watch)
    with pytest.raises(ConfigError) as refused:
        checks.check(replace(run, evaluation=replace(run.evaluation, **changes)), 1)
    assert says in str(refused.value)
