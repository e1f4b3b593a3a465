"""Prompt files whose records bring more than a text."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from alignment.data.batches import Prompt, inputs_of
from alignment.data.media import find_picture
from alignment.data.prompts import read_prompts
from alignment.errors import DataError


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prompt(path: Path, text: str = "paint it") -> Prompt:
    return Prompt(text, {"image": find_picture(path.parent, path.name)})


def test_a_prompt_is_a_text_and_what_it_brings(tmp_path: Path) -> None:
    red, blue = (prompt(picture(tmp_path / f"{colour}.png", colour)) for colour in ("red", "blue"))
    again = prompt(tmp_path / "red.png")
    assert red == again
    assert hash(red) == hash(again)
    assert red != blue
    assert red != "paint it"
    assert "paint it" != red
    assert len({red, blue, again, "paint it"}) == 3
    assert json.dumps([red]) == '["paint it"]'
    assert type(str(red)) is str


def test_copies_of_a_prompt_bring_the_same(tmp_path: Path) -> None:
    made = prompt(picture(tmp_path / "red.png"))
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(twin, Prompt)
        assert twin == made


def test_records_bring_pictures_and_texts(tmp_path: Path) -> None:
    picture(tmp_path / "frames" / "a.png", size=(8, 6))
    file = jsonl(tmp_path / "p.jsonl", {"prompt": " go left ", "image": "frames/a.png", "negative_prompt": "blur"})
    (made,) = read_prompts(file).texts
    assert made.startswith("go left")
    brought = inputs_of(made)
    assert brought["negative_prompt"] == "blur"
    assert brought["image"].size == (8, 6)
    assert brought["image"].open().getpixel((0, 0)) == (255, 0, 0)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = jsonl(tmp_path / "p.jsonl", {"caption": "go left", "first": "a.png", "image": "not looked at"})
    (made,) = read_prompts(file, columns={"prompt": "caption", "image": "first"}).texts
    assert set(inputs_of(made)) == {"image"}


def test_one_instruction_over_several_pictures_is_no_repeat(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        picture(tmp_path / f"{colour}.png", colour)
    records = [{"prompt": "make it green", "image": f"{colour}.png"} for colour in ("red", "blue", "red")]
    assert len(read_prompts(jsonl(tmp_path / "p.jsonl", *records[:2])).texts) == 2
    with pytest.raises(DataError, match="line 3: repeats line 1"):
        read_prompts(jsonl(tmp_path / "p.jsonl", *records))


def test_every_bad_record_is_told_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    picture(tmp_path / "outside.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "outside.png")
    names = ["a.png", "../outside.png", "link.png", str(tmp_path / "data" / "a.png"), "missing.png"]
    file = jsonl(tmp_path / "data" / "p.jsonl", *({"prompt": f"p{i}", "image": n} for i, n in enumerate(names)))
    with pytest.raises(DataError) as caught:
        read_prompts(file)
    message = str(caught.value)
    assert "line 1:" not in message
    for line, problem in {
        2: "leads out",
        3: "leads out",
        4: "relative to the data file",
        5: "there is no file",
    }.items():
        assert f"line {line}: image: " in message
        assert problem in message


def test_records_are_alike(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "one", "image": "a.png"}, {"prompt": "two"})
    with pytest.raises(DataError, match="line 2: line 1 and this one do not both have image"):
        read_prompts(file)


def embedded(path: Path) -> dict[str, object]:
    return {"bytes": path.read_bytes(), "path": path.name}


def records(folder: Path) -> list[dict[str, object]]:
    return [{"caption": f"go {c}", "first": embedded(picture(folder / f"{c}.png", c))} for c in ("red", "blue")]


def test_parquet_holds_pictures_or_names_them(tmp_path: Path) -> None:
    rows = records(tmp_path)
    columns = {"prompt": "caption", "image": "first"}
    by_name = [row | {"first": f"{name}.png"} for row, name in zip(rows, ("red", "blue"), strict=True)]
    for table in (rows, by_name):
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "p.parquet")
        made = read_prompts(str(tmp_path / "p.parquet"), columns=columns).texts
        assert list(map(str, made)) == ["go red", "go blue"]
        assert [inputs_of(one)["image"].open().getpixel((0, 0)) for one in made] == [(255, 0, 0), (0, 0, 255)]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    rows = records(tmp_path / "pictures")
    features = datasets.Features({"caption": datasets.Value("string"), "first": datasets.Image()})
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "set")
    columns = {"prompt": "caption", "image": "first"}
    prompts = read_prompts(str(tmp_path / "set"), columns=columns).texts
    assert [inputs_of(one)["image"].open().getpixel((0, 0)) for one in prompts] == [(255, 0, 0), (0, 0, 255)]
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"several splits.*test or .*train"):
        read_prompts(str(tmp_path / "splits"), columns=columns)


def test_what_is_damaged_in_a_saved_dataset_is_named(tmp_path: Path) -> None:
    """A byte anywhere may be wrong, and arrow believes what a file says of its own texts until it is asked to look."""
    made = datasets.Dataset.from_list([{"prompt": f"a cat {number}"} for number in range(4)])
    made.save_to_disk(tmp_path, num_shards=2)
    victim = tmp_path / "data-00001-of-00002.arrow"
    whole = victim.read_bytes()
    texts = whole.index(b"a cat")
    for damaged in (b"", whole[:100], whole[:texts], whole[:texts] + b"\xff" + whole[texts + 1 :],
                    *(whole[:at] + b"\x7f" * 4 + whole[at + 4 :] for at in range(0, len(whole) - 4, 12))):  # fmt: skip
        victim.unlink()  # the one that was there may still be mapped
        victim.write_bytes(damaged)
        said = ""
        try:
            read_prompts(str(tmp_path))
        except DataError as error:
            said = str(error)
        assert not said or str(victim) in said or "row" in said
    victim.unlink()
    with pytest.raises(DataError, match=re.escape(str(victim))):
        read_prompts(str(tmp_path))
    for told in ({"_data_files": 3}, {"_data_files": [{"filename": 3}]}, [], {}):
        (tmp_path / "state.json").write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(DataError, match=r"no readable state\.json"):
            read_prompts(str(tmp_path))


def test_an_image_folder_is_read_by_its_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png", "prompt": "go left"})
    (made,) = read_prompts(str(tmp_path)).texts
    assert inputs_of(made)["image"].path == (tmp_path / "a.png").resolve()


def test_files_that_are_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "empty").mkdir()
    for name, problem in {"p.parquet": "cannot be read as Parquet", "empty": "is not a folder that `datasets`"}.items():
        with pytest.raises(DataError, match=problem):
            read_prompts(str(tmp_path / name))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file that has no end")
@pytest.mark.parametrize("name", ["mine", "mine.txt", "mine.jsonl", "mine.parquet"])
def test_what_has_no_end_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{name} cannot be read.*: .*it is a device or a pipe, which may have no end"):
        read_prompts(str(tmp_path / name))


def test_so_much_text_is_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_models.loading.whole_files.BYTES_AT_MOST", 12)
    (tmp_path / "mine.txt").write_bytes(b"a cat\na dog\n")
    assert len(read_prompts(str(tmp_path / "mine.txt")).texts) == 2
    (tmp_path / "mine.txt").write_bytes(b"a cat\na dog\n\n")
    with pytest.raises(DataError, match=r"cannot be read: it has more than 12 bytes"):
        read_prompts(str(tmp_path / "mine.txt"))
