"""Samples of a data file: read, refused, encoded, paired with an earlier policy's."""

from __future__ import annotations

import json
import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alignment.cli import main as cli
from alignment.config.load import load
from alignment.config.run import Data
from alignment.data.batches import Pairs, Samples
from alignment.data.prompts import read_prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, DataError
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.kto import KTO
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.seppo import SePPO
from alignment.reports.pictures import encode_clip
from alignment.sources.base import Source
from alignment.sources.offline import Offline
from alignment.sources.offline_groups import OfflineGroups
from alignment.sources.offline_pairs import OfflinePairs
from alignment.sources.prompts_only import PromptsOnly
from alignment.sources.semi_policy import OPPONENT, SemiPolicy
from alignment.training.loop import Trainer
from reward_models.measures.colour import Colour
from tests.support.toy import SCALE, labelled, pairs, saved, toy_run, trainer_of

LEVEL = 2 * SCALE / 255  # a picture's 8 bits, in the toy's coordinates
CHI_SQUARE = 18.5  # of 5 degrees of freedom: a fair choice is further off once in four hundred


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=10)


def loaded(folder: Path, source: Source, objective: object, data: str) -> Trainer:
    return trainer_of(toy_run(folder, source, objective, 1, data=Data(data)))


def test_both_sides_of_a_record_are_a_group(folder: Path) -> None:
    data = pairs(folder, count=16)
    of_pairs, of_groups = (
        loaded(folder, source, objective, data)
        for source, objective in ((OfflinePairs(4), DPO()), (OfflineGroups(4), ADPO()))
    )
    one, other = (trainer.experience(trainer.context(0)).batch for trainer in (of_pairs, of_groups))
    assert isinstance(one, Pairs)
    assert isinstance(other, Samples)
    assert torch.equal(other.x0[::2], one.chosen)
    assert torch.equal(other.x0[1::2], one.rejected)
    assert other.advantage.tolist() == [1.0, -1.0] * 4
    assert torch.equal(other.group, one.group.repeat_interleave(2))
    assert len(other.seeds.unique()) == 8
    for trainer in (of_pairs, of_groups):
        trainer.learn(trainer.context(0), trainer.experience(trainer.context(0)).batch)
        trainer.runtime.close()


def test_labels_made_wrong_are_a_share_that_stays_the_same(folder: Path) -> None:
    data = Data(pairs(folder, count=20), flipped=0.4)
    trainer = trainer_of(toy_run(folder, OfflinePairs(20), DPO(), 1, data=data))
    wrong = {example.media[0] for example in trainer.prompts.examples if example.label == -1.0}
    assert len(wrong) == 8
    seen = [trainer.prompts.at(step, 20, Draw(0)).examples for step in range(3)]
    assert all({e.media[0] for e in examples if e.label == -1.0} == wrong for examples in seen)
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Pairs)
    assert sorted(batch.advantage.tolist()) == [-1.0] * 8 + [1.0] * 12
    trainer.runtime.close()


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_of_wrong_labels_is_at_most_a_half(share: float) -> None:
    with pytest.raises(ConfigError, match=rf"got {share}, expected a share of the records from 0 to 0\.5"):
        Data("pairs.jsonl", flipped=share)


def test_wrong_labels_without_labels_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="PromptsOnly learns from no labels of a file"):
        toy_run(folder, PromptsOnly(4, Colour()), DRaFT(), 1, data=Data("prompts.txt", flipped=0.2))


@pytest.fixture
def semi(folder: Path) -> Iterator[Trainer]:
    trainer = loaded(folder, SemiPolicy(8, every=2, kept=3), SePPO(), labelled(folder, wanted=True, count=16))
    yield trainer
    trainer.runtime.close()


def jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def pictures(folder: Path, **sizes: tuple[int, int]) -> None:
    for i, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (40 * i, 0, 0)).save(folder / f"{name}.png")


# ---- what a record holds ---------------------------------------------------------------------------------------------


def test_records_bring_samples_and_labels(tmp_path: Path) -> None:
    pictures(tmp_path, a=(8, 8), b=(8, 8), c=(8, 8))
    file = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "one", "media": "a.png", "label": True},
        {"prompt": "one", "media": "b.png", "label": False},
        {"prompt": "two", "media": "c.png"},
    )
    read = read_prompts(file, media=("media",))
    assert [example.label for example in read.examples] == [1.0, -1.0, None]
    groups = read.at(0, 3, Draw(0))
    met = {(text, groups.examples[i].media[0].path.name) for i, text in enumerate(groups.prompts)}
    assert met == {("one", "a.png"), ("one", "b.png"), ("two", "c.png")}
    assert groups[1:].examples == groups.examples[1:]


def test_a_column_that_is_a_sample_is_no_argument_of_the_pipeline(tmp_path: Path) -> None:
    pictures(tmp_path, a=(8, 8))
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "one", "image": "a.png"})
    read = read_prompts(file, columns={"media": "image"}, media=("media",))
    assert type(read.texts[0]) is str
    assert read.examples[0].media[0].path.name == "a.png"


def test_an_image_folder_is_a_set_of_winners(tmp_path: Path) -> None:
    pictures(tmp_path, a=(8, 8))
    jsonl(tmp_path / "metadata.jsonl", {"prompt": "one", "file_name": "a.png"})
    assert read_prompts(str(tmp_path), media=("media",)).examples[0].media[0].size == (8, 8)


SIDES = ("chosen", "rejected")


@pytest.mark.parametrize(
    ("media", "record", "says"),
    [
        (SIDES, {"chosen": "a.png", "rejected": "wide.png"}, "line 2: chosen is 8 x 8, rejected 9 x 8: both sides"),
        (SIDES, {"chosen": "a.png", "rejected": "a.png"}, "line 2: chosen and rejected are the same file"),
        (SIDES, {"chosen": "a.png"}, 'line 2: "rejected" is missing'),
        (SIDES, {"chosen": "a.png", "rejected": "gone.png"}, "line 2: rejected: there is no file"),
        (
            ("media",),
            {"media": "a.png", "label": "good"},
            "line 2: label: 'good' is neither a number nor true",
        ),
        (("media",), {"media": "a.png", "label": float("inf")}, "line 2: label: inf is neither"),
    ],
)
def test_what_cannot_be_learned_from_is_said_with_its_line(
    tmp_path: Path, media: tuple[str, ...], record: dict[str, object], says: str
) -> None:
    pictures(tmp_path, a=(8, 8), b=(8, 8), wide=(9, 8))
    good = {"media": "b.png", "chosen": "a.png", "rejected": "b.png"}
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "one", **good}, {"prompt": "two", **record})
    with pytest.raises(DataError, match=r"p\.jsonl: ") as caught:
        read_prompts(file, media=media)
    assert says in str(caught.value)


def test_clips_of_another_length_than_the_pipelines_are_said_with_their_line(tmp_path: Path) -> None:
    pictures(tmp_path, a=(8, 8))
    for name, count in {"short": 3, "right": 9}.items():
        frames = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(count)]
        (tmp_path / f"{name}.mp4").write_bytes(encode_clip(frames, 8.0))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 9)
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    names = ("right.mp4", "short.mp4", "a.png", "empty.mp4", "noise.mp4", "sound.mp4")
    file = jsonl(tmp_path / "p.jsonl", *({"prompt": name, "media": name} for name in names))
    with pytest.raises(DataError) as caught:
        read_prompts(file, media=("media",), frames=9)
    told = str(caught.value)
    assert "line 1" not in told
    assert "line 2: media: short.mp4 has 3 of the 9 frames of policy.call.num_frames" in told
    assert "line 3: media: a.png has 1 of the 9 frames" in told
    assert "empty.mp4 is empty" in told
    assert "noise.mp4 is not a video: it begins with b'no video at " in told
    assert "sound.mp4 is not a video: it begins with b'RIFF" in told


def test_a_file_of_prompts_alone_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(
        DataError, match=r"a \.txt file holds prompts alone, and this source learns from samples \(media\)"
    ):
        read_prompts(str(tmp_path / "p.txt"), media=("media",))


# ---- refused when the config loads -----------------------------------------------------------------------------------

CONFIG = """\
name: small
steps: 1
policy: {{pipeline: {folder}, call: {{num_inference_steps: 2}}}}
data: {{prompts: {data}}}
source:
  type: {source}
objective: {{type: {objective}}}
batch: {{microbatch: 64}}
"""


@pytest.mark.parametrize(
    ("source", "objective", "says"),
    [
        ("offline\n  prompts: 4\n  rows_per_group: 1", "kto", ":8: source.rows_per_group: got 1, but KTO compares"),
        ("offline\n  prompts: 4\n  rows_per_group: 3", "sft", ":5: source: source.prompts must be a multiple"),
        ("semi_policy\n  prompts: 4\n  kept: 1", "seppo", ":5: source: source needs every >= 1 and kept >= 2"),
        ("offline\n  prompts: 4", "dpo", "objective: DPO consumes Pairs, but source Offline produces Samples"),
        ("offline_pairs\n  prompts: 4", "seppo", "compares with the copy opponent, which source OfflinePairs does not"),
    ],
)
def test_runs_that_cannot_work_are_refused_with_file_line_and_key(
    folder: Path, tmp_path: Path, source: str, objective: str, says: str
) -> None:
    data = labelled(folder, wanted=True, count=12)
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG.format(folder=folder, data=data, source=source, objective=objective))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert says in str(caught.value)


def test_a_step_does_not_learn_from_the_same_sample_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(labelled(folder, wanted=True, count=12))
    repeated = data.with_name("repeated.jsonl")
    lines = data.read_text().splitlines(keepends=True)
    repeated.write_text("".join([*lines, *lines[:4]]))
    file = tmp_path / "small.yaml"
    text = CONFIG.format(folder=folder, data=repeated, source="offline\n  prompts: 16", objective="sft")
    file.write_text(text.replace("{prompts:", "{dedupe: drop, prompts:"))
    assert cli.run(["train", str(file), "--dry-run"]) == 2
    assert "repeated.jsonl holds 12 records, so that a step" in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_reads_the_samples_and_says_what_it_would_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.yaml"
    data = pairs(folder, count=8)
    file.write_text(CONFIG.format(folder=folder, data=data, source="offline_pairs\n  prompts: 4", objective="dpo"))
    assert cli.run(["train", str(file), "--dry-run"]) == 0
    assert "OfflinePairs takes 4 records (chosen, rejected)" in " ".join(capsys.readouterr().out.split())
    Image.new("RGB", (3, 3)).save(folder / "pairs" / "0.png")
    assert cli.run(["train", str(file), "--dry-run"]) == 2
    assert "line 1: chosen is 3 x 3, rejected 1 x 1" in " ".join(capsys.readouterr().err.split())
    file.write_text(file.read_text() + "evaluation: {prompts: PROMPTS}\n".replace("PROMPTS", data))
    assert cli.run(["train", str(file), "--dry-run"]) == 2
    assert "evaluation.reward: OfflinePairs has no reward of its own" in " ".join(capsys.readouterr().err.split())


def test_a_run_on_samples_of_a_file_saves_what_it_made_and_goes_on_from_there(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    data = labelled(folder, wanted=True, count=12)
    source = "semi_policy\n  prompts: 4\n  every: 1\n  kept: 2"
    file.write_text(CONFIG.format(folder=folder, data=data, source=source, objective="seppo"))
    words = ["train", str(file), "steps=3", "device=cpu", "output.save_every=2"]
    assert cli.run([*words, f"output.folder={tmp_path / 'whole'}"]) == 0
    assert cli.run([*words, "steps=2", f"output.folder={tmp_path / 'parts'}"]) == 0
    assert cli.run([*words, f"output.folder={tmp_path / 'parts'}", "--resume", "latest"]) == 0
    whole, parts = (tmp_path / name / "small" / "checkpoint-3" for name in ("whole", "parts"))
    assert f"| samples | of `{data}` |" in (whole / "README.md").read_text()
    for tensors in ("trainable", "snapshot-opponent", "snapshot-earlier-1"):
        there, here = (load_file(where / "state" / f"{tensors}.safetensors") for where in (whole, parts))
        assert all(torch.equal(there[name], here[name]) for name in there)


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_winners_become_the_states_they_were_drawn_from(folder: Path) -> None:
    trainer = loaded(folder, Offline(16, rows_per_group=4), KTO(), labelled(folder, count=16))
    batch = trainer.experience(trainer.context(0)).batch
    trainer.runtime.close()
    assert isinstance(batch, Samples)
    assert ((batch.x0[:, 0] > 0) == (batch.advantage > 0)).all()
    assert batch.x0[:, 0].abs().mean() == pytest.approx(2.0, abs=0.3)
    assert batch.group.bincount().tolist() == [4] * 4
    assert trainer.policy.latents.misses == 16
    trainer.experience(trainer.context(1))
    assert trainer.policy.latents.misses == 16  # once for all


def test_pairs_keep_their_sides(folder: Path) -> None:
    trainer = loaded(folder, OfflinePairs(8), DPO(), pairs(folder, count=8))
    found = trainer.experience(trainer.context(0))
    trainer.runtime.close()
    assert isinstance(found.batch, Pairs)
    assert (found.batch.chosen[:, 0] > 0).all()
    assert (found.batch.rejected[:, 0] < 0).all()
    assert found.batch.advantage.tolist() == [1.0] * 8
    assert len(found.media) == 8
    assert found.rewards.value.isnan().all()


def test_the_opponent_changes_when_it_is_time(semi: Trainer) -> None:
    policy = semi.policy
    assert semi.run.copies == ("earlier-0", "earlier-1", "earlier-2", OPPONENT)
    (name, live), *_ = policy.trainable.items()
    start = live.detach().clone()
    for step in range(8):
        with torch.no_grad():
            live.fill_(float(step))
        batch = semi.experience(semi.context(step)).batch
        assert isinstance(batch, Pairs)
        kept = [policy.snapshots[f"earlier-{slot}"][name].mean().item() for slot in (1, 2)]
        if step < 2:
            assert torch.equal(policy.snapshots[OPPONENT][name], start)
        if step in (2, 3):
            assert kept[0] == 2.0
        if step in (4, 5):
            assert kept == [2.0, 4.0]
        if step in (6, 7):
            assert kept == [6.0, 4.0]
        assert torch.equal(policy.snapshots["earlier-0"][name], start)


def test_samples_are_the_opponents(semi: Trainer) -> None:
    first = semi.experience(semi.context(0)).batch
    with torch.no_grad():
        for p in semi.policy.trainable.values():
            p.add_(0.1)
    again = semi.experience(semi.context(0)).batch
    assert isinstance(first, Pairs)
    assert isinstance(again, Pairs)
    assert torch.equal(first.rejected, again.rejected)  # the live policy has no say in them


def test_earlier_policies_have_equal_chances() -> None:
    source = SemiPolicy(4, kept=7)
    drawn = Counter(source.choose(5, Draw(seed).generator("opponent", 5)) for seed in range(600))
    assert set(drawn) == set(range(6))
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) < CHI_SQUARE


def test_first_and_last_are_what_they_say() -> None:
    generator = torch.Generator()
    assert [SemiPolicy(4, opponent="first").choose(k, generator) for k in (1, 5, 20)] == [0, 0, 0]
    assert [SemiPolicy(4, opponent="last").choose(k, generator) for k in (1, 5, 20)] == [1, 5, 20]
    few = SemiPolicy(4, kept=3)
    assert {few.choose(9, Draw(seed).generator("opponent")) for seed in range(50)} == {0, 8, 9}
    assert len({few.slot(number) for number in (0, 8, 9)}) == 3


def test_the_last_opponent_is_the_policy_as_it_goes_on(folder: Path) -> None:
    """SPIN-Diffusion plays against the iterate that a round began with."""
    trainer = loaded(
        folder, SemiPolicy(4, opponent="last", every=2, kept=3), SePPO(), labelled(folder, wanted=True, count=16)
    )
    (name, live), *_ = trainer.policy.trainable.items()
    found = []
    for step in range(6):
        with torch.no_grad():
            live.fill_(float(step))
        trainer.experience(trainer.context(step))
        found.append(trainer.policy.snapshots[OPPONENT][name].mean().item())
    trainer.runtime.close()
    assert found[2:] == [2.0, 2.0, 4.0, 4.0]
