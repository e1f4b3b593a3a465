"""The command line: instant, one message an error, the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import alignment
from alignment import errors
from alignment.cli import main as cli
from alignment.config.load import load
from alignment.errors import (
    EndedElsewhere,
    EnvironmentProblem,
    NumericsError,
    OutOfMemory,
    ProcessLost,
    Stopped,
    VisalignError,
)
from reward_models.base import RewardError
from tests.support.recipe import write

ROOT = Path(__file__).parents[3]
COMMANDS = ("train", "doctor", "export", "report", "config")
HEAVY = ("torch", "diffusers", "transformers", "numpy", "pydantic", "yaml")

TRY = """
import sys
from alignment.cli import main as cli
try:
    code = cli.run(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("HEAVY", code, sorted({HEAVY} & set(sys.modules)))
""".replace("{HEAVY}", repr(set(HEAVY)))


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *([[command, "--help"], 0] for command in COMMANDS),
        ([], 2),
        (["tarin"], 2),
        (["train"], 2),
        (["train", "a.yaml", "--dry"], 2),
        (["train", "a.yaml", "--bogus", "k=v"], 2),
        (["doctor"], 2),
        (["doctor", "a.yaml", "--pipeline", "b"], 2),
        (["export", "checkpoint-1"], 2),
        (["export", "checkpoint-1", "--to", "x", "--as", "zip"], 2),
        (["report"], 2),
        (["report", "runs/x", "stray"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_argument_errors_import_nothing_heavy(argv: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", TRY, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"HEAVY {code} []"
    assert "Traceback" not in done.stderr


def test_a_config_is_refused_before_what_runs_a_pipeline_is_imported() -> None:
    libraries = ("diffusers", "transformers", "peft", "accelerate", "matplotlib")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            TRY.replace(repr(set(HEAVY)), repr(set(libraries))),
            "train",
            "quickstart",
            "optimizer.lr=3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "optimizer.lr: Optimizer has no such field" in done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY 2 []"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.yaml"], "there is no such config file"),
        (["broken.yaml"], "broken.yaml:"),
        (["quickstart", "steps"], "expected key.path=value"),
        (["nowhere.yaml", "--dry-run"], "there is no such config file"),
    ],
    ids=("no file", "no YAML", "no override", "a dry run"),
)
def test_what_is_no_config_is_refused_before_torch_is_imported(words: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    done = subprocess.run(
        [sys.executable, "-c", TRY.replace(repr(set(HEAVY)), repr({"torch", "numpy", "pydantic"})), "train", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert says in done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY 2 []"


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["train", f"{LONG}.yaml"],
        ["report", LONG],
        ["export", LONG, "--to", "new", "--as", "diffusers"],
        ["export", "old", "--to", LONG, "--as", "diffusers"],
        ["doctor", "--pipeline", LONG],
        ["rewards", "score", "colour", "--input", LONG, "--output", "out.jsonl"],
        ["rewards", "score", f"{LONG}.yaml", "--input", ".", "--output", "out.jsonl"],
        ["rewards", "train", f"{LONG}.yaml"],
        ["serve-reward", f"{LONG}.yaml"],
        ["serve-reward", "colour", "--token-file", LONG],
        ["plan", f"{LONG}.yaml"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("change", [lambda word: word, lambda word: word.replace(LONG, "a\0b")], ids=["long", "null"])
def test_names_that_no_file_can_have_are_one_line(
    words: list[str],
    change: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    Path("a.txt").write_text("a prompt")
    assert cli.run([change(word) for word in words]) in (2, 3)
    said = capsys.readouterr().err
    assert said.startswith("visalign: ")
    assert said.count("\n") == 1


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alignment", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"visalign {alignment.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "a.yaml", "x=1", "y.z=2", "--dry-run", "--resume", "latest"],
        ["train", "--dry-run", "a.yaml", "x=1", "--resume", "latest", "y.z=2"],
        ["train", "a.yaml", "--dry-run", "x=1", "--resume=latest", "y.z=2"],
    ],
    ids=["behind", "around", "between"],
)
def test_overrides_may_stand_anywhere_behind_the_config(argv: list[str]) -> None:
    args = cli._parse(argv)
    assert (args.config, args.overrides, args.dry_run, args.resume) == ("a.yaml", ["x=1", "y.z=2"], True, "latest")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    write(tmp_path, "{}", "pipeline/model_index.json")
    write(tmp_path, "a cat\n", "train.txt")
    text = (
        f"name: trial\npolicy: {{pipeline: {tmp_path}/pipeline}}\ndata: {{prompts: {tmp_path}/train.txt}}\nsteps: 3\n"
        "source: {type: on_policy, prompts: 2, reward: {type: jpeg}}\nobjective: {type: nft}\n"
        f"output: {{folder: {tmp_path}/runs}}\n"
    )
    return write(tmp_path, text)


def test_a_dry_run_prints_a_config_that_loads_and_what_would_happen(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(config_file), "--dry-run", "steps=7"]) == 0
    text, _, told = capsys.readouterr().out.partition("\n\n")
    assert "would train the denoiser's own weights" in told.replace("\n", " ")
    assert load(write(tmp_path, text, "printed.yaml")) == load(config_file, ["steps=7"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["data", "evaluation"])
def test_a_dry_run_reads_the_data(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    twice = write(tmp_path, "a cat\na cat\n", "twice.txt")
    assert cli.run(["train", str(config_file), "--dry-run", f"{key}.prompts={twice}"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert str(twice) in said.err
    assert "repeats" in said.err


@pytest.mark.parametrize("override", ["source.promts=2", "steps=0", "steps", "data.prompts=nowhere.txt"])
def test_a_config_error_is_one_line_without_a_traceback(
    config_file: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert cli.run(["train", str(config_file), "--dry-run", override]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("visalign: ")
    assert override.partition("=")[0] in said.err


def test_a_reward_that_refuses_its_settings_is_a_user_error(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(config_file), "--dry-run", "source.reward.quality=0"]) == 2
    assert "command line: source.reward: jpeg: quality" in capsys.readouterr().err.replace(
        f"{config_file}:5", "command line"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EnvironmentProblem("no space"), 3),
        (Stopped("stopped at step 3"), 4),
        (NumericsError("the loss is NaN"), 5),
        (OutOfMemory("no more"), 6),
        (ProcessLost("process 1 of 2 is stuck"), 7),
        (RewardError("the server is gone"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_become_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert cli._answer(fail) == code
    assert capsys.readouterr().err == f"visalign: {str(error) or 'interrupted'}\n"


def test_what_another_process_tells_is_not_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    def leave() -> int:
        raise EndedElsewhere(5)

    assert cli._answer(leave) == 5
    assert capsys.readouterr().err == ""


def test_every_exit_code_is_documented() -> None:
    listed = (ROOT / "docs" / "exit_codes.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VisalignError)]
    for code in {cli.INTERRUPTED, cli.USERS, *(kind.exit_code for kind in kinds)}:
        assert f"\n| {code} |" in listed


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def fail() -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli._answer(fail)


def test_config_lists_kinds_types_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config"]) == 0
    kinds = capsys.readouterr().out
    for kind in ("advantages", "dynamics", "objectives", "reward_models", "sources", "windows"):
        assert kind in kinds
    assert cli.run(["config", "objectives"]) == 0
    objectives = capsys.readouterr().out
    assert "type: nft" in objectives
    assert "    beta: a number, default 1.0. Strength of the mixture, > 0." in objectives
    assert cli.run(["config", "run"]) == 0
    assert "steps: a whole number, required" in capsys.readouterr().out


def test_config_tells_programs_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    steps = next(field for field in told["run"] if field["name"] == "steps")
    assert (steps["type"], steps["required"], steps["default"]) == ("a whole number", True, None)
    beta = next(field for field in told["objectives"]["nft"]["fields"] if field["name"] == "beta")
    assert (beta["default"], beta["says"]) == ("1.0", "Strength of the mixture, > 0.")
    assert "Source: DiffusionNFT" in told["objectives"]["nft"]["doc"]
    policy = next(field for field in told["run"] if field["name"] == "policy")
    assert "pipeline" in [field["name"] for field in policy["fields"]]
    assert cli.run(["config", "windows", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"windows": told["windows"]}


def test_config_refuses_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "zebras"]) == 2
    assert "Known: run, advantages," in capsys.readouterr().err


def test_a_reader_may_stop_early() -> None:
    show = "import sys; from alignment.cli import main as cli; sys.stdin.readline(); cli.show('x' * 100_000)"
    process = subprocess.Popen(
        [sys.executable, "-c", show], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_a_warning_is_one_line_without_its_place_in_the_source() -> None:
    warn = (
        "import warnings; from types import SimpleNamespace; from alignment.cli import main as cli\n"
        "warn = lambda args: warnings.warn('checkpoint-2 is damaged') or 0\n"
        "cli._parse = lambda argv: SimpleNamespace(command=warn)\n"
        "cli.run([])"
    )
    done = subprocess.run([sys.executable, "-c", warn], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "warning: checkpoint-2 is damaged\n"
