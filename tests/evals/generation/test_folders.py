"""Pictures that lie in folders, compared: what comes out, what is kept when it stops, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.cli.main import run
from evals.generation.plan import Share

PROMPTS = ("a red thing", "a redder thing", "the reddest thing")
SAMPLES = 4
USUAL = ("--reward", "colour", "--features", "pixels", "--batch-size", "5")


def brought(folder: Path, lift: int, seed: int) -> Path:
    """Write pictures that are redder by `lift` levels than those of the same seed without."""
    folder.mkdir(parents=True)
    for sample in range(SAMPLES):
        for item in range(len(PROMPTS)):
            draw = np.random.default_rng([seed, item, sample])
            levels = draw.integers(0, 200, (8, 8, 3), dtype=np.uint8)
            levels[..., 0] += np.uint8(lift + 2 * (item % 2) * (lift > 0))
            Image.fromarray(levels).save(folder / f"{item:05d}-{sample}.png")
    return folder


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    brought(tmp_path / "plain", 0, seed=0)
    brought(tmp_path / "redder", 20, seed=0)
    return tmp_path


def evaluate(given: Path, *words: object, output: str = "out") -> int:
    """Do all stages but the page, which takes longer than all else together; or those that are asked for."""
    suite = ("--on", "prompts", f"file={given / 'prompts.txt'}", "--pictures", SAMPLES)
    words = words if "--only" in words else (*words, "--only", "generate", "score", "compare")
    return run(["eval", *map(str, (*words, *suite, *USUAL, "--output", given / output))])


def both(given: Path) -> tuple[Path, Path]:
    return given / "plain", given / "redder"


def found(given: Path, output: str = "out") -> dict:
    return json.loads((given / output / "eval.json").read_text(encoding="utf-8"))


def test_the_change_is_that_of_the_same_pictures_pair_by_pair(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate", "score", "compare", "report") == 0
    suite = found(given)["suites"]["prompts"]
    assert (suite["prompts"], suite["pictures"]) == (3, 12)
    changes = {change["measure"]: change for change in suite["comparisons"]["redder"]["changes"]}
    colour = changes["colour"]
    # The reward is the red level over 255 where the other channels stay: 20, 22, 20 levels more, exactly.
    assert colour["change"]["mean"] == pytest.approx(62 / 3 / 255, abs=1e-6)
    assert colour["verdict"] == "better"
    assert colour["gain"] > 1.5
    assert suite["comparisons"]["redder"]["wins"] == {"colour": 1.0}
    drift = suite["comparisons"]["redder"]["drift"]["pixels"]["mean"]
    assert drift == pytest.approx(62 / 3 / 255 / 3**0.5, abs=1e-6)
    said = capsys.readouterr().out
    assert "redder against plain on prompts at 12 pictures each: better: colour" in said
    assert (given / "out" / "report.html").read_text(encoding="utf-8").count("<html") == 1


def test_what_is_the_same_cannot_be_told_apart(given: Path) -> None:
    shutil.copytree(given / "plain", given / "copy")
    assert evaluate(given, given / "plain", given / "copy") == 0
    says = found(given)["says"][0]
    assert "cannot be told apart: colour (the same)" in says
    assert "better" not in says


def test_any_number_of_processes_gives_the_same(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(given, *both(given), output="one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert evaluate(given, *both(given), output="two") == 0
    assert found(given, "one") == found(given, "two")


def test_each_process_takes_what_no_other_takes(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert Share.launched() == Share(1, 2)
    assert evaluate(given, *both(given)) == 0
    made = sorted(path.name for path in (given / "out" / "made" / "plain" / "prompts").iterdir())
    assert made == ["000001.json"]  # of units 0, 1 and 2
    assert not (given / "out" / "eval.json").exists()


class Killed(BaseException):
    """In place of the signal that nobody can catch."""


def test_whenever_it_is_killed_the_same_command_goes_on(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files appear by being renamed: it is killed before the first of them, the second, and so on to the last."""
    assert evaluate(given, *both(given), output="whole") == 0
    rename, writes, kills, limit = Path.replace, 0, 0, 0

    def killing(path: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes > limit:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killing)
    for allowed in (0, *[1] * 100):  # each goes one file further than the one before
        writes, limit = 0, allowed
        try:
            assert evaluate(given, *both(given), output="killed") == 0
        except Killed:
            kills += 1
        else:
            break
    monkeypatch.undo()
    assert evaluate(given, *both(given), output="killed") == 0
    assert kills > 15
    assert found(given, "killed") == found(given, "whole")


def test_stages_stand_alone(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "score") == 2
    assert "run the stage before: --only generate" in capsys.readouterr().err
    for stage in ("generate", "score"):
        assert evaluate(given, *both(given), "--only", stage) == 0
    assert not (given / "out" / "eval.json").exists()
    assert run(["eval", "--only", "compare", "--output", str(given / "out")]) == 0
    once = found(given)
    assert evaluate(given, *both(given), output="again") == 0
    assert found(given, "again")["suites"] == once["suites"]


def test_another_reward_is_added_without_scoring_again(given: Path) -> None:
    assert evaluate(given, *both(given)) == 0
    before = {path: path.stat().st_mtime_ns for path in (given / "out" / "scores").rglob("*.json")}
    words = ["eval", "--output", str(given / "out"), "--reward", "colour", "--reward", "sharpness"]
    words += ["--only", "score", "compare"]
    assert run(words) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changes = found(given)["suites"]["prompts"]["comparisons"]["redder"]["changes"]
    assert [change["measure"] for change in changes][:2] == ["colour", "sharpness"]


def test_more_pictures_are_added_to_those_there(given: Path) -> None:
    suite = ("--on", "prompts", f"file={given / 'prompts.txt'}", *USUAL, "--output", given / "out")
    for pictures in (2, SAMPLES):
        words = ("eval", *both(given), "--pictures", pictures, *suite, "--only", "generate", "score", "compare")
        assert run([*map(str, words)]) == 0
    assert evaluate(given, *both(given), output="whole") == 0
    assert found(given)["suites"] == found(given, "whole")["suites"]


def refused(given: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert evaluate(given, *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("visalign:")]
    assert len(said) == 1
    return said[0]


def test_a_picture_that_is_missing_is_named(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "redder" / "00001-2.png").unlink()
    said = refused(given, capsys, *both(given))
    assert "lacks 1 of the 12 pictures of prompts: 00001-2 ('a redder thing')" in said
    assert len(list((given / "out" / "made" / "plain" / "prompts").iterdir())) == 3  # what was done is kept


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n half a picture", None])
def test_a_picture_that_is_damaged_is_named(
    given: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = given / "redder" / "00001-2.png"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    assert "00001-2.png" in refused(given, capsys, *both(given))


def test_a_subject_that_is_no_folder_is_not_looked_for_on_the_hub(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    assert "plain/00000-0.png is a file; expected a folder" in refused(given, capsys, "plain/00000-0.png")
    assert "there is no folder plain/typo" in refused(given, capsys, "plain/typo")


def test_an_output_that_is_a_file_is_named(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), output="prompts.txt") == 3
    assert f"{given / 'prompts.txt'}/protocol.json cannot be written: Not a directory" in capsys.readouterr().err


def test_two_pictures_of_one_name_are_refused(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(given / "redder" / "00001-2.png", given / "redder" / "00001-2.jpg")
    assert "have one name" in refused(given, capsys, *both(given))


def test_a_picture_that_changes_is_refused(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate") == 0
    shutil.copy(given / "redder" / "00000-0.png", given / "redder" / "00001-2.png")
    assert "is not what it was" in refused(given, capsys, *both(given))


def test_a_damaged_record_is_named(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate") == 0
    path = given / "out" / "made" / "plain" / "prompts" / "000001.json"
    path.write_text('{"rows": [')
    assert f"{path} is damaged" in refused(given, capsys, *both(given))


def test_other_prompts_do_not_pair(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate") == 0
    (given / "prompts.txt").write_text("\n".join(["a blue thing", *PROMPTS[1:]]), encoding="utf-8")
    assert "another prompts of prompts" in refused(given, capsys, *both(given))


def test_another_seed_does_not_pair(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate") == 0
    assert "another seed (0 there, 7 now)" in refused(given, capsys, *both(given), "--seed", 7)


def test_another_folder_of_the_same_name_is_refused(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(given, *both(given), "--only", "generate") == 0
    shutil.copytree(given / "redder", given / "else")
    (given / "out" / "made" / "redder" / "prompts" / "000002.json").unlink()
    said = refused(given, capsys, given / "plain", f"redder={given / 'else'}")
    assert "were made by something else of that name" in said


def test_a_manifest_says_which_picture_is_whose(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = given / "named"
    named.mkdir()
    lines = []
    for item, prompt in enumerate(PROMPTS):
        for sample in range(SAMPLES):
            shutil.copy(given / "redder" / f"{item:05d}-{sample}.png", named / f"{prompt} {sample}.png")
            lines.append(json.dumps({"prompt": prompt, "media": f"{prompt} {sample}.png"}) + "\n")
    (named / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    assert evaluate(given, given / "redder", named) == 0
    change = found(given)["suites"]["prompts"]["comparisons"]["named"]["changes"][0]["change"]
    assert (change["low"], change["high"]) == (0, 0)
    lines[0] = json.dumps({"prompt": PROMPTS[0], "media": f"{PROMPTS[0]} 0.png", "seed": 5}) + "\n"
    (named / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(given / "out")
    assert "was made from seed 5" in refused(given, capsys, given / "redder", named)
    lines[0] = lines[1]
    (named / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    assert "stands there twice" in refused(given, capsys, given / "redder", named, "--pictures", SAMPLES)


def test_pictures_without_a_score_are_left_out_with_their_partners(given: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(given / "redder" / "00000-0.png")
    (given / "mine.yaml").write_text(
        "type: function\ncall: tests.evals.generation.test_folders:nothing_of_red\n", encoding="utf-8"
    )
    suite = ("--on", "prompts", f"file={given / 'prompts.txt'}", "--pictures", SAMPLES, "--features", "pixels")
    words = ("eval", *both(given), *suite, "--reward", given / "mine.yaml", "--output", given / "out")
    words = (*words, "--only", "generate", "score", "compare")
    assert run([*map(str, words)]) == 0
    suite = found(given)["suites"]["prompts"]
    assert suite["subjects"]["redder"]["unscored"] == 1
    assert "1 of 12 pictures of redder lack a score" in suite["notes"][0]
    assert suite["comparisons"]["redder"]["changes"][0]["pictures"] == 11


def test_a_reward_of_any_range_that_is_the_same_everywhere_has_no_interval(given: Path) -> None:
    """Grey pictures are 0 to a reward for red, which is no share of pictures that are right."""
    shutil.copytree(given / "plain", given / "grey")
    for path in (given / "grey").iterdir():
        Image.new("RGB", (8, 8), "grey").save(path)
    assert evaluate(given, given / "grey", given / "plain") == 0
    suite = found(given)["suites"]["prompts"]
    assert [suite["subjects"]["grey"]["scores"]["colour"][end] for end in ("mean", "low", "high")] == [0, None, None]
    assert suite["subjects"]["plain"]["scores"]["colour"]["low"] is not None
    assert any("colour of grey is 0 for every picture" in note for note in suite["notes"])
    assert not any(change["share"] for change in suite["comparisons"]["plain"]["changes"])


def nothing_of_red(pixels, prompts):
    """Reward: the green level; none for a picture that is all red."""
    score = pixels[:, :, 1].mean((1, 2, 3))
    red = pixels[:, :, 0].flatten(1).amin(1) == 1
    return score.masked_fill(red, float("nan"))
