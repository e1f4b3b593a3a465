"""Signal-to-noise: the estimator on gradients whose ratio is known, and the measurement on runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.cli import main as cli
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.preflight.doctor import snr
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.branch import Branch
from samplers.windows.fraction import Fraction
from samplers.windows.random import Random
from tests.support.toy import REWARD, STEPS, saved, toy_run, trainer_of

DIMENSIONS, BATCHES, TRIALS = 400, 6, 500
ERRORS = 4.0  # standard errors allowed to a mean over trials: fails once in 16,000 seeds, and the seed is fixed
SURROGATE = ClippedSurrogate(clip=1e-2)


def as_ratio(share: float, error: float) -> tuple[float, float]:
    step = snr.StepSignal("0", 1.0, 1.0, 0.0, 0.0, share, error, BATCHES)
    return step.snr, step.error


def signal_to_noise(gram: Tensor) -> tuple[float, float]:
    return as_ratio(*snr.signal_share(gram))


def trials(ratio: float) -> Tensor:
    """Return inner products `[TRIALS, M, M]` of gradients mu + noise with |mu|^2 = ratio * (noise power of one)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(TRIALS, BATCHES, DIMENSIONS, generator=generator, dtype=torch.float64)
    mean = torch.zeros(DIMENSIONS, dtype=torch.float64)
    mean[0] = (ratio * DIMENSIONS) ** 0.5
    gradients = noise + mean
    return gradients @ gradients.mT


@functools.cache
def shares(ratio: float) -> Tensor:
    """Return the share of signal that is found in each trial, and how sure it is, `[TRIALS, 2]`."""
    return torch.tensor([snr.signal_share(gram) for gram in trials(ratio)], dtype=torch.float64)


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.3, 2.0])
def test_the_estimate_has_the_true_ratio_as_its_mean(ratio: float) -> None:
    found = torch.tensor([as_ratio(*share)[0] for share in shares(ratio).tolist()])
    # A ratio of two estimates is off by the square of the denominator's relative error, 2 / (M D) here.
    bias = ratio * 2 / (BATCHES * DIMENSIONS)
    assert abs(found.mean() - ratio) < ERRORS * found.std() / TRIALS**0.5 + bias


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0.9, 1.8), (0.3, 0.8, 1.3)])
def test_the_jackknife_knows_how_sure_it_is(ratio: float, low: float, high: float) -> None:
    found = shares(ratio)
    # Without signal the statistic is degenerate, and the jackknife gives about twice its variance: it errs to doubt.
    assert low < found[:, 1].square().mean().sqrt() / found[:, 0].std() < high


def test_noise_is_seldom_called_a_signal() -> None:
    found = shares(0.0)
    false = (found[:, 0] > snr.ERRORS * found[:, 1]).double().mean()
    assert false < 0.06


def test_the_ratio_does_not_depend_on_the_scale_of_the_loss() -> None:
    gram = trials(0.3)[0]
    assert signal_to_noise(gram) == pytest.approx(signal_to_noise(1e-6 * gram))


def test_a_signal_without_noise_is_found_and_finite() -> None:
    share, error = snr.signal_share(torch.ones(4, 4, dtype=torch.float64))
    assert share == snr.PURE
    assert error == 0


def test_no_gradient_is_no_signal() -> None:
    assert snr.signal_share(torch.zeros(4, 4, dtype=torch.float64)) == (0.0, 0.0)


def test_inner_products_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.randn(1000) for _ in range(4)]
    whole = snr.inner_products(gradients)
    monkeypatch.setattr(snr, "CHUNK", 7)
    assert torch.allclose(snr.inner_products(gradients), whole)
    assert whole[1, 2].item() == pytest.approx(gradients[1].double().dot(gradients[2].double()).item())


# ---- on runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=400)


def measured(folder: Path, source: object, objective: object, batches: int = 4) -> tuple[snr.Signal, bool]:
    trainer = trainer_of(toy_run(folder, source, objective, 3))
    before = {name: p.detach().clone() for name, p in trainer.policy.trainable.items()}
    found = snr.measure(trainer, batches)
    same = all(torch.equal(before[name], p) for name, p in trainer.policy.trainable.items())
    trainer.runtime.close()
    return found, same and all(p.grad is None for p in trainer.policy.trainable.values())


def test_a_run_that_branches_is_measured_at_every_step_but_the_last(folder: Path) -> None:
    source = OnPolicySteps(8, REWARD, FlowSDE(), Branch((0, 3)), group_size=16)
    found, untouched = measured(folder, source, SURROGATE, batches=6)
    assert untouched
    assert [step.name for step in found.steps] == [*map(str, range(STEPS - 1)), "all"]
    assert any(step.found for step in found.steps[:-1]), found.steps
    assert f"source.window.steps=[{', '.join(s.name for s in found.steps[:-1] if s.found)}]" in found.advice
    sigma = [step.sigma for step in found.steps[:-1]]
    assert sigma == sorted(sigma, reverse=True)
    assert all(step.std > 0 for step in found.steps[:-1])


@pytest.mark.parametrize("window", [Fraction(0.6), Random(2, among=(1, 2, 3))])
def test_another_window_is_measured_where_it_trains(folder: Path, window: object) -> None:
    source = OnPolicySteps(4, REWARD, FlowSDE(), window, group_size=4, prompts_per_call=2)
    found, untouched = measured(folder, source, SURROGATE, batches=5)
    assert untouched
    names = {step.name for step in found.steps} - {"all"}
    assert names
    assert names <= ({"1", "2", "3"} if isinstance(window, Random) else set(map(str, range(STEPS - 1))))
    assert all(snr.LEAST <= step.batches <= 5 for step in found.steps)
    assert "source.window.steps" not in found.advice


def test_steps_of_a_window_add_up_to_the_update(folder: Path) -> None:
    """The gradient of an update is the mean over its steps, which is what measuring them one by one relies on."""
    source = OnPolicySteps(4, REWARD, FlowSDE(), Fraction(0.3), group_size=4)
    trainer = trainer_of(toy_run(folder, source, SURROGATE, 3))
    batch = trainer.experience(trainer.context(1)).batch
    steps = batch.index[0].tolist()
    alone = [snr.gradient(trainer, snr._at_step(batch, k)) for k in steps]
    whole = snr.gradient(trainer, batch)
    trainer.runtime.close()
    assert (torch.stack(alone).mean(0) - whole).norm() < 1e-5 * whole.norm()


def test_clean_samples_are_measured_in_bands_of_time(folder: Path) -> None:
    found, untouched = measured(folder, OnPolicy(4, REWARD, group_size=4), NFT())
    assert untouched
    assert [step.name[:2] for step in found.steps] == ["t "] * snr.BANDS + ["al"]


def test_too_few_batches_are_refused(folder: Path) -> None:
    with pytest.raises(snr.ConfigError, match="at least 3"):
        measured(folder, OnPolicy(4, REWARD, group_size=4), NFT(), batches=2)


RUN = """\
name: toy
steps: 50
policy: {{pipeline: {folder}, call: {{num_inference_steps: 5}}}}
data: {{prompts: {folder}/prompts.txt}}
source:
  type: on_policy_steps
  prompts: 2
  group_size: 4
  dynamics: {{type: flow_sde}}
  window: {{type: branch, steps: [0, 1]}}
  reward: {{type: function, call: "tests.support.toy:near_the_right_mode"}}
objective: {{type: clipped_surrogate, clip: 1e-2}}
device: cpu
output: {{folder: {out}}}
"""


def test_the_command_prints_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(folder=folder, out=tmp_path / "runs"))
    words = ["doctor", str(tmp_path / "run.yaml"), "--snr", "steps=3"]
    assert cli.run(words) == 0
    assert "signal" in capsys.readouterr().out
    assert cli.run([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["snr"]
    assert [step["batches"] for step in said["steps"]] == [3] * 5
    picture = tmp_path / "runs" / "toy.doctor" / "snr.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert said["picture"] == str(picture)
    assert not (tmp_path / "runs" / "toy").exists()


def test_how_many_batches_does_not_undo_other_words(folder: Path, tmp_path: Path) -> None:
    """The reward of the file would ask people; the one of the command line does not."""
    votes = f"{{{{type: win_rate, judge: {{{{type: votes, folder: '{tmp_path}'}}}}}}}}"
    reward_of_the_file = '{{type: function, call: "tests.support.toy:near_the_right_mode"}}'
    asking = RUN.replace(reward_of_the_file, votes)
    assert asking != RUN
    (tmp_path / "run.yaml").write_text(asking.format(folder=folder, out=tmp_path / "runs"))
    reward = "source.reward={type: function, call: 'tests.support.toy:near_the_right_mode'}"
    assert cli.run(["doctor", str(tmp_path / "run.yaml"), "--snr", "steps=3", reward]) == 0
