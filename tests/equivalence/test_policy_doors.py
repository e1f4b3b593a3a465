"""Sampling, replaying and visiting through a pipeline's own `__call__` give what the pipeline gives."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from alignment.errors import ConfigError, PipelineError
from alignment.policy.prepare import probe
from samplers import Conductor, Native, ReplayMismatch, Skip
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.base import Choice
from tests.support.policies import (
    ALL,
    CASES,
    CPU,
    DYNAMICS,
    GROUP,
    PROMPTS,
    ROWS,
    Failing,
    build,
    counted,
    learn,
    log_ratio,
    perturb,
    plain,
    plan,
    replayed,
    transitions,
)
from tests.support.tiny import SD15_CALL, tiny_sd15

RATIO = 1e-6
OTHER_ROWS = 1e-5  # products of another number of rows sum in another order: 1.4e-6 was seen with AVX2
"""|rho - 1| of unchanged weights, in float32."""
GRADIENT = 1e-5
"""Relative rounding of gradients summed in another order."""

# Every dynamics, and every case: how a model output is stepped knows nothing of the call that it came from.
STOCHASTIC = [
    *(("flux", dynamics) for dynamics in DYNAMICS["flux"]),
    ("flux guided", FlowSDE()),
    *(("sd15 guided", dynamics) for dynamics in DYNAMICS["sd15"]),
    ("sd15", DDIM()),
    ("sd15 negative", DDIM()),
]


@pytest.fixture(scope="module")
def untouched(flux_folder, sd15_folder):
    """Return a function from a case to its policy: one for all tests that leave it as it was."""
    return functools.cache(lambda case: build(flux_folder if case.startswith("flux") else sd15_folder, CASES[case]))


@pytest.fixture(scope="module")
def moved(flux_folder, sd15_folder):
    """Return the same for policies whose trained weights were moved; gradients may be left in them."""

    @functools.cache
    def make(case):
        policy = build(flux_folder if case.startswith("flux") else sd15_folder, CASES[case])
        perturb(policy)
        return policy

    return make


@pytest.mark.parametrize("case", CASES)
def test_without_noise_the_pipeline_is_itself_bit_for_bit(case, untouched, folder_of):
    policy = untouched(case)
    pixels = policy.call(Conductor([Native()] * 4), PROMPTS[:1], torch.tensor([5]), pixels=True)
    assert torch.equal(pixels[:, 0], plain(folder_of[case.split()[0]], PROMPTS[:1], [5], CASES[case]))
    two = policy.call(Conductor(), PROMPTS, torch.tensor([5, 6]), pixels=True)
    expected = plain(folder_of[case.split()[0]], PROMPTS, [5, 6], CASES[case])
    torch.testing.assert_close(two[:, 0], expected, atol=ROWS, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_generating_is_what_a_user_would_do(case, untouched, folder_of):
    media = untouched(case).generate(PROMPTS, torch.tensor([5, 6]), {})
    expected = plain(folder_of[case.split()[0]], PROMPTS, [5, 6], CASES[case])
    torch.testing.assert_close(media.pixels[:, 0], expected, atol=ROWS, rtol=0)


@pytest.mark.parametrize(("case", "dynamics"), STOCHASTIC, ids=lambda value: getattr(value, "a", None) and str(value))
def test_the_first_ratio_is_one(case, dynamics, moved):
    policy = moved(case)
    path, batch = transitions(policy, plan(policy, dynamics))
    assert path.pixels.shape == (6, 1, 3, 16, 16)
    for rows in (torch.arange(6), torch.tensor([4]), torch.tensor([1, 2, 5])):
        part = batch[rows]
        seen = []
        policy.replay(part, lambda k, v, part=part, seen=seen: seen.append(log_ratio(part, k, v)), grad=True)
        assert len(seen) == 3
        for ratio in seen:
            assert ratio.exp().sub(1).abs().max() <= (RATIO if len(rows) == len(batch) else OTHER_ROWS)


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_branches_of_a_shared_state_have_ratio_one_too(case, untouched):
    policy = untouched(case)
    dynamics = DYNAMICS[case.split()[0]][0]
    for k in range(3):
        _, batch = transitions(policy, plan(policy, dynamics, Choice((k,), (k,), branch=True)))
        assert batch.x_next.shape[:3] == (2, 1, GROUP)
        (model_output,) = replayed(policy, batch)
        assert log_ratio(batch, 0, model_output).exp().sub(1).abs().max() <= RATIO


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_gradients_reach_every_adapter_and_nothing_else(case, moved):
    policy = moved(case)
    _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0]))
    batch = replace(batch, advantage=torch.randn(batch.advantage.shape))
    gradients = learn(policy, batch)
    assert gradients.keys() == policy.trainable.keys()
    assert [name for name, gradient in gradients.items() if not gradient.abs().max() > 0] == []
    trained = {id(p) for p in policy.trainable.values()}
    networks = [m for m in policy.pipe.components.values() if isinstance(m, torch.nn.Module)]
    others = [p for network in networks for p in network.parameters() if id(p) not in trained]
    assert others
    assert all(p.grad is None and not p.requires_grad for p in others)


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_the_denoiser_runs_in_visited_rounds_only(case, untouched):
    policy = untouched(case)
    guided = 2 if "guided" in case else 1
    with counted(policy.denoiser) as rows:
        _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0], Choice((0, 1, 2), (0, 2))))
        rows.clear()
        replayed(policy, batch)
        assert rows == [2 * guided, 6 * guided]  # two groups leave one state each, six samples walk on
        rows.clear()
        policy.call(Conductor([Skip()] * 4), PROMPTS, torch.tensor([0, 1]), pixels=False)
        assert rows == []


def test_another_state_is_never_replayed(untouched):
    policy = untouched("flux")
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    x = batch.x.clone()
    x[2, 0, 0, 0] += 1e-6
    says = r"round 0 met another state .* 1 of \d rows differ by up to .* float32 .*same seeds, here 10,"
    with pytest.raises(PipelineError, match=says) as caught:
        replayed(policy, replace(batch, x=x))
    assert isinstance(caught.value.__cause__, ReplayMismatch)
    with pytest.raises(PipelineError, match="round 0 met another state"):
        replayed(policy, replace(batch, seeds=batch.seeds + 1))
    replayed(policy, batch)


class Held:
    """A tensor that autograd keeps for the backward pass, counted while it lives."""

    live = 0
    peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.live += tensor.nbytes
        Held.peak = max(Held.peak, Held.live)

    def __del__(self):
        Held.live -= self.tensor.nbytes


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_memory_does_not_grow_with_trained_steps(case, moved):
    policy = moved(case)
    peaks = []
    for trained in ((1,), (0, 1, 2)):
        _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0], Choice((0, 1, 2), trained)))
        Held.live = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            learn(policy, batch)
        peaks.append(Held.peak)
    assert peaks[0] > 0
    # The pipeline's own step, of which nothing is learned, saves a state or two.
    assert peaks[1] <= 1.02 * peaks[0]


@pytest.mark.parametrize(("case", "spec"), [("flux", {}), ("flux", {"lora": None}), ("sd15 guided", {})])
def test_checkpointing_gives_the_same_gradient(case, spec, policy_of):
    found = []
    for checkpointing in (False, True, "selective"):
        policy = policy_of(case, gradient_checkpointing=checkpointing, **spec)
        perturb(policy)
        _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0]))
        found.append(learn(policy, batch))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient)
        assert torch.equal(found[2][name], gradient)


def test_autocast_computes_both_passes_alike(policy_of):
    policy = policy_of("flux", autocast="bfloat16")
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    assert batch.model_output.dtype == torch.float32
    assert torch.equal(batch.model_output, batch.model_output.bfloat16().float())
    # The same rows in the same order: bfloat16 products depend on how many there are.
    for k, model_output in enumerate(replayed(policy, batch[torch.arange(6)])):
        if k > 0:  # in round 0 the rollout ran one row a prompt
            assert log_ratio(batch, k, model_output).exp().sub(1).abs().max() <= RATIO


def test_the_pipeline_is_whole_after_a_call_that_failed(policy_of, folder_of):
    policy = policy_of("sd15 guided")
    own, network = policy.pipe.scheduler, policy.pipe.unet
    with pytest.raises(RuntimeError, match="on purpose"), Failing(policy):
        policy.call(Conductor(), PROMPTS, torch.tensor([1, 2]), pixels=True)
    assert policy.pipe.scheduler is own
    assert policy.pipe.unet is network
    media = policy.generate(PROMPTS[:1], torch.tensor([5]), {})
    assert torch.equal(media.pixels[:, 0], plain(folder_of["sd15"], PROMPTS[:1], [5], CASES["sd15 guided"]))


@pytest.mark.parametrize("case", ["flux", "sd15", "sd15 guided"])
def test_a_visit_at_a_time_of_the_grid_is_a_replay(case, moved):
    policy = moved(case)
    _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0]))
    own = policy.door.scheduler.timesteps
    t = own.double() / (1000 if case == "flux" else 999)
    points = [(batch.x[:, k], t[k].float().expand(6)) for k in range(3)]
    answers = []
    policy.visit(batch, points, lambda k, v: answers.append(v), grad=False)
    for k, expected in enumerate(replayed(policy, batch)):
        torch.testing.assert_close(answers[k], expected, atol=ROWS, rtol=ROWS)


def test_visits_have_gradients(moved):
    policy = moved("flux")
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    for parameter in policy.trainable.values():
        parameter.grad = None
    points = [(torch.randn(6, 16, 16), torch.rand(6)) for _ in range(2)]
    seen = []
    policy.visit(batch, points, lambda k, v: (seen.append(k), v.square().mean().backward()), grad=True)
    assert seen == [0, 1]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.trainable.values())


@pytest.mark.parametrize("case", ["flux", "flux guided", "sd15", "sd15 guided"])
def test_pipelines_that_take_a_time_a_row(case, moved):
    policy = moved(case)
    assert policy.row_times
    _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0]))
    x, t = torch.randn_like(batch.x[:, 0]), torch.linspace(0.1, 0.9, 6)
    answers = []
    policy.visit(batch, [(x, t)], lambda k, v: answers.append(v), grad=False)
    for row in range(6):
        one = torch.tensor([row])
        policy.visit(batch[one], [(x[one], t[one])], lambda k, v: answers.append(v), grad=False)
    torch.testing.assert_close(answers[0], torch.cat(answers[1:]), atol=ROWS, rtol=ROWS)


@pytest.mark.parametrize("how", ["raises", "takes the first"])
def test_pipelines_that_take_one_time_a_call(how, policy_of):
    policy = policy_of("flux")

    def hook(module, args, named):
        t = named["timestep"]
        if how == "raises":
            t.unique().item()
        return args, {**named, "timestep": t[:1].expand_as(t)}

    policy.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    assert not policy.row_times


def test_a_higher_order_scheduler_trains_as_ddim_and_evaluates_as_itself(tmp_path):
    pipe = tiny_sd15()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.save_pretrained(tmp_path)
    policy = build(tmp_path, SD15_CALL)
    assert isinstance(policy.door.scheduler, DDIMScheduler)
    assert policy.rounds == 4
    _, batch = transitions(policy, plan(policy, DDIM()))
    assert log_ratio(batch, 1, replayed(policy, batch)[1]).exp().sub(1).abs().max() <= RATIO
    assert type(policy.pipe.scheduler) is PNDMScheduler
    media = policy.generate(PROMPTS[:1], torch.tensor([5]), {})
    assert torch.equal(media.pixels[:, 0], plain(tmp_path, PROMPTS[:1], [5], SD15_CALL))


def test_rounds_that_do_not_happen_are_an_error(policy_of):
    policy = policy_of("flux")
    _, batch = transitions(policy, plan(policy, FlowSDE(), ALL))
    policy.rounds = 5
    with pytest.raises(PipelineError, match="ran 4 rounds where 5 were conducted"):
        replayed(policy, batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heigth": 16}, r"policy\.call\.heigth: FluxPipeline takes no such argument\. Did you mean 'height'\?"),
        ({"zzz": 1}, r"policy\.call\.zzz: FluxPipeline takes no such argument\.$"),
        ({"num_images_per_prompt": 2}, r"policy\.call\.num_images_per_prompt cannot be set"),
        ({"generator": 1}, r"policy\.call\.generator cannot be set"),
    ],
)
def test_call_arguments_are_checked(arguments, message, flux_folder):
    with pytest.raises(ConfigError, match=message):
        build(flux_folder, {**CASES["flux"], **arguments}, ready=False)


def test_a_pipeline_without_steps_cannot_be_conducted(flux_folder):
    policy = build(flux_folder, CASES["flux"], ready=False)
    policy.pipe.__class__ = type("Still", (type(policy.pipe),), {"__call__": lambda self, **given: (torch.zeros(1),)})
    with pytest.raises(PipelineError, match="never stepped its scheduler"):
        probe(policy, "a")
    assert policy.device == CPU


def test_a_pipeline_looks_once_for_the_device_it_runs_on(flux_folder):
    """To find it, diffusers walks through every module, several times a call; a replay is a call."""
    policy, asked = build(flux_folder, CASES["flux"]), []
    cls: Any = type(policy.pipe)

    class Asked(cls):
        @property
        def _execution_device(self):
            asked.append(None)
            return super()._execution_device

    policy.pipe.__class__ = Asked
    door = policy.door.aside()
    seeds = torch.arange(len(PROMPTS))
    first, again = (door.conduct(Conductor(), policy.given(PROMPTS, seeds, "latent"), seeds) for _ in range(2))
    assert len(asked) == 1
    assert torch.equal(first, again)
