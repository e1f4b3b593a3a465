"""`visalign generate`: one picture is the plain pipeline's, bit for bit; of several, the one a reward likes best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from alignment.cli.main import run
from tests.support.tiny import FLUX_CALL
from tests.support.trained import Trained, quiet, trained

CALL = ("--batch-size", "4", "--call", *(f"{name}={value}" for name, value in FLUX_CALL.items()))
PROMPTS = ("a cat", "a dog")
JUDGE = "judge={type: bradley_terry, reward: {type: colour}}"
ASKED = tuple(word for text in PROMPTS for word in ("--prompt", text))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("subject"), "flux", lora=True)


def generate(subject: Path, output: Path, *words: str) -> int:
    return run(["generate", str(subject), *words, *CALL, "--output", str(output)])


def manifest(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "chosen" / "manifest.jsonl").read_text().splitlines()]


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("tuned", [False, True], ids=["pipeline", "checkpoint"])
def test_one_picture_is_the_plain_pipelines_bit_for_bit(made: Trained, tuned: bool, tmp_path: Path) -> None:
    assert generate(made.checkpoint if tuned else made.base, tmp_path, *ASKED) == 0
    pipe = quiet(FluxPipeline.from_pretrained(made.base))
    if tuned:
        pipe.load_lora_weights(made.checkpoint)
    told = manifest(tmp_path)
    assert [one["prompt"] for one in told] == list(PROMPTS)
    generators = [torch.Generator().manual_seed(one["generator_seed"]) for one in told]
    plain = pipe(list(PROMPTS), generator=generators, **FLUX_CALL).images
    for one, picture in zip(told, plain, strict=True):
        np.testing.assert_array_equal(levels(tmp_path / "chosen" / one["media"]), np.asarray(picture))


def test_the_best_of_several_is_chosen_and_the_rest_is_told(
    made: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    best = ("--by", "colour", "--reward", "sharpness", "--pictures", "2")
    assert generate(made.base, tmp_path, *ASKED, "--pictures", "2") == 0
    plain = manifest(tmp_path)
    assert generate(made.base, tmp_path, *ASKED, *best, "--best-of", "2") == 0
    two = manifest(tmp_path)
    capsys.readouterr()
    assert generate(made.base, tmp_path, *ASKED, *best, "--best-of", "4") == 0
    said = capsys.readouterr()
    four, found = manifest(tmp_path), json.loads((tmp_path / "generated.json").read_text())
    assert "16 pictures, of which 8 are to be made" in said.err  # the others are there
    assert "cost: 16 pictures made for 4" in said.out
    assert [one["of"] for one in four] == [4] * 4
    assert all(b["scores"]["colour"] >= a["scores"]["colour"] for a, b in zip(two, four, strict=True))
    assert {one["generator_seed"] for one in plain} & {one["generator_seed"] for one in two + four}, (
        "plain pictures are among the candidates"
    )
    chose, held = found["rewards"]
    assert (chose["title"], chose["chooses"], held["title"], held["chooses"]) == ("colour", True, "sharpness", False)
    assert chose["chosen"]["mean"] > chose["plain"]["mean"]
    assert (tmp_path / "sheet.png").stat().st_size > 0
    # What was chosen is a subject.
    compared = ("eval", str(tmp_path / "chosen"), "--on", "prompts", f"file={tmp_path / 'prompts.jsonl'}")
    assert run([*compared, "--pictures", "2", "--reward", "colour", "--output", str(tmp_path / "eval")]) == 0
    # Fewer are what they were, and no file of more is left.
    assert generate(made.base, tmp_path, *ASKED, "--pictures", "1") == 0
    assert sorted(p.name for p in (tmp_path / "chosen").glob("*.png")) == ["00000-0.png", "00001-0.png"]


def test_a_folder_has_one_set_of_prompts(made: Trained, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert generate(made.base, tmp_path, *ASKED, "--dry-run") == 0
    assert generate(made.base, tmp_path, "--prompt", "a cow") == 2
    assert "holds pictures of other prompts" in capsys.readouterr().err


REFUSED = {
    "nothing asked": ((), "give --prompt TEXT"),
    "asked twice": ((*ASKED, "--prompts", "file.txt"), "give --prompt TEXT"),
    "nothing chooses": ((*ASKED, "--best-of", "4"), "--best-of 4: by what is the best chosen?"),
    "nothing to choose from": ((*ASKED, "--by", "colour"), "--by colour chooses among several, and one is made"),
    "no such reward": ((*ASKED, "--best-of", "2", "--by", "prettiness"), "prettiness"),
    "a reward of groups": ((*ASKED, "--best-of", "2", "--by", "win_rate", JUDGE), "compares the samples of a group"),
    "the same twice": ((*ASKED, "--best-of", "2", "--by", "colour", "--reward", "colour"), "the same reward twice"),
    "no file": (("--prompts", "nowhere.txt"), "nowhere.txt"),
    "an argument the pipeline has not": ((*ASKED, "--call", "widht=8"), "widht"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line(
    words: tuple[str, ...], says: str, made: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(["generate", str(made.base), *words, "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_a_folder_of_pictures_makes_no_more(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    assert generate(tmp_path, tmp_path / "out", *ASKED) == 2
    assert "is a folder of pictures" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_counts_are_whole_numbers(count: str, made: Trained, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        generate(made.base, tmp_path, *ASKED, "--best-of", count)
    assert ended.value.code == 2
