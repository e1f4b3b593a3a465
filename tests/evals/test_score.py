"""`visalign rewards score`: every medium once, continued where it stopped, and honest about what it cannot read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from alignment.cli.main import run
from alignment.data.parquet import read_rows

PROMPTS = ("a red circle", "two blue squares", "three green triangles")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    for i in range(len(PROMPTS)):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [{"prompt": prompt, "media": f"{i}.png", "id": i} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def score(*words: object) -> int:
    return run(["rewards", "score", *map(str, words)])


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_comes_back_with_its_score(given: Path) -> None:
    assert score("colour", "--input", given / "in.jsonl", "--output", given / "out.jsonl") == 0
    found = lines(given / "out.jsonl")
    assert [(line["prompt"], line["id"]) for line in found] == [(p, i) for i, p in enumerate(PROMPTS)]
    scores = [line["score"] for line in found]
    assert scores == sorted(scores)
    assert scores[0] == 0


def test_a_reward_that_reads_no_prompts_asks_for_none(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = given / "bare.jsonl"
    bare.write_text("".join(f'{{"media": "{i}.png"}}\n' for i in range(len(PROMPTS))))
    assert score("colour", "--input", bare, "--output", given / "out.jsonl") == 0
    assert [sorted(line) for line in lines(given / "out.jsonl")] == [["media", "score"]] * len(PROMPTS)
    assert score("colour", "--input", given, "--output", given / "folder.jsonl") == 0
    scores = [[line["score"] for line in lines(given / name)] for name in ("out.jsonl", "folder.jsonl")]
    assert scores[0] == scores[1]
    assert score("shapes", "--input", bare, "--output", given / "refused.jsonl") == 2
    assert "there is no 'prompt'" in capsys.readouterr().err
    assert score("shapes", "--input", bare, "--prompt", PROMPTS[0], "--output", given / "given.jsonl") == 0


PARTS = """\
type: weighted
parts:
  warmth: {reward: {type: colour}, weight: 2.0}
  size: {reward: {type: jpeg}, weight: 0.0}
"""


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_parts_of_a_score_are_written_beside_it(given: Path, ending: str) -> None:
    (given / "mine.yaml").write_text(PARTS, encoding="utf-8")
    output = given / f"out.{ending}"
    assert score(given / "mine.yaml", "--input", given / "in.jsonl", "--output", output) == 0
    if ending == "jsonl":
        found = lines(output)
    elif ending == "csv":
        with output.open(encoding="utf-8") as file:
            found = [{name: float(row[name]) for name in row if "score" in name} for row in csv.DictReader(file)]
    else:
        found = list(read_rows(output))
    for row in found:
        assert row["score"] == pytest.approx(2.0 * row["score/warmth"])
        assert row["score/size"] < 0


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_other_forms_say_the_same(given: Path, ending: str) -> None:
    for form in ("jsonl", ending):
        assert score("colour", "--input", given / "in.jsonl", "--output", given / f"out.{form}") == 0
    expected = [line["score"] for line in lines(given / "out.jsonl")]
    if ending == "csv":
        with (given / "out.csv").open(encoding="utf-8") as file:
            found = [float(row["score"]) for row in csv.DictReader(file)]
    else:
        found = [row["score"] for row in read_rows(given / "out.parquet")]
    assert found == expected
    assert not list(given.glob("*.partial*"))


@pytest.mark.parametrize("other", ["text", {}, 2**70])
def test_what_parquet_cannot_hold_is_one_line_and_keeps_the_scores(
    given: Path, capsys: pytest.CaptureFixture[str], other: object
) -> None:
    mixed = given / "mixed.jsonl"
    records = [{"media": "0.png", "id": 1}, {"media": "1.png", "id": other}]
    mixed.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = says(capsys, "colour", "--input", mixed, "--output", given / "out.parquet")
    assert "out.parquet cannot be written as Parquet" in said
    assert "kept in " in said
    assert all(line["score"] is not None for line in lines(given / "out.parquet.partial.jsonl"))


def test_a_prompt_that_is_not_text_is_one_line(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "0.txt").write_bytes(b"\xff\xfe")
    assert "0.txt is not UTF-8 text" in says(capsys, "colour", "--input", given, "--output", given / "out.jsonl")


def test_it_continues_after_a_torn_line(given: Path) -> None:
    words = ("colour", "--input", given / "in.jsonl", "--output", given / "out.jsonl", "--batch-size", 1)
    assert score(*words) == 0
    whole = (given / "out.jsonl").read_text(encoding="utf-8")
    (given / "out.jsonl").write_text(whole[: len(whole) // 2], encoding="utf-8")
    assert score(*words) == 0
    assert (given / "out.jsonl").read_text(encoding="utf-8") == whole


def test_a_folder_takes_prompts_from_texts_beside_the_pictures(given: Path) -> None:
    for i, prompt in enumerate(PROMPTS[:2]):
        (given / f"{i}.txt").write_text(prompt, encoding="utf-8")
    assert score("colour", "--input", given, "--output", given / "out.jsonl", "--prompt", "a red circle") == 0
    assert [line["prompt"] for line in lines(given / "out.jsonl")] == [*PROMPTS[:2], "a red circle"]


def says(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert score(*words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_another_reward_does_not_continue_the_file(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert score("colour", *words) == 0
    assert "another reward" in says(capsys, "jpeg", *words)


def test_another_input_does_not_continue_the_file(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("colour", "--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert score(*words) == 0
    text = (given / "in.jsonl").read_text(encoding="utf-8")
    (given / "in.jsonl").write_text(text.replace("two blue", "two white"), encoding="utf-8")
    assert "another input" in says(capsys, *words)


def test_a_damaged_picture_stops_it_or_is_left_out(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "1.png").write_bytes((given / "1.png").read_bytes()[:40])
    words = ("colour", "--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert "1.png" in says(capsys, *words)
    assert score(*words, "--on-error", "skip") == 0
    found = lines(given / "out.jsonl")
    assert [line["score"] is None for line in found] == [False, True, False]
    assert "1.png" in str(found[1]["error"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--output", "out.xls"), ".jsonl, .csv, .parquet"),
        (("--input", "nothing.jsonl"), "nothing.jsonl"),
        (("--input", "empty"), "no pictures"),
    ],
)
def test_bad_words_are_one_message(
    given: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(given)
    (given / "empty").mkdir()
    options = {"--input": "in.jsonl", "--output": "out.jsonl", **dict([words])}
    assert expected in says(capsys, "colour", *(word for pair in options.items() for word in pair))


def test_a_reward_that_refuses_the_prompts_says_so_first(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (given / "in.jsonl").read_text(encoding="utf-8")
    (given / "in.jsonl").write_text(text.replace("a red circle", "a red cat"), encoding="utf-8")
    assert "a red cat" in says(capsys, "shapes", "--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert not (given / "out.jsonl").exists()


def test_a_medium_that_the_reward_refuses_is_named_or_left_out(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 1)).save(given / "1.png")
    words = ("sharpness", "--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert "1.png" in says(capsys, *words)
    assert score(*words, "--on-error", "skip") == 0
    found = lines(given / "out.jsonl")
    assert [line["score"] is None for line in found] == [False, True, False]
    assert "3 pixels" in str(found[1]["error"])


def test_a_reward_that_refuses_everything_is_an_error(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(len(PROMPTS)):
        Image.new("RGB", (1, 1)).save(given / f"{i}.png")
    words = ("sharpness", "--input", given / "in.jsonl", "--on-error", "skip")
    for output, size in (("together", 16), ("alone", 1)):
        said = says(capsys, *words, "--batch-size", size, "--output", given / f"{output}.jsonl")
        assert ("3 pixels" if size > 1 else "none of 3 media") in said


def test_a_run_that_scored_nothing_does_not_bind_the_next(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--input", given / "in.jsonl", "--output", given / "out.jsonl")
    content = (given / "0.png").read_bytes()
    (given / "0.png").write_bytes(content[:40])
    says(capsys, "colour", *words, "--batch-size", 1)
    (given / "0.png").write_bytes(content)
    assert score("jpeg", *words) == 0


@pytest.mark.parametrize("action", ["score", "bench"])
@pytest.mark.parametrize(
    ("device", "code"),
    [("tpu", 2), ("meta", 2), pytest.param("cuda:99", 3)],
)
def test_a_device_that_is_not_there_is_one_message(
    given: Path, capsys: pytest.CaptureFixture[str], action: str, device: str, code: int
) -> None:
    media = ("--input", given / "in.jsonl") if action == "score" else ()
    words = ("rewards", action, "colour", *media, "--output", given / "out.jsonl", "--device", device)
    assert run(list(map(str, words))) == code
    assert f"--device {device}" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["score", "bench"])
def test_a_place_that_cannot_be_written_is_one_message(
    given: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    (given / "file").touch()
    media = ("--input", given / "in.jsonl") if action == "score" else ()
    words = ("rewards", action, "colour", *media, "--output", given / "file" / "out.jsonl")
    assert run(list(map(str, words))) == 3
    assert "out.jsonl cannot be" in capsys.readouterr().err


def test_half_a_character_is_no_prompt(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "in.jsonl").write_text('{"prompt": "\\ud800", "media": "0.png"}\n', encoding="utf-8")
    assert "record 1" in says(capsys, "jpeg", "--input", given / "in.jsonl", "--output", given / "out.jsonl")
    assert "--prompt" in says(capsys, "jpeg", "--input", given, "--prompt", "\udc80", "--output", given / "out.jsonl")
