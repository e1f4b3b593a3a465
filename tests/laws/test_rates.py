"""A clip that is scored says its rate, whoever has it scored; and what it says is what a player would show."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import WanPipeline
from PIL import Image

from alignment.cli import main as cli
from alignment.data.frame_rate import EXPORTED, frame_rate
from alignment.reports import run_folder
from alignment.reports.pictures import encode_clip
from evals import run_bench
from evals.medium import Medium
from evals.scoring import BatchScorer
from reward_models.base import Media, RewardError, RewardModel, Rewards

ROOT = Path(__file__).parents[2]
REWARD = f"{__name__}:Rate"
TRIFLE = 0.1  # of a frame a second: what tells samples of one rate apart, which a run insists on
ROUNDING = 1e-3  # of a frame a second: containers keep times in thousandths of a second


@dataclass(frozen=True)
class Rate(RewardModel):
    """Score a clip by its frames a second, and by a trifle that tells samples apart."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Rate:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        if media.fps is None:
            raise RewardError("the clip does not say its rate")
        return Rewards(media.fps + TRIFLE * media.pixels.flatten(1).mean(1))


def clip(path: Path, frames: int = 9, fps: float = 12.0) -> Path:
    shades = [Image.new("RGB", (16, 16), (20 * k % 256, 0, 0)) for k in range(frames)]
    path.write_bytes(encode_clip(shades, fps))
    return path


def run_training(folder: Path, *words: str) -> Path:
    small = ("steps=1", "source.prompts=2", "source.group_size=2", "source.prompts_per_call=2", "batch.microbatch=2")
    few = (
        "policy.call.num_inference_steps=2",
        "evaluation.images_per_prompt=1",
        "evaluation.every=0",
        "batch.updates=1",
    )
    (folder / "few.txt").write_text("a red circle moves left\na blue square moves up\n")
    prompts = (f"data.prompts={folder / 'few.txt'}", f"evaluation.prompts={folder / 'few.txt'}")
    reward = f"source.reward={{type: '{REWARD}'}}"
    there = (f"output.folder={folder}", "name=rates")
    config = "quickstart_video"
    assert cli.run(["train", config, *small, *few, *prompts, reward, *there, *words]) == 0
    return folder / "rates"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_training(tmp_path_factory.mktemp("rates"), "policy.fps=8", "evaluation.call.num_inference_steps=3")


def train(folder: Path, trained: Path) -> tuple[float, float]:
    line = (trained / run_folder.METRICS).read_text(encoding="utf-8").splitlines()[0]
    return json.loads(line)["reward/mean"], 8.0


def evaluate(folder: Path, trained: Path) -> tuple[float, float]:
    _, found = run_folder.read_evaluation(trained, run_folder.FINAL)
    assert found.media.fps == 8.0  # so are the clips of its report
    return found.scores["reward"].mean().item(), 8.0


def score(folder: Path, trained: Path) -> tuple[float, float]:
    clip(folder / "a.mp4")
    words = ["--input", str(folder), "--prompt", "a red circle", "--output", str(folder / "out.jsonl")]
    assert cli.run(["rewards", "score", REWARD, *words]) == 0
    return json.loads((folder / "out.jsonl").read_text(encoding="utf-8"))["score"], 12.0


def bench(folder: Path, trained: Path) -> tuple[float, float]:
    rates = {"a.mp4": 12.0, "b.mp4": 8.0}
    for name, fps in rates.items():
        clip(folder / name, fps=fps)
    line = {"prompt": "p", "first": "a.mp4", "second": "b.mp4", "preferred": "first"}
    (folder / "pairs.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    wanted = run_bench.Wanted("pairs", (f"file={folder / 'pairs.jsonl'}",), None, 0, folder)
    run_bench.run({"rate": lambda: BatchScorer(Rate(), torch.device("cpu"))}, wanted)
    found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return found["rewards"]["rate"]["margins"][0], 4.0


DOORS = (train, evaluate, score, bench)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_clip_that_is_scored_says_its_rate(
    door: Callable[[Path, Path], tuple[float, float]], tmp_path: Path, trained: Path
) -> None:
    found, expected = door(tmp_path, trained)
    assert found == pytest.approx(expected, abs=TRIFLE)


def test_whoever_makes_media_says_a_rate() -> None:
    """Look at every place in the packages that do not score, whatever a test would reach."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("alignment", "evals")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Media"
        if len(node.args) < 2 and "fps" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not silent, f"media without a word about their rate (fps=None for pictures): {silent}"


# ---- where the rate comes from ---------------------------------------------------------------------------------------


class Told(WanPipeline):
    def __call__(self, prompt: str, frame_rate: float = 25, fps: int | None = None) -> None: ...


@pytest.mark.parametrize(
    ("said", "call", "rate"),
    [(5.0, {"fps": 6}, 5.0), (None, {"fps": 6}, 6.0), (None, {"frame_rate": 7.5}, 7.5), (None, {}, 25.0)],
)
def test_a_users_word_comes_before_the_calls_and_that_before_its_default(
    said: float | None, call: dict[str, object], rate: float
) -> None:
    assert frame_rate(Told.__new__(Told), said, call) == rate


def test_a_pipeline_that_does_not_say_is_taken_as_diffusers_exports_it() -> None:
    import inspect

    from diffusers.utils import export_to_video

    assert frame_rate(WanPipeline.__new__(WanPipeline), None, {"num_frames": 9}) == EXPORTED
    assert inspect.signature(export_to_video).parameters["fps"].default == EXPORTED


@pytest.mark.parametrize("rate", ["0", "-1", ".inf", ".nan"])
def test_a_rate_that_is_none_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "quickstart_video", f"policy.fps={rate}", "--dry-run"]) == 2
    assert "policy.fps" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webm", ".mkv", ".avi", ".mov"])
def test_fewer_frames_of_a_clip_are_shown_more_slowly(tmp_path: Path, ending: str) -> None:
    path = clip_of_kind(tmp_path / f"a{ending}", frames=21, fps=10)
    whole, some = Medium.file(path).media(100), Medium.file(path).media(5)
    assert (len(whole.pixels[0]), len(some.pixels[0])) == (21, 5)
    assert whole.fps == pytest.approx(10, rel=ROUNDING)
    assert some.fps == pytest.approx(10 * 4 / 20, rel=ROUNDING)
    assert Medium.file(path).media(1).fps is None


def clip_of_kind(path: Path, frames: int, fps: int) -> Path:
    from tests.support.clips import written

    return written(path, [(16, 16)] * frames, fps=fps)
