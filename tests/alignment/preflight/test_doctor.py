"""The doctor: a healthy run passes every law, each law is broken once on purpose and found, and nothing is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alignment.cli import main as cli
from alignment.config.run import Run
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.preflight.doctor import examine
from alignment.preflight.doctor.subject import Finding, Subject
from alignment.sources.on_policy import OnPolicy
from alignment.training.loop import Trainer
from samplers import Step
from samplers.windows.branch import Branch
from tests.support.failures import BROKEN, STEPS, SURROGATE
from tests.support.toy import REWARD, saved, toy_run, trainer_of

Found = dict[str, Finding]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


def examined(run: Run, spoil: Callable[[Trainer], object] = lambda trainer: None) -> Found:
    trainer = trainer_of(run)
    spoil(trainer)
    try:
        return {finding.law: finding for finding in examine.examine(trainer, "{policy: {}}", lambda finding: None)}
    finally:
        trainer.runtime.close()


def failed(found: Found) -> set[str]:
    return {law for law, finding in found.items() if finding.outcome == "FAIL"}


# ---- healthy ---------------------------------------------------------------------------------------------------------

HEALTHY = {
    "steps": (STEPS, SURROGATE),
    "kl": (STEPS, ClippedSurrogate(clip=1e-2, kl=0.1)),
    "branch": (replace(STEPS, window=Branch((0, 2))), ClippedSurrogate(clip=1e-2, weight="equal")),
    "nft": (OnPolicy(4, REWARD, group_size=4), NFT()),
    "matching": (OnPolicy(4, REWARD, group_size=4), WeightedMatching(kl=0.1)),
}
# The toy has no tokenizer and no adapter format of its own; checkpoints are looked at on FLUX below.
NOT_ON_TOYS = {"checkpoint reopens"}


@pytest.mark.parametrize("recipe", HEALTHY)
def test_a_healthy_run_keeps_every_law(folder: Path, recipe: str) -> None:
    found = examined(toy_run(folder, *HEALTHY[recipe], 3))
    assert failed(found) <= NOT_ON_TOYS, {law: found[law] for law in failed(found)}
    assert len(found) == len(examine.LAWS) + 1
    assert found["kl term pulls"].outcome == ("skipped" if recipe in ("steps", "branch") else "pass")
    assert found["first ratio"].outcome == ("pass" if HEALTHY[recipe][0] is STEPS or recipe == "branch" else "skipped")


FLUX = """\
name: tiny
steps: 2
policy:
  pipeline: {pipeline}
  call: {{height: 16, width: 16, num_inference_steps: 4, max_sequence_length: 24}}
  lora: {{rank: 2, merge: {merge}}}
data: {{prompts: {prompts}}}
source:
  type: on_policy_steps
  prompts: 2
  group_size: 2
  dynamics: {{type: flow_sde}}
  window: {{type: all}}
  reward: {reward}
objective: {{type: clipped_surrogate, clip: 1e-2}}
output: {{folder: {folder}/runs}}
device: cpu
"""
COLOUR = "{type: colour}"


@pytest.fixture
def config(flux_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(
        *, prompts: Sequence[str] = ("a red circle", "a blue square"), reward: str = COLOUR, merge: bool = False
    ) -> Path:
        (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
        values = {"pipeline": flux_folder, "prompts": tmp_path / "prompts.txt", "folder": tmp_path}
        (tmp_path / "run.yaml").write_text(FLUX.format(**values, reward=reward, merge=str(merge).lower()))
        return tmp_path / "run.yaml"

    return write


def report(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Finding]]:
    capsys.readouterr()
    code = cli.run(["doctor", *map(str, words), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["healthy"] == (code == 0)
    return code, {finding["law"]: Finding(**finding) for finding in said["findings"]}


@pytest.mark.parametrize("merge", [False, True])
def test_a_config_with_adapters_is_healthy(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str], merge: bool
) -> None:
    code, found = report(capsys, config(merge=merge))
    assert (code, failed(found)) == (0, set())
    assert found["checkpoint reopens"].outcome == found["reference is adapter off"].outcome == "pass"
    assert ("merged" in found["first ratio"].says) == merge


def test_rounding_shows_in_ratios_of_single_positions(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    structure = "source.structure={type: perceptual, backbone: {type: saliency, patch: 4}}"
    by_position = (structure, "objective={type: vipo, clip: 1e-2}")
    assert report(capsys, config(merge=True), *by_position)[0] == 0
    # Sampling and training then multiply other matrices.
    code, found = report(capsys, config(merge=True), *by_position, "policy.autocast=bfloat16")
    assert (code, failed(found)) == (1, {"first ratio"})
    assert "bfloat16" in found["first ratio"].says


def test_the_table_has_a_line_for_every_law(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", str(config())]) == 0
    said = capsys.readouterr().out
    assert all(law.__name__.replace("_", " ") in said for law in examine.LAWS)
    assert "all laws hold" in said


def test_measuring_a_signal_takes_a_config(flux_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--pipeline", str(flux_folder), "--snr"]) == 2
    assert "give a CONFIG" in capsys.readouterr().err


def test_weights_are_left_bit_for_bit(folder: Path) -> None:
    trainer = trainer_of(toy_run(folder, STEPS, ClippedSurrogate(clip=1e-2, kl=0.1), 3))
    weights = {name: z.clone() for name, z in trainer.policy.denoiser.state_dict().items()}
    places = {name: p.data_ptr() for name, p in trainer.policy.trainable.items()}
    copies = {name: z.clone() for name, z in trainer.policy.snapshots["reference"].items()}
    examine.examine(trainer, "{policy: {}}", lambda finding: None)
    trainer.runtime.close()
    assert all(torch.equal(weights[name], z) for name, z in trainer.policy.denoiser.state_dict().items())
    assert all(torch.equal(copies[name], z) for name, z in trainer.policy.snapshots["reference"].items())
    assert {name: p.data_ptr() for name, p in trainer.policy.trainable.items()} == places
    assert all(p.grad is None for p in trainer.policy.trainable.values())
    assert "scheduler" in vars(trainer.policy.pipe)
    assert not type(trainer.policy.pipe.scheduler).__name__.startswith("StandIn")


# ---- broken on purpose -----------------------------------------------------------------------------------------------

ELSEWHERE = {"disk space", "prompt length", "log probability", "checkpoint reopens"}
"""Laws that are broken in a test of their own below."""
WARN = {"compilation pays"}
"""Laws about speed, which is the machine's business: they warn and fail nothing."""


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(folder: Path, case: str) -> None:
    law, source, objective, spoil = BROKEN[case]
    found = examined(toy_run(folder, source, objective, 5), spoil or (lambda trainer: None))
    assert found[law].outcome == "FAIL", found[law]
    assert found[law].cause


def test_every_law_is_broken_by_some_test() -> None:
    names = {law.__name__.replace("_", " ") for law in examine.LAWS}
    assert {law for law, *_ in BROKEN.values()} | ELSEWHERE | WARN == names


def test_a_density_without_its_constant_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Step.log_prob
    monkeypatch.setattr(Step, "log_prob", lambda *given: right(*given) + 0.9189)
    assert "log probability" in failed(examined(toy_run(folder, STEPS, SURROGATE, 3)))


def test_a_full_disk_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "disk space" in failed(examined(toy_run(folder, STEPS, SURROGATE, 3)))


def test_a_law_that_leaves_a_trace_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(subject: Subject) -> Finding:
        next(iter(subject.policy.trainable.values())).data[0] += 1e-3
        return Finding("pass")

    monkeypatch.setattr(examine, "LAWS", (careless,))
    assert failed(examined(toy_run(folder, STEPS, SURROGATE, 3))) == {"left as it was"}


def test_an_adapter_that_loses_its_scale_on_disk_is_found(config: Callable[..., Path]) -> None:
    from alignment.config import build as configs
    from alignment.config.load import load

    run = load(config())

    def rescale(trainer: Trainer) -> None:
        for name, module in trainer.policy.denoiser.named_modules():
            if name.endswith("to_q"):
                module.scaling["default"] = 3.0

    trainer = trainer_of(run)
    rescale(trainer)
    found = examine.examine(trainer, configs.resolved(run), lambda finding: None)
    trainer.runtime.close()
    assert failed({finding.law: finding for finding in found}) == {"checkpoint reopens"}


LONG = "a picture of a red circle, and "


@pytest.mark.parametrize(
    ("prompts", "outcome"),
    [
        (("a red circle",), "pass"),
        (("a red circle", f"{LONG} a blue square"), "warning"),
        ((f"{LONG} a blue square", f"{LONG} a green one"), "FAIL"),
    ],
)
def test_prompts_that_are_cut_off_are_found(
    config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prompts: tuple[str, ...],
    outcome: str,
) -> None:
    monkeypatch.setattr(examine, "LAWS", tuple(law for law in examine.LAWS if law.__name__ == "prompt_length"))
    code, found = report(capsys, config(prompts=prompts))
    assert found["prompt length"].outcome == outcome
    assert code == (outcome == "FAIL")


def test_a_broken_run_ends_with_code_1(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    reward = "{type: function, call: 'tests.support.failures:random_reward'}"
    assert cli.run(["doctor", str(config(reward=reward))]) == 1
    said = capsys.readouterr().out
    assert "laws do not hold: reward repeats, reward of a batch" in said
    assert "put it in eval mode or fix its seed" in " ".join(said.split())


def test_a_run_that_cannot_load_is_the_users_error(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", str(config()), "source.group_size=1"]) == 2
    assert "group_size" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--snr"], ["profile"]], ids=" ".join)
def test_people_are_not_asked_for_nothing(
    command: list[str], config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = f"{{type: win_rate, judge: {{type: votes, folder: '{tmp_path / 'votes'}'}}}}"
    assert cli.run([*command, str(config(reward=reward))]) == 2
    assert "source.reward asks people for votes" in capsys.readouterr().err
    assert cli.run([*command, str(config()), f"evaluation.reward={reward}"]) == 2
    assert "evaluation.reward asks people for votes" in capsys.readouterr().err
    assert not (tmp_path / "votes").exists()
