"""A run that was interrupted and resumed is the run that was not: every weight, every number, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alignment.checkpoints.manifest import NAME, inspect
from alignment.checkpoints.state import check_same_run, read_state
from alignment.errors import CheckpointError, EnvironmentProblem
from alignment.policy.between import Between
from alignment.training.resuming import of_today
from alignment.training.runtime import scaling
from tests.faults.kill_runs import POINTS
from tests.support import runs
from tests.support.forked import start
from tests.support.runs import STEPS, left_by, prepared, prepared_for_the_toy, train


@pytest.fixture(scope="module")
def folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for runs of the toy; those of FLUX, and of adapters, are resumed where they are killed."""
    return prepared_for_the_toy(tmp_path_factory.mktemp("resume"), toy_folder)


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[str, object]:
    assert train(folder, "grpo", "name=straight", "output.keep=9") == 0
    return left_by(folder / "runs" / "straight")


def interrupt(call: int, number: signal.Signals) -> None:
    """Send this process a signal while it asks the reward for the nth time from now on."""
    runs.calls, runs.at_call = 0, {call: lambda: os.kill(os.getpid(), number)}


KILLED = {
    "the toy": ("grpo", tuple(POINTS)),
    "the toy, scouted": ("scouts", ("step told, not saved",)),
    "adapters of FLUX": ("grpo", ("in the middle of saving",)),
    "all weights of FLUX": ("nft", ("between the averaged copies",)),
}


@pytest.mark.multi
@pytest.mark.slow(20)
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_resumes_to_what_it_would_have_been(
    flux_folder: Path, toy_folder: Path, tmp_path: Path, name: str
) -> None:
    (kind, points), log, folder = KILLED[name], tmp_path / "log", tmp_path / "runs"
    if name.startswith("the toy"):
        prepared_for_the_toy(folder, toy_folder)
    else:
        prepared(folder, flux_folder)
    process = start("tests.faults.kill_runs", [str(folder), kind, *points], os.environ, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    told = json.loads((folder / "told.json").read_text())
    assert len(told["straight"]["metrics"]) == STEPS
    assert [line["step"] for line in told["straight"]["metrics"]] == list(range(STEPS))
    assert told["killed"].keys() == set(points)
    for point, found in told["killed"].items():
        assert found["ended"] == -signal.SIGKILL, f"{point}: the kill never came"
        assert found["resumed"] == 0, found["left"]
        assert found["left"] == told["straight"], point


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(
    folder: Path, straight: dict[str, object], number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"name={number.name}"
    interrupt(4, number)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert train(folder, "grpo", name) == 128 + number
    assert not runs.at_call
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    said = capfd.readouterr().err
    assert f"{number.name}: saving after this step; once more stops at once" in said
    assert "continue with --resume latest" in said
    assert "Traceback" not in said
    left = sorted(path.name for path in (folder / "runs" / number.name).glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-3"]
    assert train(folder, "grpo", name, "--resume", "latest") == 0
    assert left_by(folder / "runs" / number.name) == straight


def test_a_signal_before_the_first_step_is_answered_before_it(folder: Path, straight: dict[str, object]) -> None:
    interrupt(1, signal.SIGTERM)
    assert train(folder, "grpo", "name=early") == 128 + signal.SIGTERM
    assert [path.name for path in (folder / "runs" / "early").glob("checkpoint-*")] == ["checkpoint-0"]
    assert train(folder, "grpo", "name=early", "--resume", "latest") == 0
    assert left_by(folder / "runs" / "early") == straight


def test_a_finished_run_can_be_resumed_and_changes_nothing(folder: Path, straight: dict[str, object]) -> None:
    assert train(folder, "grpo", "name=straight", "output.keep=9", "--resume", "latest") == 0
    assert left_by(folder / "runs" / "straight") == straight


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.0001, now it is 0.5"),
        ("optimizer.type=adafactor", 'optimizer.type was "adamw", now it is "adafactor"'),
        ("seed=7", "seed was 0, now it is 7"),
        ("source.group_size=4", "source.group_size was 3, now it is 4"),
        ("policy.autocast=bfloat16", 'policy.autocast was null, now it is "bfloat16"'),
    ],
)
def test_another_config_is_refused_naming_both_values(
    folder: Path, straight: dict[str, object], override: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "grpo", "name=straight", override, "--resume", "latest") == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert left_by(folder / "runs" / "straight") == straight


def test_a_save_that_fails_behind_the_step_ends_the_run_at_the_next_one(
    folder: Path, straight: dict[str, object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def fill_up() -> None:
        while any(thread.name.startswith("saving") for thread in threading.enumerate()):
            time.sleep(0.01)  # what step 2 left is saved in peace
        disk.setattr(os, "fsync", fail)

    real = os.fsync

    with monkeypatch.context() as disk:
        runs.calls, runs.at_call = 0, {4: fill_up}  # step 3, whose end is not saved; that of step 4 is
        assert train(folder, "grpo", "name=full") == EnvironmentProblem.exit_code
    said = capfd.readouterr().err
    assert "the checkpoint of step 4 could not be saved" in said
    assert "checkpoint-2 is intact: free some space or mend the disk, and continue with --resume latest" in said
    assert "Traceback" not in said
    assert train(folder, "grpo", "name=full", "--resume", "latest") == 0
    assert left_by(folder / "runs" / "full") == straight


def test_a_run_in_float16_goes_on_with_its_scale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PATIENCE", 3)  # it doubles in the middle of a step
    half = ("policy.autocast=float16", "evaluation.prompts=null")
    assert train(folder, "grpo", "name=half", "steps=4", *half) == 0
    assert train(folder, "grpo", "name=half-resumed", "steps=2", *half) == 0
    assert train(folder, "grpo", "name=half-resumed", "steps=4", *half, "--resume", "latest") == 0
    straight, resumed = (folder / "runs" / name for name in ("half", "half-resumed"))
    told = [
        [json.loads(line)["grad/scale"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (straight, resumed)
    ]
    assert told[0] == told[1]
    assert told[0][-1] > told[0][0]
    file = Path("checkpoint-4", "transformer", "diffusion_pytorch_model.safetensors")
    weights = [load_file(run / file) for run in (straight, resumed)]
    assert all(weights[0][name].equal(weight) for name, weight in weights[1].items())


def test_a_config_of_before_a_field_came_is_the_same_run(folder: Path, straight: dict[str, object]) -> None:
    config = read_state(folder / "runs" / "straight" / f"checkpoint-{STEPS}").config
    earlier = json.loads(json.dumps(config))
    for later in ("type", "momentum", "offload"):
        del earlier["optimizer"][later]
    earlier["optimizer"] |= {"betas": [0.9, 0.999], "epsilon": 1e-8}
    check_same_run(of_today(earlier), config)
    earlier["optimizer"]["betas"] = [0.9, 0.99]
    with pytest.raises(CheckpointError, match=r"optimizer\.betas was \[0\.9, 0\.99\], now it is null"):
        check_same_run(of_today(earlier), config)


def moved(folder: Path, name: str) -> dict[str, str]:
    """Return the places of a copy of everything that a run is made from, as overrides."""
    copy = folder / name
    shutil.copytree(folder / "pipeline", copy / "pipeline")
    for file in ("prompts.txt", "held_out.txt"):
        shutil.copyfile(folder / file, copy / file)
    keys = {"policy.pipeline": "pipeline", "data.prompts": "prompts.txt", "evaluation.prompts": "held_out.txt"}
    return {key: f"{key}={copy / file}" for key, file in keys.items()}


def test_what_has_moved_is_what_it_was(folder: Path, straight: dict[str, object]) -> None:
    places = moved(folder, "moved").values()
    assert train(folder, "grpo", "name=straight", "output.keep=9", *places, "--resume", "latest") == 0
    assert left_by(folder / "runs" / "straight") == straight


@pytest.mark.parametrize("key", ["policy.pipeline", "data.prompts", "evaluation.prompts"])
def test_other_content_is_refused_wherever_it_is(
    folder: Path, straight: dict[str, object], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    places = moved(folder, f"other {key}")
    if key == "policy.pipeline":
        file = next((folder / f"other {key}" / "pipeline" / "transformer").glob("*.safetensors"))
        save_file({name: 1.01 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    else:
        file = Path(places[key].partition("=")[2])
        file.write_text(file.read_text().replace("a ", "one "))
    arguments = ("name=straight", "output.keep=9", *places.values(), "--resume", "latest")
    assert train(folder, "grpo", *arguments) == 2
    assert f"the content of {key} is not what the checkpoint's run was made from" in capfd.readouterr().err
    assert left_by(folder / "runs" / "straight") == straight


@pytest.mark.parametrize(
    ("which", "says"), [("latest", "has no checkpoint"), ("checkpoint-77", "no checkpoint checkpoint-77")]
)
def test_nothing_to_resume_from_is_said_and_leaves_no_folder(
    folder: Path, which: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "grpo", "name=nowhere", "--resume", which) == 2
    assert says in capfd.readouterr().err
    assert not (folder / "runs" / "nowhere").exists()


def altered(folder: Path, name: str, alter: Callable[[Path], object]) -> Path:
    """Return a copy of the straight run that ends at step 4, with another state in its sealed checkpoint."""
    run = folder / "runs" / name
    shutil.copytree(folder / "runs" / "straight", run)
    for later in (5, STEPS):
        shutil.rmtree(run / f"checkpoint-{later}", ignore_errors=True)
    checkpoint = run / "checkpoint-4"
    before = json.loads((checkpoint / NAME).read_text())
    (checkpoint / NAME).unlink()
    alter(checkpoint / "state")
    config = json.loads((checkpoint / "state" / "config.json").read_text())
    sealed = inspect(checkpoint, step=4, sequence=before["sequence"], world_size=1, config=config)
    (checkpoint / NAME).write_text(sealed.dumps())
    return run


def found_otherwise(state: Path) -> None:
    """Write what a pipeline would be found to be by libraries that keep its guidance from round to round."""
    progress = json.loads((state / "progress.json").read_text())
    assert progress["found"]["between"] == Between.SKIPPED.value
    progress["found"] |= {"between": Between.WHOLE.value, "rounds": 5}
    (state / "progress.json").write_text(json.dumps(progress))


def left_in(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_pipeline_that_is_found_to_be_another_is_refused_naming_both(
    folder: Path, straight: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    run = altered(folder, "found", found_otherwise)
    before = left_in(run)
    assert train(folder, "grpo", "name=found", "output.keep=9", "--resume", "latest") == 2
    said = capfd.readouterr().err
    assert "the pipeline is not found to be what it was when the checkpoint was written" in said
    assert f"between was '{Between.WHOLE.value}', now it is '{Between.SKIPPED.value}'; rounds was 5, now it is" in said
    assert "Traceback" not in said
    assert left_in(run) == before


def test_a_state_without_its_moments_is_refused(
    folder: Path, straight: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    altered(folder, "no-moments", lambda state: (state / "optimizer.safetensors").unlink())
    assert train(folder, "grpo", "name=no-moments", "--resume", "latest") == 2
    assert "optimizer.safetensors holds 0 of" in capfd.readouterr().err


def test_fewer_steps_than_were_done_are_refused(
    folder: Path, straight: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "runs" / "straight"
    before = {path.name for path in run.iterdir()}
    assert train(folder, "grpo", "name=straight", "output.keep=9", "steps=3", "--resume", "latest") == 2
    assert "steps is 3, but the checkpoint to resume from has done 6" in capfd.readouterr().err
    assert {path.name for path in run.iterdir()} == before
    assert left_by(run) == straight


def test_a_state_without_its_averaged_weights_is_refused(
    folder: Path, straight: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    altered(folder, "no-ema", lambda state: (state / "snapshot-ema.safetensors").unlink())
    assert train(folder, "grpo", "name=no-ema", "--resume", "latest") == 2
    assert "frozen copies are not this run's: ema is on one side only" in capfd.readouterr().err
