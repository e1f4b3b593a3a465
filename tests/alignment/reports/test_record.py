from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from rich.console import Console

from alignment.data.batches import Prompt
from alignment.errors import DataError, EnvironmentProblem
from alignment.reports import run_folder
from alignment.reports.pictures import printable
from alignment.reports.progress import ProgressLine, duration
from alignment.reports.record import Recorder
from alignment.reports.run_folder import Evaluated, read_evaluation, read_metrics
from reward_models.base import Media, Rewards
from tests.support.synthetic_run import HOSTILE, evaluated, media, metrics, write_run

STEPS = 10


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def recorder(folder: Path) -> Recorder:
    return Recorder(folder, total_steps=STEPS, quiet=True)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_a_line_that_is_there_at_once(run):
    with recorder(run) as record:
        record.step(0, {"reward/mean": 0.1})
        assert lines(run) == [{"step": 0, "reward/mean": 0.1}]
        record.step(1, {"reward/mean": 1 / 3})
    assert lines(run)[1] == {"step": 1, "reward/mean": 1 / 3}


def test_what_is_not_finite_is_null_and_named(run):
    with recorder(run) as record:
        record.step(0, {"loss": math.nan, "grad/norm": math.inf, "kl/reference": -math.inf, "rows": 8.0})
    text = (run / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line["nonfinite"] == {"loss": "nan", "grad/norm": "inf", "kl/reference": "-inf"}
    assert line["loss"] is None
    assert line["rows"] == 8.0


@pytest.mark.parametrize("step", [0, 2])
def test_no_step_is_told_twice_or_left_out(run, step):
    with recorder(run) as record:
        record.step(0, {})
        with pytest.raises(ValueError, match=f"expects step 1 next, got step {step}"):
            record.step(step, {})


@pytest.mark.parametrize("tail", ["", '{"step": 5, "rew', '{"step": 5}', "\x00\x00"])
@pytest.mark.parametrize("resumed", [0, 3, 5])
def test_a_resumed_record_is_the_uninterrupted_one(run, tmp_path, tail, resumed):
    straight = tmp_path / "straight"
    with recorder(straight) as record:
        for step in range(STEPS):
            record.step(step, metrics(step, STEPS))
    with recorder(run) as record:
        for step in range(5):
            record.step(step, metrics(step, STEPS))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(tail)
    with recorder(run) as record:
        record.resume_at(resumed)
        for step in range(resumed, STEPS):
            record.step(step, metrics(step, STEPS))
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_resuming_takes_back_later_evaluations(run):
    with recorder(run) as record:
        for name, step in (("base", 0), ("step-000004", 4), ("step-000008", 8), ("final", 10)):
            record.evaluation(name, step, evaluated(0.5))
        record.resume_at(4)
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        "base.json", "base.safetensors", "step-000004.json", "step-000004.safetensors",
    ]  # fmt: skip


def test_a_damaged_line_is_named(run):
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_metrics(run / "metrics.jsonl")


def test_an_evaluation_is_read_as_it_was_written(run):
    result = evaluated(0.5, hostile=True)
    scores = {**result.scores, "graded": result.scores["graded"].clone().index_fill_(0, torch.tensor([3]), math.nan)}
    result = Evaluated(result.prompts, result.seeds, scores, result.media)
    with recorder(run) as record:
        record.evaluation("step-000050", 50, result)
    step, again = read_evaluation(run, "step-000050")
    assert step == 50
    assert again.prompts == result.prompts
    assert torch.equal(again.seeds, result.seeds)
    torch.testing.assert_close(dict(again.scores), scores, rtol=0, atol=0, equal_nan=True)
    assert (again.media.pixels - result.media.pixels).abs().max() <= 0.5 / 255 + 1e-6  # eight bits, and float32
    json.loads((run / "evaluation/step-000050.json").read_text(), parse_constant=pytest.fail)


def test_prompts_of_an_evaluation_keep_apart_what_they_bring(tmp_path: Path):
    prompts = tuple(Prompt("paint it", {"negative_prompt": text}) for text in ("red", "blue"))
    seeds, pixels = torch.arange(2), torch.zeros(1, 1, 3, 4, 4)
    written = Evaluated(prompts, seeds, {"reward": torch.zeros(2)}, Media(pixels))
    run_folder.write_evaluation(tmp_path, "base", 0, written)
    _, read = read_evaluation(tmp_path, "base")
    assert read.prompts == prompts
    assert len(set(read.prompts)) == 2


def test_a_damaged_evaluation_is_named(run):
    with recorder(run) as record:
        record.evaluation("base", 0, evaluated(0.5))
    pixels = run / "evaluation/base.safetensors"
    pixels.write_bytes(pixels.read_bytes()[:100])
    with pytest.raises(DataError, match=r"base\.safetensors"):
        read_evaluation(run, "base")


def test_scores_must_be_one_a_picture():
    with pytest.raises(ValueError, match="2 prompts"):
        Evaluated(("a", "b"), torch.arange(2), {"strict": torch.zeros(3)}, Media(torch.zeros(1, 1, 3, 4, 4)))


def test_the_summary_is_what_the_design_says(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["seed", "steps", "wall_seconds", "peak_memory_bytes", "evaluation"]
    assert set(summary["evaluation"]) == {"strict", "graded"}
    for ends in summary["evaluation"].values():
        assert list(ends) == ["base", "final"]
        for found in ends.values():
            assert list(found) == ["mean", "low", "high", "n"]
            assert found["low"] < found["mean"] < found["high"]
            assert found["n"] == 144


def test_a_run_without_evaluation_has_a_summary(run):
    with recorder(run) as record:
        assert record.summary(seed=1, steps=0, wall_seconds=0.5, peak_memory_bytes=1)["evaluation"] == {}


def test_samples_are_a_picture(run):
    rows = media(("two red circles", HOSTILE), torch.tensor([True, False]))
    with recorder(run) as record:
        path = record.samples("train", 50, rows, ("two red circles", HOSTILE), Rewards(torch.tensor([0.5, math.nan])))
    assert path == run / "samples/000050-train.png"
    with Image.open(path) as picture:
        assert picture.width > 2 * 160
        assert picture.getpixel((12, 12)) == (242, 242, 242)


def test_clips_are_a_film(run):
    rows = media(("two red circles", "one blue square"), torch.tensor([True, True]), frames=5)
    with recorder(run) as record:
        path = record.samples("train", 0, rows, ("two red circles", "one blue square"), Rewards(torch.tensor([0.5, 1])))
    with av.open(io.BytesIO(path.read_bytes())) as film:
        assert film.streams.video[0].frames == 5
        assert float(film.streams.video[0].average_rate) == 8.0
    with Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.width > 2 * 5 * 32


def test_a_step_may_have_more_samples_than_a_grid_shows(run):
    prompts = ("one red circle",) * 100
    with recorder(run) as record:
        path = record.samples("train", 0, media(prompts, torch.ones(100)), prompts, Rewards(torch.zeros(100)))
    with Image.open(path) as picture:
        assert picture.height < 1600


def test_a_disk_that_refuses_is_the_users_to_mend(run):
    with recorder(run) as record:
        record.step(0, {})
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").mkdir()
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*metrics\.jsonl"):
            record.step(1, {})
    (run / "samples").write_text("a file where a folder should be")
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        run_folder.write_atomically(run / "samples" / "x.png", b"")


def test_what_was_written_before_stays_when_a_write_fails(run):
    (run / "summary.json").mkdir()
    (run / "summary.json" / "kept").write_text("")
    with pytest.raises(EnvironmentProblem):
        run_folder.write_json(run / "summary.json", {})
    assert [path.name for path in run.iterdir()] == ["summary.json"]


def test_secrets_stay_out_of_the_folder(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "VISALIGN_SERVER_TOKEN"):
        monkeypatch.setenv(name, "canary-7f3a")
    folder = write_run(tmp_path / "run", steps=2)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"canary-7f3a" in path.read_bytes()]


def test_a_prompt_cannot_drive_the_terminal():
    assert printable("a\x1b[31m\nb\t\u202ec\x00\u200b") == "a[31m b c"


def test_a_log_file_gets_a_line_a_step():
    stream = io.StringIO()
    line = ProgressLine(3, console=Console(file=stream, width=40))
    line.advance(1, {"reward/mean": 0.51234, "seconds/total": 2.0})
    line.note("base: strict [0.1, 0.2]")
    line.advance(2, {})
    line.close()
    first, note, second = stream.getvalue().splitlines()
    assert first == "step 1/3 · reward 0.5123 · 2.00 s/step · 4 s left"
    assert note == "base: strict [0.1, 0.2]"
    assert re.fullmatch(r"step 2/3 · 0\.\d\d s/step · 1 s left", second)


def test_the_headline_of_the_objective_is_shown_beside_the_reward_or_alone():
    stream = io.StringIO()
    line = ProgressLine(2, console=Console(file=stream), headline="pairs/accuracy")
    line.advance(1, {"pairs/accuracy": 0.75, "seconds/total": 2.0})
    line.advance(2, {"pairs/accuracy": 0.5, "reward/mean": 0.25, "seconds/total": 2.0})
    alone, beside = stream.getvalue().splitlines()
    assert alone.startswith("step 1/2 · accuracy 0.75 · 2.00 s/step")
    assert beside.startswith("step 2/2 · reward 0.25 · accuracy 0.5 · 2.00 s/step")


def test_a_terminal_gets_a_bar():
    stream = io.StringIO()
    line = ProgressLine(3, console=Console(file=stream, force_terminal=True, width=80))
    line.advance(1, {"reward/mean": 0.5, "seconds/total": 2.0})
    line.close()
    assert "1/3" in stream.getvalue()
    assert "reward 0.5 · 2.00 s/step · 4 s left" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7384, "2 h 03 min")])
def test_a_time_span_has_two_units(seconds, text):
    assert duration(seconds) == text


def test_every_metric_is_documented():
    root = Path(run_folder.__file__).parents[1]
    table = (root.parent / "docs" / "metrics.md").read_text()
    written = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r'"([a-z]+/[a-z_]*[a-z])"', path.read_text())
        if name.split("/")[0] in {"reward", "ratio", "clip", "kl", "grad", "ema", "seconds", "memory", "updates", "nft"}
    }
    assert {"reward/mean", "ratio/max", "grad/norm"} <= written
    assert not {name for name in written if f"`{name}`" not in table}
