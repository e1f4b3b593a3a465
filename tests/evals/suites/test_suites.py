"""Suites are read from copies in their publishers' layout; what is missing is named, with its licence and its place."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import Image

from alignment.config import build, registry
from alignment.data.batches import source_of
from alignment.data.media import leads_out
from alignment.data.parquet import write_rows
from alignment.errors import DataError
from evals.suites.base import Suite
from evals.suites.clips.motion import Motion
from evals.suites.pictures.geneval import GenEval
from evals.suites.pictures.shapes import Shapes

LOCAL = (
    "geneval", "parti_prompts", "drawbench", "hpdv2", "t2i_compbench", "dpg_bench", "vbench", "wise", "oneig",
    "geneval2", "hpdv3", "ocr", "videogen", "physics_iq", "imgedit", "gedit",
)  # fmt: skip


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Two prompts or so of each, with the traps of the real files: quotation marks, line ends, repetitions."""
    geneval = [{"tag": "two_object", "include": [], "prompt": f"a photo of a {kind}"} for kind in ("cat", "dog")]
    write(tmp_path, "geneval/prompts/evaluation_metadata.jsonl", "".join(json.dumps(one) + "\n" for one in geneval))
    parti = 'Prompt\tCategory\tChallenge\tNote\n"hi" said a cat\tAnimals\tQuantity\t\nbread\tFood\tBasic\t\n'
    write(tmp_path, "parti_prompts/PartiPrompts.tsv", parti)
    write(
        tmp_path, "drawbench/drawbench.csv", 'Prompts,Category\n"a cat, red",Colors\na dog,Counting\na dog,Counting\n'
    )
    for style in ("anime", "concept-art", "paintings", "photo"):
        write(tmp_path, f"hpdv2/benchmark/{style}.json", json.dumps([f"{style} cat", f"{style} dog"]))
    for part in ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex"):
        write(tmp_path, f"t2i_compbench/examples/dataset/{part}_val.txt", f"a {part} cat.\r\na {part} dog\r\n")
    for name in ("7", "COCOval2014"):
        write(tmp_path, f"dpg_bench/prompts/{name}.txt", f"a long prompt, {name}\n")
    vbench = [
        {"prompt_en": "a cat {runs}", "dimension": ["motion_smoothness", "dynamic_degree"]},
        {"prompt_en": "a dog", "dimension": ["color"]},
    ]
    write(tmp_path, "vbench/VBench_full_info.json", json.dumps(vbench))
    wise = [{"Prompt": "what falls in autumn", "prompt_id": 2, "Category": "Time"}]
    write(tmp_path, "wise/spatio-temporal_reasoning.json", json.dumps(wise))
    write(tmp_path, "wise/cultural_common_sense.json", json.dumps([{**wise[0], "prompt_id": 1, "Category": "Culture"}]))
    rows = 'Portrait,000,a woman,\nPortrait,001,"a man, old",\nText_Rendering,000,a sign,long\n'
    write(tmp_path, "oneig/OneIG-Bench.csv", f"category,id,prompt_en,class\n{rows}")
    atoms = [
        {
            "prompt": "four white cats",
            "atom_count": 3,
            "vqa_list": [["Are there any cats?", "Yes"]],
            "skills": ["object"],
        },
        {"prompt": "a dog", "atom_count": 1, "vqa_list": [], "skills": []},
    ]
    write(tmp_path, "geneval2/geneval2_data.jsonl", "".join(json.dumps(one) + "\n" for one in atoms))
    for kind in (
        "Characters", "Arts", "Design", "Architecture", "Animals", "Natural Scenery", "Transportation", "Products",
        "Plants", "Food", "Science", "Others",
    ):  # fmt: skip
        told = [{"caption": f"{kind} in the rain", "image_path": "x.png"}]
        write(tmp_path, f"hpdv3/benchmark/benchmark_{kind}.json", json.dumps(told))
    write(tmp_path, "ocr/dataset/ocr/test.txt", 'a sign that says "Open"\r\na "Hello" and a "World"\n')
    write_of_clips(tmp_path)
    write_edits(tmp_path)
    return tmp_path


def write_of_clips(copies: Path) -> None:
    for part in ("videogen_eval", "vbench"):
        rows = f'"a {part} cat, long",a cat,猫\n"a {part} dog",a dog,狗\n'
        write(copies, f"videogen/datasets/video_eval_prompts/{part}.csv", f"prompt,prompt_shorter,prompt_zh\n{rows}")
    write(copies, "videogen/datasets/video_eval_prompts/TA_hard.csv", "prompt,prompt_zh\na cat bakes,猫\n")
    rows = "".join(
        f'{4 * take + side:04d}_perspective-{name}_take-{take + 1}_trimmed-duck.mp4,"a duck, hit",Optics,'
        f"{4 * take + side:04d}_perspective-{name}_trimmed-duck.mp4\n"
        for take in (0, 1)
        for side, name in enumerate(("left", "center", "right"), start=1)
    )
    write(
        copies,
        "physics_iq/descriptions/descriptions.csv",
        f"scenario,description,category,generated_video_name\n{rows}",
    )
    for side, name in enumerate(("left", "center", "right"), start=1):
        frame = f"{side:04d}_switch-frames_anyFPS_perspective-{name}_trimmed-duck.jpg"
        paint(copies / "physics_iq" / "physics-IQ-benchmark" / "switch-frames" / frame, side)


def write_edits(copies: Path) -> None:
    """One instruction for two pictures, and two for one."""
    asked = {
        "12": ("animal/1.jpg", "make it red"),
        "7": ("animal/2.jpg", "make it red"),
        "8": ("animal/2.jpg", "cut it out"),
    }
    edits = {key: {"id": one, "prompt": what, "edit_type": "alter"} for key, (one, what) in asked.items()}
    write(copies, "imgedit/Benchmark/singleturn/singleturn.json", json.dumps(edits))
    for number in (1, 2):
        paint(copies / "imgedit" / "Benchmark" / "singleturn" / "animal" / f"{number}.jpg", number)
    rows = [
        {"task_type": task, "key": key, "instruction": f"{task} {language}", "instruction_language": language}
        | {
            name: {"bytes": painted(shade), "path": None}
            for name, shade in (("input_image", 1), ("input_image_raw", 2))
        }
        for task, key in (("style_change", "a1"), ("subject-add", "b2"))
        for language in ("en", "cn")
    ]
    (copies / "gedit" / "data").mkdir(parents=True)
    write_rows(copies / "gedit" / "data" / "train-00000-of-00001.parquet", rows)


def painted(shade: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8 * shade, 8), (20 * shade, 0, 0)).save(held, "PNG")
    return held.getvalue()


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(painted(shade))


def suite(copies: Path, name: str) -> Suite:
    return build.of_kind(Suite, name, [f"folder={copies / name}"])


PHYSICS = "scenario,description,category,generated_video_name\n"
EXPECTED = {
    "geneval": ("a photo of a dog", "two_object", "00001/samples/0003"),
    "parti_prompts": ('"hi" said a cat', "Animals", None),
    "drawbench": ("a cat, red", "Colors", None),
    "hpdv2": ("concept-art dog", "concept-art", "concept-art/00001"),
    "t2i_compbench": ("a color cat.", "color", None),
    "dpg_bench": ("a long prompt, 7", "", None),
    "vbench": ("a cat {runs}", "motion_smoothness", "a cat {runs}-3"),
    "wise": ("what falls in autumn", "Time", "2"),
    "oneig": ("a man, old", "human", None),
    "geneval2": ("four white cats", "3 statements", None),
    "hpdv3": ("Natural Scenery in the rain", "Natural Scenery", None),
    "ocr": ('a "Hello" and a "World"', "", None),
    "videogen": ("a vbench cat, long", "vbench", None),
    "physics_iq": ("a duck, hit", "Optics", "0002_perspective-center_trimmed-duck"),
    "imgedit": ("cut it out", "alter", "8"),
    "gedit": ("style_change en", "style_change", "fullset/style_change/en/a1"),
}
COUNTS = dict(zip(LOCAL, (2, 2, 2, 8, 16, 2, 2, 2, 3, 2, 12, 2, 5, 3, 3, 2), strict=True))


@pytest.mark.parametrize("name", LOCAL)
def test_prompts_categories_and_names_of_files(copies: Path, name: str) -> None:
    items = suite(copies, name).items()
    prompt, category, file = EXPECTED[name]
    assert len(items) == COUNTS[name]
    found = [item for item in items if str(item.prompt) == prompt and item.category == category]
    files = [[one.format(k=3) for one in item.files][:1] for item in found]
    assert ([] if file is None else [file]) in files
    assert len(found) == (3 if name == "physics_iq" else 1)


@pytest.mark.parametrize("name", LOCAL)
def test_a_missing_copy_is_named_with_its_licence_and_its_place(tmp_path: Path, name: str) -> None:
    for folder, what in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "it has no")):
        asked = build.of_kind(Suite, name, [f"folder={folder}"])
        with pytest.raises(DataError) as raised:
            asked.items()
        for said in (str(folder), what, asked.licence, asked.place, "nothing is downloaded"):
            assert said in str(raised.value)


def test_every_suite_says_where_it_is_from() -> None:
    for name in registry.known(Suite):
        kind = registry.find(Suite, name)
        assert kind.pictures >= 1
        if name != "prompts":
            assert kind.licence, name
        if name in LOCAL:
            assert kind.place, name
    assert set(LOCAL) | {"shapes", "motion", "prompts"} == set(registry.known(Suite))


TWICE = "0001_perspective-left_take-1_trimmed-duck.mp4,x,Optics,x.mp4\n"


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("geneval", "prompts/evaluation_metadata.jsonl", '{"tag": "x"}\n'),
        ("parti_prompts", "PartiPrompts.tsv", "Text\tCategory\na\tb\n"),
        ("hpdv2", "benchmark/photo.json", "{}"),
        ("dpg_bench", "prompts/7.txt", "\n"),
        ("vbench", "VBench_full_info.json", '[{"prompt_en": 3, "dimension": []}]'),
        ("wise", "cultural_common_sense.json", '[{"Prompt": "x", "prompt_id": 2}]'),
        ("oneig", "OneIG-Bench.csv", "category,id,prompt_cn\nPortrait,000,x\n"),
        ("oneig", "OneIG-Bench.csv", "category,id,prompt_en\nPortraits,000,x\n"),
        ("oneig", "OneIG-Bench.csv", "category,id,prompt_en\nPortrait,000,x\nPortrait,000,y\n"),
        ("geneval2", "geneval2_data.jsonl", '{"prompt": "x"}\n'),
        ("hpdv3", "benchmark/benchmark_Natural Scenery.json", '[{"prompt": "x"}]'),
        ("ocr", "dataset/ocr/test.txt", 'a "sign"\na cat\n'),
        ("videogen", "datasets/video_eval_prompts/TA_hard.csv", "text\nx\n"),
        ("videogen", "datasets/video_eval_prompts/TA_hard.csv", "prompt,prompt_zh\na red, quick fox,x\n"),
        ("videogen", "datasets/video_eval_prompts/TA_hard.csv", 'prompt,prompt_zh\n"a red fox,x\nb,y\n'),
        ("physics_iq", "descriptions/descriptions.csv", "scenario,description\nx,y\n"),
        ("physics_iq", "descriptions/descriptions.csv", f"{PHYSICS}take-1.mp4,x,Optics,x.mp4\n"),
        ("physics_iq", "descriptions/descriptions.csv", f"{PHYSICS}1_left_take-2_duck.mp4,x,Optics,x.mp4\n"),
        ("physics_iq", "descriptions/descriptions.csv", f"{PHYSICS}{TWICE}{TWICE}"),
        ("imgedit", "Benchmark/singleturn/singleturn.json", "[]"),
        ("imgedit", "Benchmark/singleturn/singleturn.json", '{"1": {"id": "animal/1.jpg", "prompt": "x"}}'),
        ("gedit", "data/train-00000-of-00001.parquet", "not a table"),
    ],
)
def test_half_a_copy_is_named(copies: Path, name: str, file: str, text: str) -> None:
    write(copies, f"{name}/{file}", text)
    with pytest.raises(DataError, match=Path(file).stem if name != "wise" else "occurs twice"):
        suite(copies, name).items()


@pytest.mark.parametrize("name", LOCAL)
def test_a_key_that_stands_twice_is_named(copies: Path, name: str) -> None:
    """What a publisher's JSON says of a key a second time would take the place of what it said first."""
    for path in (copies / name).rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        key = re.search(r'{("\w+")', text)
        if key is None:  # a list of texts
            continue
        path.write_text(text.replace("{", "{" + f"{key[1]}: 0, ", 1), encoding="utf-8")
        with pytest.raises(DataError) as raised:
            suite(copies, name).items()
        for said in (str(path), f"the key {key[1]}".replace('"', "'"), "is given twice"):
            assert said in str(raised.value)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("word", ["../../outside", "/outside", "{outside}"])
@pytest.mark.parametrize("name", LOCAL)
def test_no_word_of_a_copy_leads_out_of_it(copies: Path, name: str, word: str) -> None:
    """Each word in the files of a copy is swapped for a path that leads elsewhere, one after the other."""
    texts = [path for path in (copies / name).rglob("*") if path.suffix not in (".jpg", ".parquet") and path.is_file()]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for said in dict.fromkeys(re.findall(r"[\w./-]+", text)):
            path.write_text(re.sub(rf"(?<![\w./-]){re.escape(said)}(?![\w./-])", word, text), encoding="utf-8")
            check_inside(copies, name)
        path.write_text(text, encoding="utf-8")
    for path in (copies / name).rglob("*.parquet"):
        rows = pyarrow.parquet.read_table(path).to_pylist()
        for column in [column for column, held in rows[0].items() if isinstance(held, str)]:
            write_rows(path, [{**rows[0], column: word}])
            check_inside(copies, name)
        write_rows(path, [{**rows[0], "input_image": {"bytes": None, "path": word}}])
        check_inside(copies, name)


def check_inside(copies: Path, name: str) -> None:
    """See that names stay inside, or that the file is named which holds another one."""
    said, items = str(copies / name), []
    try:
        items = suite(copies, name).items()
    except DataError as error:
        said = str(error)
    assert str(copies / name) in said
    for file in (one.format(k=0) for item in items for one in item.files):
        assert not leads_out(file)


@pytest.mark.parametrize(("name", "sizes"), [("physics_iq", [8, 16, 24]), ("imgedit", [8, 16, 16]), ("gedit", [8, 8])])
def test_what_a_picture_is_made_from_belongs_to_its_prompt(copies: Path, name: str, sizes: list[int]) -> None:
    sources = [source_of(item.prompt) for item in suite(copies, name).items()]
    assert [source and source.size for source in sources] == [(width, 8) for width in sizes]


def test_columns_languages_and_other_places(copies: Path) -> None:
    def prompts(name: str, *words: str) -> list[str]:
        return [str(item.prompt) for item in build.of_kind(Suite, name, list(words)).items()]

    clips = (f"folder={copies / 'videogen'}", "sets=[videogen_eval]")
    assert prompts("videogen", *clips, "wording=prompt_zh") == ["猫", "狗"]
    with pytest.raises(DataError, match=r"TA_hard.csv, row 1: there is no 'prompt_shorter'; it has prompt, prompt_zh"):
        prompts("videogen", clips[0], "sets=[TA_hard]", "wording=prompt_shorter")
    assert prompts("gedit", f"folder={copies / 'gedit'}", "language=cn") == ["style_change cn", "subject-add cn"]
    raw = build.of_kind(Suite, "gedit", [f"folder={copies / 'gedit'}", "original=input_image_raw"]).items()
    assert [source_of(item.prompt).size for item in raw] == [(16, 8)] * 2
    # The repository has the edits without the pictures.
    edits = (copies / "imgedit" / "Benchmark" / "singleturn" / "singleturn.json").read_text(encoding="utf-8")
    write(copies, "repository/Benchmark/Basic/basic_edit.json", edits)
    words = (f"folder={copies / 'repository'}", f"originals={copies / 'imgedit' / 'Benchmark' / 'singleturn'}")
    assert prompts("imgedit", *words) == ["make it red", "make it red", "cut it out"]
    with pytest.raises(
        DataError, match=r"edit 12: there is no file .*1\.jpg. ImgEdit is read from a copy of .*Benchmark.tar"
    ):
        prompts("imgedit", words[0])


def test_a_data_set_is_read_from_its_arrow_files(copies: Path) -> None:
    (parquet,) = copies.glob("gedit/data/*.parquet")
    found = pyarrow.parquet.read_table(parquet)
    with pyarrow.ipc.new_stream(str(parquet.with_suffix(".arrow")), found.schema) as stream:
        stream.write_table(found)
    before = suite(copies, "gedit").items()
    parquet.unlink()
    assert suite(copies, "gedit").items() == before
    whole = parquet.with_suffix(".arrow").read_bytes()
    parquet.with_suffix(".arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.arrow is damaged"):
        suite(copies, "gedit").items()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("physics_iq/physics-IQ-benchmark/switch-frames/0001_switch-frames_anyFPS_perspective-left_trimmed-duck.jpg",
         "descriptions.csv, row 1"),
        ("imgedit/Benchmark/singleturn/animal/1.jpg", "singleturn.json, edit 12"),
    ],
)  # fmt: skip
def test_a_picture_that_is_missing_or_damaged_is_named(copies: Path, place: str, said: str) -> None:
    name = place.partition("/")[0]
    for content, what in ((painted(1)[:50], "is damaged or truncated"), (None, "there is no file")):
        (copies / place).unlink()
        if content is not None:
            (copies / place).write_bytes(content)
        with pytest.raises(DataError) as raised:
            suite(copies, name).items()
        for words in (said, what, Path(place).name, "is read from a copy of"):
            assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_descriptions_without_frames_are_no_copy(copies: Path) -> None:
    shutil.rmtree(copies / "physics_iq" / "physics-IQ-benchmark")
    with pytest.raises(DataError, match="it has no physics-IQ-benchmark/switch-frames"):
        suite(copies, "physics_iq").items()


def test_what_ships_needs_no_copy() -> None:
    assert len(Shapes().items()) == 9
    assert len(Shapes(split="all").items()) == 54
    assert len(Motion().items()) == 72
    for one in (Shapes(), Motion()):
        prompts = [item.prompt for item in one.items()]
        for reward in one.rewards().values():
            reward.check(prompts)


def test_drawn_references_are_what_their_captions_say() -> None:
    import torch

    from reward_models.base import Media, load_reward

    one = Shapes()
    drawn = torch.stack([one.reference(n, 0) for n in range(18)])
    captions = [one.items()[n % 9].prompt for n in range(18)]
    (reward,) = one.rewards().values()
    scored = load_reward(reward, device=torch.device("cpu"))(media=Media(drawn), prompts=captions)
    assert scored.value.mean() >= 0.9
    assert torch.equal(drawn[3], one.reference(3, 0))
    assert not torch.equal(drawn[3], one.reference(3, 1))


def test_the_benchmarks_own_verdict_scores_geneval() -> None:
    (reward,) = GenEval("").rewards().values()
    assert reward.verdict == "correct"
