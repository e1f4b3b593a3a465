"""The checks of a whole run: what fits together, what divides, what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from alignment.config import build, checks
from alignment.config.load import load
from alignment.config.run import Run
from alignment.errors import ConfigError
from tests.support.recipe import write

GOOD = """
name: trial
policy:
  pipeline: {folder}/pipeline
  call: {{num_inference_steps: 6}}
  lora: {{rank: 4}}
data: {{prompts: {folder}/train.txt}}
source:
  type: on_policy_steps
  prompts: 6
  group_size: 4
  dynamics: {{type: dance_sde}}
  window: {{type: random, size: 2}}
  reward: {{type: jpeg}}
objective: {{type: clipped_surrogate}}
evaluation: {{prompts: {folder}/test.txt}}
output: {{folder: {folder}/runs}}
steps: 10
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path, "{}", "pipeline/model_index.json")
    write(tmp_path, "a cat\n", "train.txt")
    write(tmp_path, "a dog\n", "test.txt")
    return write(tmp_path, GOOD.format(folder=tmp_path))


def test_a_good_run_passes_and_is_told_in_a_paragraph(path: Path) -> None:
    run = load(path)
    checks.check(run, world_size=3)
    told = checks.describe(run, world_size=3).replace("\n", " ")
    for word in (
        "trial",
        "rank 4",
        "10 steps",
        "OnPolicySteps",
        "6 prompts",
        "3 processes",
        "Jpeg",
        "ClippedSurrogate",
    ):
        assert word in told


def test_a_resolved_run_is_the_run_again(path: Path, tmp_path: Path) -> None:
    run = load(path)
    assert load(write(tmp_path, build.resolved(run), "resolved.yaml")) == run


VALUES = {
    "no steps": ("steps=0", "command line: steps: got 0, expected at least 1"),
    "no learning": (
        "optimizer.learning_rate=0",
        "command line: optimizer.learning_rate: got 0.0, expected more than 0",
    ),
    "no update": ("batch.updates=0", "command line: batch.updates: got 0, expected at least 1"),
    "no rank": ("policy.lora.rank=0", "command line: policy.lora.rank: got 0, expected at least 1"),
    "a decay of 1": ("snapshots.ema=1", "command line: snapshots.ema: got 1.0, expected a number from 0 to below 1"),
    "a beta of 1": ("optimizer.betas=[0.9, 1]", "command line: optimizer.betas.1: got 1.0"),
    "betas of what has none": (
        "optimizer={type: adafactor, betas: [0.9, 0.99]}",
        "optimizer.betas: adafactor has no betas; leave it out, or set it to null",
    ),
    "momentum of what has moments": (
        "optimizer.momentum=0.9",
        "optimizer.momentum: adamw has no momentum but betas and epsilon; leave it out",
    ),
    "a word for an optimiser": ("optimizer.type=adam8bit", "Did you mean 'adamw8bit'"),
    "all momentum": ("optimizer={type: muon, momentum: 1}", "command line: optimizer.momentum: got 1.0"),
    "a name with a slash": ("name=a/b", "command line: name: got 'a/b'; it names a folder"),
    "a name that climbs": ("name=..", "command line: name: got '..'; it names a folder"),
    "two ways to train": ("policy.trainable=[x]", "command line: policy.trainable: it chooses among"),
    "a group of one": ("source.group_size=1", ": source: group_size must be >= 2, got 1"),
    "no noise": ("source.dynamics.type=ode", ": source: dynamics: ODE is deterministic here"),
    "no step to train": ("source.window={type: fraction, fraction: 0.1}", ": source.window: with policy.call"),
    "a window too wide": (
        "source.window.size=6",
        ": source.window: with policy.call.num_inference_steps 6: a window of 6",
    ),
    "updates that do not divide": ("batch.updates=5", ": 24 rows per step do not divide into 5: 24 = 5 x 4 + 4"),
    "rounds in words": ("policy.call.num_inference_steps=abc", "policy.call.num_inference_steps: got 'abc'"),
    "no rounds": ("policy.call.num_inference_steps=0", "policy.call.num_inference_steps: got 0"),
    "no rounds to evaluate": ("evaluation.call.num_inference_steps=0", "evaluation.call.num_inference_steps: got 0"),
    "no height": ("policy.call.height=0", "policy.call.height: got 0, expected a whole number of at least 1"),
    "half a pixel": ("policy.call.height=1.5", "policy.call.height: got 1.5, expected a whole number"),
    "a width below nothing": ("evaluation.call.width=-1", "evaluation.call.width: got -1, expected a whole number"),
    "a width that is true": ("policy.call.width=true", "policy.call.width: got True, expected a whole number"),
    "no frames": ("policy.call.num_frames=0", "policy.call.num_frames: got 0, expected a whole number"),
    "two half precisions": (
        "policy={dtype: float16, autocast: bfloat16}",
        "policy.dtype: float16 weights do not go with policy.autocast",
    ),
    "two half precisions the other way": (
        "policy={dtype: bfloat16, autocast: float16}",
        "policy.dtype: bfloat16 weights do not go with policy.autocast float16",
    ),
    "half inputs to float32 weights": (
        "policy={dtype: bfloat16, lora: null}",
        "policy.dtype: without policy.lora the trained weights are float32",
    ),
    "an infinite rate": ("optimizer.learning_rate=.inf", "optimizer.learning_rate: got inf"),
    "a rate beyond float32": ("optimizer.learning_rate=" + "9" * 50, "optimizer.learning_rate: got 1e+50"),
    "infinite guidance": ("policy.call.guidance_scale=.inf", "policy.call.guidance_scale: got inf"),
    "a height beyond memory": ("policy.call.height=1000000000", "height: got 1000000000, expected at most 32768"),
    "pixels beyond memory": (
        "policy.call={height: 32768, width: 32768, num_frames: 9}",
        "policy.call: 9,663,676,416 pixels per sample, expected at most 2,147,483,648",
    ),
    "a rank beyond any layer": ("policy.lora.rank=5000", "policy.lora.rank: got 5000, expected at most 4096"),
    "a scale of nothing": ("policy.lora.alpha=0", "policy.lora.alpha: got 0, expected more than 0"),
    "steps for ever": ("steps=1000000001", "steps: got 1000000001, expected at most"),
    "threads without end": ("threads=5000", "threads: got 5000, expected at most 4096"),
    "rows without end": ("batch.microbatch=1000000001", "batch.microbatch: got 1000000001, expected at most"),
    "a name without end": (f"name={'x' * 300}", "name: got 300 characters"),
    "half a pattern": ("policy={lora: null, trainable: ['(']}", "policy.trainable.0: '(' is not a regular expression"),
    "a pair that does not meet": (
        "objective.type=nft",
        "a.yaml:15, with objective.type from the command line: objective: NFT consumes Samples, but source "
        "OnPolicySteps produces Transitions. Sources that produce Samples: offline, ",
    ),
}


@pytest.mark.parametrize(("override", "message"), VALUES.values(), ids=VALUES.keys())
def test_values_are_refused_when_the_config_is_loaded(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path, [override])
    assert message in str(caught.value)


def test_a_value_in_a_file_is_refused_with_its_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("steps: 10", "steps: 0")
    path.write_text(text, encoding="utf-8")
    line = text.splitlines().index("steps: 0") + 1
    with pytest.raises(ConfigError, match=rf"a\.yaml:{line}: steps: got 0"):
        load(path)


def test_branching_makes_a_group_one_row(path: Path) -> None:
    branch = "source.window={type: branch, steps: [0]}"
    assert load(path, [branch, "batch.updates=6"])
    with pytest.raises(ConfigError, match=r"6 rows per step do not divide into 4: 6 = 4 x 1 \+ 2"):
        load(path, [branch, "batch.updates=4"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_prompts_that_divide_are_taken(path: Path, world_size: int) -> None:
    checks.check(load(path), world_size)


def test_prompts_that_do_not_divide_are_refused_with_the_arithmetic(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.prompts: 6 .* over 4 processes: 6 = 4 x 1 \+ 2; use 4 or 8"):
        checks.check(load(path), 4)
    with pytest.raises(ConfigError, match=r"6 = 8 x 0 \+ 6; use 8"):
        checks.check(load(path), 8)


def refused(run: Run) -> str:
    with pytest.raises(ConfigError) as caught:
        checks.check(run, 1)
    return str(caught.value)


def test_missing_files_are_named(path: Path, tmp_path: Path) -> None:
    run = load(path)
    (tmp_path / "test.txt").unlink()
    assert refused(run).startswith(f"evaluation.prompts: there is no file {tmp_path}/test.txt")
    (tmp_path / "train.txt").unlink()
    assert refused(run).startswith(f"data.prompts: there is no file {tmp_path}/train.txt")


def with_pipeline(run: Run, name: str) -> Run:
    return dataclasses.replace(run, policy=dataclasses.replace(run.policy, pipeline=name))


def test_a_pipeline_is_a_diffusers_folder_or_a_hub_id(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = load(path)
    checks.check(with_pipeline(run, "black-forest-labs/FLUX.1-dev"), 1)
    assert "is a file" in refused(with_pipeline(run, "train.txt"))
    assert "there is no folder nowhere" in refused(with_pipeline(run, "nowhere"))
    assert "there is no folder pipeline/typo" in refused(with_pipeline(run, "pipeline/typo"))
    (tmp_path / "pipeline" / "model_index.json").unlink()
    assert "holds no model_index.json" in refused(run)
    (tmp_path / "pipeline" / "modular_model_index.json").write_text("{}")
    assert "a modular pipeline (modular_model_index.json), which is not trained here" in refused(run)


def test_an_output_folder_that_is_a_file_is_refused(path: Path, tmp_path: Path) -> None:
    write(tmp_path, "", "runs")
    assert refused(load(path)).startswith(f"output.folder: {tmp_path}/runs is a file")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody writes to, root neither")
@pytest.mark.parametrize("key", ["output.folder", "policy.embedding_cache"])
def test_folders_that_nobody_can_write_to_are_refused(path: Path, key: str) -> None:
    assert refused(load(path, [f"{key}=/proc/mine"])).startswith(f"{key}: /proc cannot be written to (")
    assert refused(load(path, [f"{key}={'x' * 300}/y"])).startswith(f"{key}: {'x' * 40}... has 300 bytes")


def test_looking_whether_a_folder_can_be_written_leaves_nothing(path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    checks.check(load(path, [f"policy.embedding_cache={tmp_path}/cache"]), 1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("guidance_scale=abc", "got 'abc', but FluxPipeline takes a number there"),
        ("max_sequence_length=1.5", "got 1.5, but FluxPipeline takes a whole number there"),
        ("max_sequence_length=true", "got True, but FluxPipeline takes a whole number there"),
        ("max_sequence_length=-3", "got -3, but FluxPipeline takes a whole number from 0 to 1000000 there"),
        ("max_sequence_length=9999999", "got 9999999, but FluxPipeline takes a whole number from 0 to 1000000 there"),
        ("hight=64", "FluxPipeline takes no such argument. Did you mean 'height'?"),
    ],
)
@pytest.mark.parametrize("key", ["policy.call", "evaluation.call"])
def test_arguments_are_looked_at_before_anything_is_loaded(path: Path, key: str, argument: str, says: str) -> None:
    index = '{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}'
    write(path.parent, index, "pipeline/model_index.json")
    fine = f"{key}={{max_sequence_length: 64, guidance_scale: 4}}"
    checks.check(load(path, [fine]), 1)
    assert refused(load(path, [fine, f"{key}.{argument}"])) == f"{key}.{argument.partition('=')[0]}: {says}"


def test_the_launcher_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert checks.processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert checks.processes() == 4


def test_an_advantage_that_reads_a_part_nobody_gives_is_refused(path: Path) -> None:
    shapes = ("source.reward={type: shapes}",)
    load(path, (*shapes, "source.advantage={type: gdpo, weights: {strict: 1.0, graded: 2.0}}"))
    says = r"command line: source.advantage: GDPO reads the part 'strikt' of the reward, but Shapes has strict, graded"
    with pytest.raises(ConfigError, match=says):
        load(path, (*shapes, "source.advantage={type: gdpo, weights: {strikt: 1.0}}"))
    # What says nothing of its parts before it scores is asked when it does.
    says_nothing = "source.reward={type: function, call: tests.support.runs:brightness}"
    load(path, (says_nothing, "source.advantage={type: min, parts: [strikt]}"))


def test_a_run_says_which_copies_it_keeps_and_what_measures_it(path: Path) -> None:
    run = load(path, ["snapshots.ema=0.9", "objective.kl=0.1"])
    assert run.copies == ("ema", "reference")
    assert "Frozen copies of the trained weights: ema, reference." in checks.describe(run, 1).replace("\n", " ")
    assert run.measure is run.source.reward
    other = load(path, ["evaluation.reward={type: colour}"])
    assert other.measure is other.evaluation.reward
