"""A run's folder that is damaged: `visalign report` is one line that says where, or a page that says what is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignment.cli import main as cli
from alignment.reports.record import Recorder
from tests.support.synthetic_run import FEW, metrics, write_run

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "whole", steps=4, only=FEW)


def wrote(name: str, content: str | bytes) -> Damage:
    def damage(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(name: str, share: float) -> Damage:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(share * len(content))])

    return damage


def without(name: str) -> Damage:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def a_folder(name: str) -> Damage:
    def damage(run: Path) -> None:
        without(name)(run)
        (run / name).mkdir()

    return damage


def told(name: str, **other: object) -> Damage:
    """Write other values into a JSON object."""

    def damage(run: Path) -> None:
        (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **other}))

    return damage


def line(**other: object) -> Damage:
    """Write other values into the third line of the metrics."""

    def damage(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        lines[2] = json.dumps({**json.loads(lines[2]), **other})
        (run / "metrics.jsonl").write_text("".join(f"{text}\n" for text in lines))

    return damage


def extremes(run: Path) -> None:
    """Write the two ends of 64-bit numbers into all metrics there are, one line after the other."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    for number, value in enumerate((1e308, -1e308, 1e300, -1e300)):
        lines[number].update(dict.fromkeys(metrics(number, len(lines)), value))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in lines))


def scored(*numbers: float) -> Damage:
    """Write these numbers, over and over, as the scores of the first evaluation."""

    def damage(run: Path) -> None:
        described = json.loads((run / BASE).read_text())
        for metric, column in described["scores"].items():
            described["scores"][metric] = [numbers[row % len(numbers)] for row in range(len(column))]
        (run / BASE).write_text(json.dumps(described))

    return damage


def pixels(tensor: torch.Tensor, name: str = "pixels") -> Damage:
    return lambda run: save_file({name: tensor}, run / "evaluation" / "base.safetensors")


BASE, SAMPLE = "evaluation/base.json", "samples/000000-train.png"
DEEP = "[" * 100_000

REFUSED: dict[str, tuple[Damage, str]] = {
    "nothing but a folder": (lambda run: [without(path.name)(run) for path in run.iterdir()], "holds no run"),
    "no folder": (lambda run: shutil.rmtree(run), "holds no run"),
    "metrics: garbage": (wrote("metrics.jsonl", b"\xff\xfe\x00\n"), "metrics.jsonl, line 1"),
    "metrics: a list": (wrote("metrics.jsonl", "[1]\n"), "metrics.jsonl, line 1"),
    "metrics: no step": (wrote("metrics.jsonl", '{"loss": 1}\n'), "metrics.jsonl, line 1: expected a JSON object with"),
    "metrics: a step that is text": (line(step="two"), "metrics.jsonl, line 3"),
    "metrics: text": (line(loss="low"), 'metrics.jsonl, line 3: loss is "low", not a number'),
    "metrics: a list of numbers": (line(**{"reward/mean": [1.0]}), "metrics.jsonl, line 3: reward/mean is [1.0]"),
    "metrics: an endless number": (line(loss=10**400), "metrics.jsonl, line 3: loss has more digits than"),
    "metrics: an endless step": (line(step=10**400), "metrics.jsonl, line 3: expected"),
    "metrics: deep": (wrote("metrics.jsonl", f"{DEEP}\n"), "metrics.jsonl, line 1"),
    "metrics: a folder": (a_folder("metrics.jsonl"), "metrics.jsonl: Is a directory"),
    "evaluation: cut": (cut(BASE, 0.5), "base.json is not JSON"),
    "evaluation: empty": (wrote(BASE, ""), "base.json is not JSON"),
    "evaluation: deep": (wrote(BASE, DEEP), "base.json is not JSON"),
    "evaluation: a list": (wrote(BASE, "[]"), "base.json is damaged"),
    "evaluation: no scores": (wrote(BASE, '{"step": 0, "fps": null, "prompts": [], "seeds": []}'), "scores: field"),
    "evaluation: a step that is text": (told(BASE, step="0"), "base.json is damaged: step"),
    "evaluation: prompts of numbers": (told(BASE, prompts=[1]), "base.json is damaged: prompts.0"),
    "evaluation: too few prompts": (told(BASE, prompts=["a cat"]), "is damaged: 1 prompts"),
    "evaluation: seeds without end": (told(BASE, seeds=[2**70]), "base.json is damaged: seeds.0"),
    "evaluation: scores of text": (told(BASE, scores={"strict": ["good"]}), "base.json is damaged: scores.strict.0"),
    "evaluation: scores beyond float32": (scored(0.5, 1e300), "base.json is damaged: scores."),
    "evaluation: a score that is below all": (scored(-3.5e38), "base.json is damaged: scores."),
    "evaluation: no frames a second": (told(BASE, fps=0), "base.json is damaged: fps"),
    "evaluation: a folder": (a_folder(BASE), "base.json: Is a directory"),
    "pixels: missing": (without("evaluation/base.safetensors"), "base.safetensors is missing or damaged"),
    "pixels: cut": (cut("evaluation/base.safetensors", 0.5), "base.safetensors is missing or damaged"),
    "pixels: another name": (pixels(torch.zeros(1), "other"), "base.safetensors is damaged: it holds no pictures"),
    "pixels: another type": (pixels(torch.zeros(1, 1, 3, 4, 4)), "base.safetensors is damaged: it holds no pictures"),
    "pixels: no frames": (
        pixels(torch.zeros(1, 0, 3, 4, 4, dtype=torch.uint8)),
        "base.safetensors is damaged: it holds no pictures",
    ),
    "pixels: another shape": (pixels(torch.zeros(1, 4, 4, dtype=torch.uint8)), "base.safetensors is damaged: media"),
}

REPORTED: dict[str, tuple[Damage, str]] = {
    "config: missing": (without("config.resolved.yaml"), ""),
    "config: no YAML": (wrote("config.resolved.yaml", "a: [1\n"), "config.resolved.yaml is not the YAML of a run"),
    "config: a list": (wrote("config.resolved.yaml", "- 1\n"), "config.resolved.yaml is not the YAML of a run"),
    "config: bytes": (wrote("config.resolved.yaml", bytes(range(256))), "config.resolved.yaml is not the YAML of"),
    "config: deep": (wrote("config.resolved.yaml", DEEP), "config.resolved.yaml is not the YAML of a run"),
    "config: other types": (wrote("config.resolved.yaml", "policy: 3\nsource: [a]\nobjective: x\n"), ""),
    "config: a tag over text": (wrote("config.resolved.yaml", "a: !!timestamp x\n"), "is not the YAML of a run"),
    "config: a tag over no text": (wrote("config.resolved.yaml", "a: !!int ''\n"), "is not the YAML of a run"),
    "config: a tag over another": (wrote("config.resolved.yaml", "a: !!bool x\n"), "is not the YAML of a run"),
    "config: a folder": (a_folder("config.resolved.yaml"), "config.resolved.yaml cannot be read"),
    "summary: missing": (without("summary.json"), "not finished"),
    "summary: cut": (cut("summary.json", 0.3), "summary.json is not JSON"),
    "summary: a list": (wrote("summary.json", "[]"), "summary.json is not a JSON object"),
    "summary: text for numbers": (told("summary.json", wall_seconds="long"), "no number under wall_seconds"),
    "summary: infinite": (wrote("summary.json", '{"wall_seconds": Infinity}'), "no number under wall_seconds"),
    "environment: a folder": (a_folder("environment.json"), "environment.json cannot be read"),
    "metrics: the largest numbers": (extremes, "reward/mean has numbers beyond 1e+300"),
    "metrics: cut": (cut("metrics.jsonl", 0.9), ""),
    "evaluation: the largest scores": (scored(3.4e38, -3.4e38), "e+3"),
    "evaluation: the largest scores alone": (scored(3.4e38), "3.4e+38"),
    "evaluation: the smallest scores": (scored(1e-45, 0.0, -1e-45), ""),
    "sample: no picture": (wrote(SAMPLE, "not a picture"), "samples/000000-train.png is not a picture"),
    "sample: cut": (cut(SAMPLE, 0.5), "samples/000000-train.png is not a picture"),
    "sample: empty": (wrote(SAMPLE, ""), "samples/000000-train.png is not a picture"),
    "sample: a folder": (a_folder(SAMPLE), "samples/000000-train.png cannot be read"),
}


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_report_cannot_do_without_is_one_line(run: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    damage, says = REFUSED[case]
    damage(run)
    assert cli.run(["report", str(run)]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("visalign: ")
    assert str(run) in err
    assert says in err


@pytest.mark.parametrize("case", REPORTED)
def test_what_a_report_can_do_without_is_named_in_it(run: Path, case: str) -> None:
    damage, says = REPORTED[case]
    damage(run)
    assert cli.run(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert says in page
    assert "Held out" in page


@pytest.mark.parametrize("case", [name for name in REFUSED if name.startswith("evaluation")])
def test_a_run_does_not_go_on_over_a_damaged_evaluation_without_a_word(
    run: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    from alignment.errors import DataError

    REFUSED[case][0](run)
    if case == "evaluation: too few prompts":  # whose step can be read, which is all that going on needs
        return
    with pytest.raises(DataError, match=r"base\.json"), Recorder(run, total_steps=4, quiet=True) as record:
        record.resume_at(2)
