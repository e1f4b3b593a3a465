"""What goes wrong in a user's hands: one message that names the file, line or key, the right exit code, no debris."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.cli import main as cli
from alignment.data.prompts import read_prompts
from tests.support.runs import prepared, prepared_for_the_toy, train

ROOT = Path(__file__).parents[3]
SMALL = ("steps=2", "evaluation.prompts=null")


@pytest.fixture
def folder(flux_folder: Path, tmp_path: Path) -> Path:
    return prepared(tmp_path / "work", flux_folder)


@pytest.fixture
def toys(toy_folder: Path, tmp_path: Path) -> Path:
    """Return the same for the toy, where it does not matter what is trained."""
    return prepared_for_the_toy(tmp_path / "work", toy_folder)


def refused(
    folder: Path, capfd: pytest.CaptureFixture[str], *more: str, code: int = 2, kind: str = "grpo", clean: bool = True
) -> str:
    """Run, expect it to be refused in one line, and return the line."""
    capfd.readouterr()
    assert train(folder, kind, *SMALL, *more) == code
    said = capfd.readouterr().err
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if line.startswith("visalign: ")]
    assert len(told) == 1, said
    if clean:
        assert not (folder / "runs").exists()
    return told[0]


def raises(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    raise ZeroDivisionError("the judge is out")


def judged_by(function: Callable[..., object]) -> str:
    return f"source.reward={{type: function, call: '{function.__module__}:{function.__name__}'}}"


# ---- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"a cat\n\na dog\n", "line 2: blank"),
        (b"a cat\n   \n", "line 2: blank"),
        (b"a cat\na dog\na cat\n", "line 3: repeats line 1 ('a cat')"),
        (b"a cat\n" + b"x" * 5000 + b"\n", "line 2: 5000 characters"),
        (b"a cat\na d\xf6g\n", ":2: not UTF-8"),
        ("a cat\na dog\n".encode("utf-16"), ":1: not UTF-8"),
        (b"a cat\na\0dog\n", "line 2: holds a NUL"),
    ],
    ids=["empty", "blank", "spaces", "twice", "endless", "latin-1", "utf-16", "nul"],
)
@pytest.mark.parametrize("key", ["data.prompts", "evaluation.prompts"])
def test_prompt_files(folder: Path, capfd: pytest.CaptureFixture[str], content: bytes, says: str, key: str) -> None:
    file = folder / "mine.txt"
    file.write_bytes(content)
    told = refused(folder, capfd, f"{key}={file}")
    assert str(file) in told
    assert says in told


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": "a cat"}', 'not an object with a text under "prompt"'),
        ('{"prompt": 3}', 'not an object with a text under "prompt"'),
        ('{"prompt": "a \\ud83d cat"}', "line 1: holds half a surrogate pair"),
    ],
)
def test_prompt_lines_in_json(folder: Path, capfd: pytest.CaptureFixture[str], line: str, says: str) -> None:
    (folder / "mine.jsonl").write_text(line + "\n")
    assert says in refused(folder, capfd, f"data.prompts={folder}/mine.jsonl")


def test_a_prompt_file_that_is_not_there(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = refused(folder, capfd, "data.prompts=nowhere.txt")
    assert "data.prompts: there is no file nowhere.txt" in told


@pytest.mark.parametrize("content", ["a cat\r\na dog\r\n", "\ufeffa cat\na dog", " a cat \na dog\n"])
def test_prompt_files_of_other_systems_are_read(folder: Path, content: str) -> None:
    (folder / "mine.txt").write_bytes(content.encode())
    assert read_prompts(str(folder / "mine.txt")).texts == ("a cat", "a dog")


def test_repeated_prompts_can_be_dropped_or_kept(folder: Path) -> None:
    (folder / "mine.txt").write_text("a cat\na dog\na cat\n")
    assert read_prompts(str(folder / "mine.txt"), "drop").texts == ("a cat", "a dog")
    assert read_prompts(str(folder / "mine.txt"), "keep").texts == ("a cat", "a dog", "a cat")


# ---- config and geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learning_rat=1", "learning_rate"),
        ("steps=many", "steps"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate"),
        ("source.group_size=1", "a group of one has none"),
        ("source.group_size=0", "group_size"),
        ("source.prompts=0", "prompts"),
        ("source.prompts_per_call=4", "2 / 4 leaves 2 over"),
        ("batch.updates=4", "6 rows per step do not divide into 4: 6 = 4 x 1 + 2"),
        ("evaluation.grid=0", "evaluation.grid"),
        ("source.dynamics={type: ode}", "deterministic"),
        ("source.window={type: random, size: 4}", "source.window"),
        ("source.window={type: branch, steps: [3]}", "source.window"),
        ("objective={type: nft}", "consumes Samples"),
        ("source.reward={type: beauty}", "beauty"),
        ("policy.call.hight=16", "Did you mean 'height'?"),
        ("policy.lora.targets=[nothing]", "bind no module"),
        ("policy.call.height=-32", "policy.call.height: got"),
        ("policy.call.height='32'", "policy.call.height: got"),
        ("policy.call.max_sequence_length=9999", "policy.call: FluxPipeline cannot be called"),
    ],
)
def test_values_and_geometry(folder: Path, capfd: pytest.CaptureFixture[str], override: str, says: str) -> None:
    assert says in refused(folder, capfd, override)


@pytest.mark.parametrize("name", ["nowhere:score", "json:no_such", "without_a_colon"])
def test_a_plan_refuses_a_function_as_training_does(toys: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    word = f"source.reward={{type: function, call: {name}}}"
    trained = refused(toys, capfd, word)
    assert trained.startswith("visalign: source.reward: function")
    assert cli.run(["plan", str(toys / "grpo.yaml"), *SMALL, word]) == 2
    assert capfd.readouterr().err.strip() == trained


@pytest.mark.parametrize(
    ("argument", "says"),
    [("max_sequence_length: 9999", "evaluation.call: FluxP"), ("hight: 16", "evaluation.call.hight")],
)
def test_arguments_of_the_evaluation(folder: Path, capfd: pytest.CaptureFixture[str], argument: str, says: str) -> None:
    held_out = f"evaluation={{prompts: {folder}/held_out.txt, call: {{{argument}}}}}"
    assert says in refused(folder, capfd, held_out)


@pytest.mark.parametrize("key", ["data.prompts", "evaluation.prompts"])
def test_a_prompt_that_the_reward_cannot_judge(folder: Path, capfd: pytest.CaptureFixture[str], key: str) -> None:
    (folder / "good.txt").write_text("a red circle\n")
    (folder / "mine.txt").write_text("a red circle\n" + "a cat " * 500 + "\n")
    shapes = "source.reward={type: weighted, parts: {fit: {reward: {type: shapes}}}}"
    told = refused(folder, capfd, shapes, f"data.prompts={folder}/good.txt", f"{key}={folder}/mine.txt")
    assert f"{folder}/mine.txt: shapes can only judge" in told
    assert len(told) < 1000


def test_a_number_in_scientific_notation_is_a_number(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(folder / "grpo.yaml"), "--dry-run", "optimizer.learning_rate=1e-4"]) == 0
    assert "learning_rate: 0.0001" in capfd.readouterr().out


@pytest.mark.parametrize(("processes", "prompts", "says"), [(4, 2, "2 = 4 x 0 + 2"), (2, 6, "3 = 2 x 1 + 1")])
def test_geometry_that_does_not_divide_over_processes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    processes: int,
    prompts: int,
    says: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert says in refused(folder, capfd, f"source.prompts={prompts}", "source.prompts_per_call=2")


# ---- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_pipeline_that_is_not_there(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "policy.pipeline" in refused(folder, capfd, f"policy.pipeline={folder}/nowhere")


def copied(folder: Path) -> Path:
    shutil.copytree(folder / "pipeline", folder / "mine")
    return folder / "mine"


def drop_a_component(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "vae")


def truncate_the_weights(pipeline: Path) -> None:
    file = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def list_the_index(pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text("[]")


def drop_a_tensor(pipeline: Path) -> None:
    file = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(min(tensors))
    save_file(tensors, file)


def spoil_the_index(pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text("{not json")


def drop_the_weights(pipeline: Path) -> None:
    (pipeline / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def name_a_class_that_does_not_exist(pipeline: Path) -> None:
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps({**index, "_class_name": "NoSuchPipeline"}))


@pytest.mark.parametrize(
    "damage",
    [
        drop_a_component,
        drop_a_tensor,
        truncate_the_weights,
        spoil_the_index,
        list_the_index,
        drop_the_weights,
        name_a_class_that_does_not_exist,
    ],
)
def test_a_damaged_pipeline(folder: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None]) -> None:
    pipeline = copied(folder)
    damage(pipeline)
    told = refused(folder, capfd, f"policy.pipeline={pipeline}")
    assert "policy.pipeline" in told
    assert str(pipeline) in told


def test_weights_that_are_not_numbers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = copied(folder)
    file = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(file).items()}, file)
    told = refused(folder, capfd, f"policy.pipeline={pipeline}", code=5, clean=False)
    assert "the pipeline's own output is not finite" in told
    assert "learning_rate" not in told


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_or_moved_aside(toys: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(toys, "grpo", *SMALL) == 0
    before = (toys / "runs" / "run" / "metrics.jsonl").read_bytes()
    told = refused(toys, capfd, clean=False)
    assert "--resume latest" in told
    assert "output.overwrite=true" in told
    assert (toys / "runs" / "run" / "metrics.jsonl").read_bytes() == before
    # A run that cannot start does not move the old one away either.
    refused(toys, capfd, "output.overwrite=true", "policy.lora={targets: [nothing]}", clean=False)
    assert [path.name for path in (toys / "runs").iterdir()] == ["run"]
    assert train(toys, "grpo", *SMALL, "output.overwrite=true") == 0
    assert (toys / "runs" / "run.old-1" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_died_before_its_first_step_holds_no_name(toys: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = ["train", str(toys / "grpo.yaml"), "steps=2"]
    assert cli.run([*call, judged_by(raises), "evaluation.reward={type: jpeg}"]) == 2
    assert not list((toys / "runs" / "run").glob("checkpoint-*"))
    capfd.readouterr()
    assert cli.run([*call, "--resume", "latest"]) == 2
    assert "start afresh" in capfd.readouterr().err
    assert cli.run(call) == 0  # with its reward mended


def test_a_run_without_checkpoints_does_not_send_in_circles(toys: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(toys, "grpo", *SMALL) == 0
    for checkpoint in (toys / "runs" / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    told = refused(toys, capfd, clean=False)
    assert "--resume" not in told
    assert "output.overwrite=true" in told
    assert "output.overwrite=true" in refused(toys, capfd, "--resume", "latest", clean=False)


def test_a_reader_that_leaves_early_does_not_end_the_run(folder: Path) -> None:
    command = [sys.executable, "-m", "alignment", "train", str(folder / "nft.yaml"), *SMALL]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (folder / "runs" / "run" / "checkpoint-2").is_dir()


def test_a_file_in_the_place_of_the_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "taken").write_text("")
    told = refused(folder, capfd, f"output.folder={folder}/taken")
    assert "output.folder" in told
    assert "is a file" in told


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 20,000 bytes: metrics fit, weights do not."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up(folder: Path, capfd: pytest.CaptureFixture[str], small_disk: None) -> None:
    told = refused(folder, capfd, "output.save_every=1", kind="nft", code=3, clean=False)
    assert "could not be saved" in told
    run = folder / "runs" / "run"
    assert not list(run.glob("checkpoint-*"))
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0]


def test_two_runs_in_one_folder(toys: Path, capfd: pytest.CaptureFixture[str]) -> None:
    holding = [sys.executable, "-c", HOLD, str(toys / "runs" / "run")]
    holder = subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    told = refused(toys, capfd, code=3, clean=False)
    assert f"is in use by process {holder.pid}" in told
    holder.communicate(b"\n")
    assert train(toys, "grpo", *SMALL) == 0


HOLD = """
import fcntl, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(lock, f"process {os.getpid()} on this machine".encode())
print("held", flush=True)
sys.stdin.readline()
"""


# ---- numbers that overflow -------------------------------------------------------------------------------------------


def test_a_rate_that_destroys_the_weights_stops_with_a_code_of_its_own(
    toys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = refused(toys, capfd, "optimizer.learning_rate=1e30", "steps=9", code=5, clean=False)
    assert "not finite" in told
    assert "optimizer.learning_rate" in told
