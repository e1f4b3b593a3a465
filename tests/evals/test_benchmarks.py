"""Every benchmark reads its publishers' layout, and says what is wrong with one that is not it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignment.config import build
from alignment.data.parquet import write_rows
from alignment.errors import DataError, VisalignError
from alignment.reports.pictures import encode_clip
from evals.benchmarks.base import Benchmark, Comparison
from evals.listing import benchmarks

NAMES = [entry.name for entry in benchmarks()]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder: Path, *names: str) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(shade))


def dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def table(path: Path, records: list[dict[str, Any]]) -> None:
    write_rows(path, records)


def hpdv2(folder: Path) -> dict[str, object]:
    put(folder, "test/a.jpg", "test/b.jpg", "test/c.jpg")
    dump(folder / "test.json", [{"prompt": "p", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [2, 0, 0]}])
    return {"folder": folder, "human": [-1, -1, 0]}


def hpdv3(folder: Path) -> dict[str, object]:
    put(folder, "x/1.png", "x/2.png")
    dump(folder / "test.json", [{"prompt": "p", "path1": "x/1.png", "path2": "x/2.png"}] * 2)
    return {"folder": folder, "human": [1, -1]}


def imagereward_db(folder: Path) -> dict[str, object]:
    put(folder, "test_images/a.png", "test_images/b.png", "test_images/c.png")
    record = {"id": "7", "prompt": "p", "generations": ["a.png", "b.png", "c.png"], "ranking": [1, 2, 2]}
    dump(folder / "test.json", [record])
    return {"folder": folder, "human": [1, 1, 0]}


def pickapic(folder: Path) -> dict[str, object]:
    rows = [
        {"caption": "p", "jpg_0": png(0), "jpg_1": png(1), "label_0": v, "has_label": True} for v in (1.0, 0.5, 0.0)
    ]
    table(folder / "test_unique-00000.parquet", [*rows, {**rows[0], "has_label": False}])
    return {"folder": folder, "human": [1, 0, -1]}


def genai_bench(folder: Path) -> dict[str, object]:
    put(folder, "l.png", "r.png")
    votes = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    sides = {"left_image": "l.png", "right_image": "r.png"}
    dump(folder / "image_generation.json", [{"prompt": "p", **sides, "vote_type": vote} for vote in votes])
    return {"folder": folder, "human": [1, -1, 0, 0]}


def videogen_rewardbench(folder: Path) -> dict[str, object]:
    for i, name in enumerate(("a.mp4", "b.mp4")):
        (folder / name).write_bytes(encode_clip([Image.new("RGB", (16, 16), (i * 90, 0, 0))] * 4, 8))
    rows = ["path_A,path_B,prompt,Overall", *(f"a.mp4,b.mp4,p,{said}" for said in ("A", "B", "same"))]
    (folder / "videogen-rewardbench.csv").write_text("\n".join(rows), encoding="utf-8")
    return {"folder": folder, "human": [1, -1, 0]}


def mj_bench(folder: Path) -> dict[str, object]:
    for split in ("alignment", "safety", "quality"):
        cells = {"image0": {"bytes": png(0)}, "image1": {"bytes": png(1)}}
        table(folder / f"{split}-0.parquet", [{"caption": "p", **cells, "label": label} for label in (0, 1)])
    return {"folder": folder, "human": [1, -1] * 3}


def multimodal_rewardbench2(folder: Path) -> dict[str, object]:
    put(folder, "a.png", "b.png")
    pair = {
        "id": "1", "prompt_content": [["text", "p"]], "chosen": "B",
        **{f"response_{s}": {"response_content": [["image", f"{s}.png"]]} for s in "ab"},
    }  # fmt: skip
    dump(folder / "t2i.json", {"pairs": [pair]})
    return {"folder": folder, "human": [-1]}


def pairs(folder: Path) -> dict[str, object]:
    put(folder, "a.png", "b.png")
    lines = [
        {"prompt": "p", "first": "a.png", "second": "b.png", "preferred": said} for said in ("first", "second", "tie")
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return {"file": folder / "pairs.jsonl", "human": [1, -1, 0]}


def shapes(folder: Path) -> dict[str, object]:
    return {"pairs": 6, "human": None}


MADE: dict[str, Callable[[Path], dict[str, object]]] = {
    made.__name__: made
    for made in (hpdv2, hpdv3, imagereward_db, pickapic, genai_bench, videogen_rewardbench, mj_bench,
                 multimodal_rewardbench2, pairs, shapes)
}  # fmt: skip


def read(name: str, fields: dict[str, object]) -> list[Comparison]:
    return build.of_kind(Benchmark, name, [f"{key}={value}" for key, value in fields.items()]).read()


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_its_layout(name: str, tmp_path: Path) -> None:
    fields = MADE[name](tmp_path)
    human = fields.pop("human")
    found = read(name, fields)
    assert human is None or [c.human for c in found] == human
    for comparison in found:
        for medium in (comparison.first, comparison.second):
            pixels = medium.pixels()
            assert pixels.shape[1] == 3
            assert 0 <= pixels.min() <= pixels.max() <= 1
        assert comparison.prompt
        assert comparison.unit


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"shapes", "pickapic", "mj_bench"}))
@pytest.mark.parametrize("damage", ["no JSON {", "{}", '[{"other": 1}]', "other,columns\n1,2"])
def test_a_file_of_another_layout_is_named(name: str, damage: str, tmp_path: Path) -> None:
    fields = MADE[name](tmp_path)
    fields.pop("human")
    (index,) = [file for file in tmp_path.iterdir() if file.suffix in (".json", ".jsonl", ".csv")]
    index.write_text(damage, encoding="utf-8")
    with pytest.raises(DataError, match=index.name):
        read(name, fields)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"shapes"}))
def test_a_folder_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    field = "file" if name == "pairs" else "folder"
    with pytest.raises(VisalignError, match=str(tmp_path / "nothing")):
        read(name, {field: tmp_path / "nothing" / "x.jsonl"})


@pytest.mark.parametrize("name", ["pickapic", "mj_bench"])
def test_a_folder_without_its_tables_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}: it holds no file like \w+\*\.parquet"):
        read(name, {"folder": tmp_path})


WRONG = (None, 3, "x", ["x"], {"x": 1})


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"shapes", "pickapic", "mj_bench", "videogen_rewardbench"}))
def test_a_field_of_another_kind_is_one_message(name: str, tmp_path: Path) -> None:
    fields = MADE[name](tmp_path)
    fields.pop("human")
    (index,) = [file for file in tmp_path.iterdir() if file.suffix in (".json", ".jsonl")]
    lines = index.suffix == ".jsonl"
    text = index.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    record = (found["pairs"] if name == "multimodal_rewardbench2" else found)[0]
    for key, right in list(record.items()):
        for wrong in WRONG:
            record[key] = wrong
            index.write_text("\n".join(map(json.dumps, found)) if lines else json.dumps(found), encoding="utf-8")
            with contextlib.suppress(DataError):  # some are as good as what was there; nothing else may be raised
                read(name, fields)
        record[key] = right


def test_a_table_of_another_kind_is_one_message(tmp_path: Path) -> None:
    row = {"caption": "p", "jpg_0": png(0), "jpg_1": png(1), "label_0": 1.0, "has_label": True}
    for key, wrong in (("caption", 3), ("jpg_0", "text"), ("label_0", None)):
        table(tmp_path / "test_unique-0.parquet", [{**row, key: wrong}])
        with pytest.raises(DataError, match=rf"{tmp_path}, record 1: '{key}' is"):
            read("pickapic", {"folder": tmp_path})


def test_media_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path, "a.png", "b.png")
    line = {"prompt": "p", "first": "../a.png", "second": "../b.png", "preferred": "tie"}
    (tmp_path / "in" / "pairs.jsonl").write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(DataError, match="leads out of"):
        read("pairs", {"file": tmp_path / "in" / "pairs.jsonl"})


def test_the_drawn_benchmark_is_the_same_every_time_and_knows_its_order() -> None:
    first, again = (read("shapes", {"pairs": 12}) for _ in range(2))
    assert [c.first.digest for c in first] == [c.first.digest for c in again]
    assert {c.part for c in first} == {"colour", "shape", "count", "blur", "noise", "tie"}
    assert {c.human for c in read("shapes", {"pairs": 60})} == {-1, 0, 1}
    assert all((c.human == 0) == (c.part == "tie") for c in first)
