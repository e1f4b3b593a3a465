"""Whatever a user gets wrong: one line and the right exit code in a process of its own, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import prepared

ROOT = Path(__file__).parents[3]

CASES: dict[str, tuple[str, int, str]] = {
    "no config": ("train nowhere.yaml", 2, "there is no such config file"),
    "an empty config": ("train empty.yaml", 2, "a config is a mapping"),
    "a name alone": (
        "train bare.yaml",
        2,
        "Run needs 'policy' (PolicySpec (a mapping)), 'data' (Data (a mapping)), 's",
    ),
    "a people's word": ("train grpo.yaml objective.type=grpo", 2, "Did you mean 'clipped_surrogate'?"),
    "another": ("train grpo.yaml optimizer.lr=1e-4", 2, "Did you mean 'learning_rate'?"),
    "a third": ("train grpo.yaml policy.lora.r=4", 2, "Did you mean 'rank'?"),
    "a word of elsewhere": ("train grpo.yaml lr=1e-4", 2, "Here it is called optimizer.learning_rate."),
    "a wrong pair": ("train grpo.yaml objective={type: nft}", 2, "Sources that produce Samples: "),
    "a source's own rule": ("train grpo.yaml source.group_size=1", 2, "with source.group_size from the command line"),
    "dynamics of flows": ("train grpo.yaml policy.pipeline=sd15", 2, "source.dynamics: FlowSDE"),
    "dynamics in a dry run": ("train grpo.yaml policy.pipeline=sd15 --dry-run", 2, "source.dynamics: FlowSDE"),
    "a doctor for them": ("doctor grpo.yaml policy.pipeline=sd15", 2, "source.dynamics: FlowSDE"),
    "a module that raises": ("train grpo.yaml source.dynamics={type: 'raises:X'}", 2, "raised ZeroDivisionError"),
    "a module that leaves": ("train grpo.yaml source.reward={type: 'leaves:X'}", 2, "raised SystemExit: 7"),
    "a reward that leaves": ("train grpo.yaml source.reward.call=leaves:f --dry-run", 2, "raised SystemExit: 7"),
    "a served module that raises": ("serve-reward raises:X", 2, "importing raises raised ZeroDivisionError"),
    "no key for wandb": ("train grpo.yaml output.report_to=[wandb] --dry-run", 3, "wandb has no API key"),
    "no key in a run": ("train grpo.yaml output.report_to=[wandb]", 3, "wandb has no API key"),
    "no checkpoint": ("train grpo.yaml --resume nowhere", 2, "nowhere"),
    "no run to report": ("report nowhere", 2, "holds no run"),
    "a file to report": ("report empty.yaml", 2, "empty.yaml/metrics.jsonl: Not a directory"),
    "no pipeline to examine": ("doctor --pipeline nowhere", 2, "nowhere"),
    "no pipeline to plan": ("plan grpo.yaml policy.pipeline=nowhere", 2, "nowhere"),
    "no checkpoint to export": ("export nowhere --to out --as diffusers", 2, "nowhere"),
    "no kind": ("config zebras", 2, "nothing called 'zebras' to list"),
    "nothing to score": ("rewards score jpeg --input nowhere.jsonl --output out.jsonl", 2, "nowhere.jsonl"),
}
"""Words of the command, its exit code, and what it says. A value with a space is in braces."""

SCRIPT = """
import json, shlex, sys, traceback, io, contextlib
from alignment.cli import main as cli
for name, words in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = cli.run(words)
        except SystemExit as error:
            code = error.code
        except BaseException:
            code = traceback.print_exc(file=said)
    print("ANSWER", json.dumps([name, code, said.getvalue()]), flush=True)
"""


def words(command: str) -> list[str]:
    """Return the words of a command; what is in braces is one."""
    found: list[str] = []
    for word in command.split(" "):
        if found and found[-1].count("{") > found[-1].count("}"):
            found[-1] = f"{found[-1]} {word}"
        else:
            found.append(word)
    return found


@pytest.fixture(scope="module")
def answers(
    flux_folder: Path, sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int | None, str]]:
    folder = prepared(tmp_path_factory.mktemp("fresh") / "work", flux_folder)
    (folder / "sd15").symlink_to(sd15_folder)
    (folder / "empty.yaml").write_text("")
    (folder / "bare.yaml").write_text("name: x\n")
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "leaves.py").write_text("raise SystemExit(7)\n")
    commands = {name: words(command) for name, (command, _, _) in CASES.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "NETRC": str(folder / "netrc")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    told = [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(told) == len(CASES), done.stderr
    return {name: (code, said) for name, code, said in told}


@pytest.mark.parametrize("case", CASES)
def test_a_users_error_is_one_message(answers: dict[str, tuple[int | None, str]], case: str) -> None:
    _, code, says = CASES[case]
    got, said = answers[case]
    assert "Traceback" not in said
    assert got == code, said
    assert says in said
    assert sum(line.startswith("visalign: ") for line in said.splitlines()) == 1, said
