"""Suites are read from copies in their publishers' layout; what is missing is named, with its licence and its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.config import build, registry
from alignment.errors import DataError
from evals.suites.base import Suite
from evals.suites.clips.motion import Motion
from evals.suites.pictures.geneval import GenEval
from evals.suites.pictures.shapes import Shapes

LOCAL = (
    "geneval", "parti_prompts", "drawbench", "hpdv2", "t2i_compbench", "dpg_bench", "vbench", "wise", "oneig",
    "geneval2", "hpdv3",
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
    return tmp_path


def suite(copies: Path, name: str) -> Suite:
    return build.of_kind(Suite, name, [f"folder={copies / name}"])


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
}
COUNTS = dict(zip(LOCAL, (2, 2, 2, 8, 16, 2, 2, 2, 3, 2, 12), strict=True))


@pytest.mark.parametrize("name", LOCAL)
def test_prompts_categories_and_names_of_files(copies: Path, name: str) -> None:
    items = suite(copies, name).items()
    prompt, category, file = EXPECTED[name]
    assert len(items) == COUNTS[name]
    (item,) = [item for item in items if item.prompt == prompt and item.category == category]
    assert [one.format(k=3) for one in item.files][:1] == ([] if file is None else [file])


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
    ],
)
def test_half_a_copy_is_named(copies: Path, name: str, file: str, text: str) -> None:
    write(copies, f"{name}/{file}", text)
    with pytest.raises(DataError, match=Path(file).stem if name != "wise" else "occurs twice"):
        suite(copies, name).items()


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
