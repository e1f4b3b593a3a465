"""A plan counts what torch counts, without weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignment.cli import main as cli
from alignment.config.load import load
from alignment.config.parallel import Division, Parallel
from alignment.config.run import Run
from alignment.data.prompts import Prompts, read_prompts
from alignment.policy.policy import Policy
from alignment.preflight.plan import meter, plan
from alignment.preflight.plan.counts import Called, Event, StepCounts
from alignment.preflight.plan.gpus import GPUS, gpu
from alignment.preflight.plan.meter import Cost
from alignment.preflight.plan.rehearsal import Rehearsal, rehearsed
from alignment.preflight.plan.spread import Traffic, spread, traffic
from alignment.training import setup
from alignment.training.runtime.runtime import Runtime
from tests.support.flops import flop_counter

ROOT = Path(__file__).parents[3]
FLOPS = 0.05
"""Adapters folded in and a pipeline's own small products are not planned; both are far below this."""

SMALL = (
    "source.prompts=2",
    "source.prompts_per_call=1",
    "source.group_size=3",
    "source.reward={type: jpeg}",
    "batch={updates: 1, microbatch: 4}",
    "data.prompts=prompts.txt",
    "evaluation={prompts: null}",
)
PROMPTS = Prompts(("two red circles", "one blue square"))
CASES = {
    "branch, folded adapters": ("quickstart", ()),
    "window, adapters": ("quickstart_dancegrpo", ()),
    "window, all weights, divergence": ("quickstart_dancegrpo", ("policy.lora=null", "objective.kl=0.1")),
    "recomputed activations": ("quickstart_dancegrpo", ("policy.gradient_checkpointing=true",)),
    "some of them": ("quickstart_dancegrpo", ("policy.gradient_checkpointing=selective",)),
    "fewer calls after the window": ("quickstart", ("source.tail=1", "source.window.steps=[0]")),
    "clean samples, two frozen copies": ("quickstart_nft", ("objective.kl=1e-4", "objective.points=2")),
    "matching": ("quickstart_awm", ()),
}


@pytest.fixture(autouse=True)
def beside_the_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("two red circles\none blue square\n")
    for name in ("assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def planned(run: Run, number: int = 0) -> tuple[float, float]:
    """Return the FLOPs of a step's experience and of its updates."""
    rehearsal = Rehearsal(run, read_prompts(run.data.prompts))
    step, door = rehearsal.step(number), rehearsal.door
    phases = {p: sum(e.cost.flops for e in step.events if e.phase == p) for p in ("rollout", "update")}
    decoded = sum(door.after.of(call.rows).flops for call in step.calls if call.decodes)
    return phases["rollout"] + decoded, phases["update"]


def counted(run: Run) -> tuple[float, float]:
    """Return the same of a real step, by torch's own counter."""
    trainer = setup.load(run, Runtime(run))
    ctx = trainer.context(0)
    _ = ctx.policy.row_times  # found out once a run
    with flop_counter() as sampling:
        batch = trainer.experience(ctx).batch
    with flop_counter() as learning:
        trainer.learn(ctx, batch)
    return sampling.get_total_flops(), learning.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_flops_of_a_step_are_torchs(case: str) -> None:
    name, changes = CASES[case]
    run = load(name, [*SMALL, *changes])
    assert planned(run) == pytest.approx(counted(run), rel=FLOPS)


@pytest.mark.parametrize("recompute", [False, True])
def test_processes_that_share_a_sample_share_its_cost(recompute: bool) -> None:
    large = ("policy.call.height=128", "policy.call.width=128", f"policy.gradient_checkpointing={recompute}")
    run = load("quickstart_dancegrpo", [*SMALL, "policy.lora=null", *large])
    prompts = read_prompts(run.data.prompts)
    one, two = (Rehearsal(run, prompts, division) for division in (Division(1, 1), Division(1, 2, 2)))
    width, pixels, texts = 128, 256, 12  # of a token; tokens of a sample, and of its prompt
    attended = (
        5 * 4 * (pixels + texts) // 2 * width // 2 * 4
    )  # by five blocks; queries, keys, values and what comes out
    joined = pixels // 2 * two.door.latent[-1] * 4
    for alone, shared in zip(one.step(0).events, two.step(0).events, strict=True):
        assert alone.cost.flops / 2 <= shared.cost.flops < 0.52 * alone.cost.flops
        assert shared.cost.bytes < 0.55 * alone.cost.bytes
        assert alone.cost.received == 0
        times = 1 + shared.grad * (1 + recompute)
        assert shared.cost.received == shared.rows * (times * attended + (1 + shared.grad) * joined)


def network() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(8)))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_meter_counts_as_torch_does(recompute: bool) -> None:
    def run(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    with torch.device("meta"):
        blocks, x = network(), torch.empty(100, 64)
    cost, reached = meter.backward(lambda: run(blocks, x), blocks.parameters(), blocks.parameters(), None)
    with flop_counter() as counter:
        run(network(), torch.randn(100, 64)).sum().backward()
    assert reached
    assert cost.flops == counter.get_total_flops()


def test_recomputing_saves_memory_and_costs_flops() -> None:
    with torch.device("meta"):
        blocks, x = network(), torch.empty(1000, 64)

    def recomputed() -> torch.Tensor:
        z = x
        for block in blocks:
            z = checkpoint(block, z, use_reentrant=False)
        return z

    kept, _ = meter.backward(lambda: blocks(x), blocks.parameters(), blocks.parameters(), None)
    less, _ = meter.backward(recomputed, blocks.parameters(), blocks.parameters(), None)
    assert less.bytes < kept.bytes / 2
    assert less.flops > kept.flops


def test_weights_in_float8_take_a_quarter_and_are_made_again_block_by_block() -> None:
    words = [*SMALL, "policy.gradient_checkpointing=true", "policy.lora.merge=false"]
    runs = [load("quickstart_dancegrpo", [*words, f"policy.quantize={how}"]) for how in ("null", "float8")]
    full, eight = (plan.plan(run, plan.Setup(gpu("h100"))).memory["update"] for run in runs)
    network = rehearsed(runs[1])[0].denoiser
    stored = sum(p.numel() for p in network.parameters() if p.dtype == torch.float8_e4m3fn)
    assert full["transformer weights"] - eight["transformer weights"] == 3 * stored
    assert 0 < eight["activations"] - full["activations"] < 4 * stored  # only the block at work has them whole


@pytest.mark.parametrize("trains", ["lora.rank=4", "lora=null"])
def test_what_is_recomputed_selectively_is_in_between(trains: str) -> None:
    found = []
    for how in ("false", "selective", "true"):
        words = [f"policy.{trains}", f"policy.gradient_checkpointing={how}"]
        rehearsal = Rehearsal(load("quickstart_dancegrpo", [*SMALL, *words]), PROMPTS)
        events = [event.cost for event in rehearsal.step(0).events if event.phase == "update"]
        found.append((max(cost.bytes for cost in events), sum(cost.flops for cost in events)))
    (none, at_least), (some, between), (fewest, most) = found
    assert none > some > fewest
    assert at_least <= between < most
    if trains == "lora=null":  # all products are kept
        assert between < at_least + 0.02 * (most - at_least)


READERS = ("quickstart_chain", "quickstart_gdpo", "quickstart_lexicographic", "quickstart_min", "quickstart_prefgrpo")


@pytest.mark.parametrize("recipe", READERS)
def test_credit_made_of_the_parts_of_a_reward_is_planned(recipe: str) -> None:
    """Nothing is scored in a plan; what reads parts finds those that the reward will have."""
    words = [word for word in SMALL if not word.startswith(("source.reward", "evaluation", "data"))]
    run = load(recipe, [*words, "evaluation={prompts: null}"])
    assert Rehearsal(run, read_prompts(run.data.prompts)).step(0).scored == 6


def test_parts_that_a_reward_does_not_tell_are_those_that_credit_reads() -> None:
    reward = "{type: function, call: 'tests.support.failures:random_reward'}"
    run = load("quickstart_gdpo", [*SMALL, f"source.reward={reward}"])
    assert run.source.advantage is not None
    assert run.source.advantage.reads
    assert Rehearsal(run, PROMPTS).step(0).scored == 6


def test_attention_keeps_no_score_matrix() -> None:
    q = torch.empty(1, 8, 4096, 64, device="meta", dtype=torch.bfloat16)
    attend = nn.functional.scaled_dot_product_attention
    cost, _ = meter.forward(lambda: attend(q, q, q), (q,), None)
    assert cost.flops == 4 * 8 * 4096**2 * 64
    assert cost.bytes < 8 * 4096**2


def test_autocast_halves_activations() -> None:
    with torch.device("meta"):
        blocks, x = network(), torch.empty(10_000, 64)
    full, _ = meter.forward(lambda: blocks(x), blocks.parameters(), None)
    half, out = meter.forward(lambda: blocks(x), blocks.parameters(), torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert half.bytes - half.fixed < 0.7 * full.bytes
    assert half.fixed == sum(2 * p.numel() for p in blocks.parameters())


def test_a_plan_adds_up() -> None:
    run = load("quickstart_dancegrpo", [*SMALL, "policy.lora=null"])
    made = plan.plan(run, plan.Setup(gpu("h100")))
    denoiser = next(n for n in made.networks if n.name == "transformer")
    assert denoiser.trained == denoiser.parameters
    update = made.memory["update"]
    assert update["gradients"] == 4 * denoiser.trained
    assert update["optimizer"] == 8 * denoiser.trained
    assert update["transformer weights"] == 4 * denoiser.parameters
    assert made.peak_bytes == max(sum(parts.values()) for parts in made.memory.values())
    assert "text encoders" in made.memory["loading"]
    assert "text encoders" not in update  # dropped once prompts are embedded


def test_a_plan_counts_what_a_rule_keeps() -> None:
    planned = [
        plan.plan(load("quickstart_dancegrpo", [*SMALL, *words]), plan.Setup(gpu("h100"))).memory["optimizer step"]
        for words in ((), ("optimizer={type: muon, betas: null}",), ("optimizer={type: adafactor, betas: null}",))
    ]
    adam, muon, factored = (parts["optimizer"] for parts in planned)
    assert muon == adam / 2
    assert factored < adam / 4  # adapters of rank 8 are no large matrices
    assert ["temporaries" in parts for parts in planned] == [False, True, True]


WEIGHTS = ("transformer weights", "gradients", "optimizer", "frozen copies")
PADDING = 1.02  # rows that do not divide by the processes are rounded up; the smallest layers have ten


def test_what_derives_from_weights_falls_as_one_over_the_shards() -> None:
    run = load("quickstart_nft", [*SMALL, "policy.lora=null", "policy.autocast=null"])
    alone = plan.plan(run, plan.Setup(gpu("h100"), gpus=2))
    shared = plan.plan(replace(run, parallel=Parallel(2)), plan.Setup(gpu("h100"), gpus=2))
    for part in WEIGHTS:
        half = alone.memory["update"][part] / 2
        assert half <= shared.memory["update"][part] <= PADDING * half
    assert "gathered weights" not in alone.memory["update"]
    assert alone.flops == shared.flops
    assert alone.memory["update"]["activations"] == shared.memory["update"]["activations"]


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return rehearsed(load("quickstart_dancegrpo", ["policy.lora=null"]))[0]


def test_networks_that_are_not_divided_are_whole(tiny: Policy) -> None:
    numbers = sum(p.numel() for p in tiny.denoiser.parameters())
    over = spread(tiny, Division(1, 4), stays=True)
    assert (over.held, over.trained) == (4 * numbers, 4 * numbers)
    assert over.moved == over.sampling == over.decoding == sum(over.learning) == 0


@pytest.mark.parametrize("shard", [2, 3, 8, 64])
def test_a_process_holds_its_part_and_less_than_a_row_more(tiny: Policy, shard: int) -> None:
    weights = list(tiny.denoiser.parameters())
    over = spread(tiny, Division(shard, 1), stays=False)
    whole, rows = sum(p.nbytes for p in weights), sum(p[0].nbytes for p in weights)
    assert whole / shard <= over.held < whole / shard + rows
    assert over.trained == over.held


def test_blocks_are_gathered_in_turn(tiny: Policy) -> None:
    over = spread(tiny, Division(4, 1), stays=False)
    block, rest = max(p.gathered for p in over.parts["transformer"][:-1]), over.parts["transformer"][-1].gathered
    assert over.sampling == 2 * block + rest
    assert 2 * block + rest <= sum(over.learning) <= 5 * block + 3 * rest  # float32: gradients and sums are as large
    kept = spread(tiny, Division(4, 1), stays=True)
    assert kept.sampling == sum(p.gathered for p in over.parts["transformer"]) + max(block, rest)


def test_traffic_is_of_each_call_and_of_each_update(tiny: Policy) -> None:
    whole = sum(p.nbytes for p in tiny.denoiser.parameters())
    calls = [Event(phase, 1, Cost(), phase == "update", ("transformer",)) for phase in ("rollout", "update", "update")]
    steps = [StepCounts(calls, [Called("rollout", 1, decodes=True)], 0, 0, 0)]
    plain = traffic(spread(tiny, Division(1, 4), stays=False), steps, updates=3)
    assert plain == Traffic(0, 0, 3 * 2 * 3 / 4 * whole)  # an all-reduce, once around twice, an update
    over = spread(tiny, Division(4, 1), stays=False)
    gathered = 3 / 4 * sum(p.gathered for p in over.parts["transformer"])
    summed = 3 / 4 * sum(p.summed for p in over.parts["transformer"])
    assert traffic(over, steps, updates=3) == Traffic(
        gathered, 2 * gathered + summed, gathered + 2 * (2 * gathered + summed)
    )
    twice = traffic(spread(tiny, Division(4, 2), stays=False), steps, updates=3)
    assert twice.learning == 2 * gathered + summed + over.trained  # and its own part goes around two sets


def test_more_gpus_do_less_each() -> None:
    run = load("quickstart_dancegrpo", SMALL)
    one, two = (plan.plan(run, plan.Setup(gpu("4090"), gpus=n)) for n in (1, 2))
    assert two.flops["rollout"] == pytest.approx(one.flops["rollout"] / 2)


def test_the_command_prints_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "quickstart", *SMALL, "--gpu", "l40s"]) == 0
    told = capsys.readouterr().out
    assert "fits" in told
    assert "transformer weights" in told
    assert cli.run(["plan", "quickstart", *SMALL, "--json", "--peak-fraction", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flops_per_step"]["total"] == pytest.approx(
        found["seconds_per_step"]["total"] * 0.2 * gpu("h200").half
    )
    assert found["peak"]["fits"]
    words = ["policy.lora.merge=false", "parallel.shard=2", "--gpus", "2", "--bandwidth", "32"]
    assert cli.run(["plan", "quickstart", *SMALL, *words]) == 0
    told = capsys.readouterr().out
    assert "networks in 2 parts" in told
    assert "gathered weights" in told
    assert "received from other GPUs, at 32 GB/s" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "abacus"], "--gpu: no GPU is called 'abacus' here; known: b200, h200"),
        (["--gpus", "0"], "--gpus: got 0, expected at least 1"),
        (["--bandwidth", "0"], "--bandwidth: got 0.0, expected a number of GB/s above 0"),
        (["parallel.shard=8", "--gpus", "6"], "parallel.shard: 8 processes in each of 0 sets are not the 6"),
        (["parallel.shard=6", "--gpus", "6", "policy.lora.merge=true"], "policy.lora.merge: adapters cannot be folded"),
        (["--gpus", "5"], "source.prompts: 36 prompts per step do not divide over 5 GPUs"),
        (["--peak-fraction", "40"], "--peak-fraction: got 40.0"),
        (["policy.pipeline=nobody/nothing"], "the configuration of nobody/nothing is not on this machine"),
        (["policy.call.max_sequence_length=900"], "`max_sequence_length` cannot be greater than 512 but is 900"),
    ],
)
def test_what_cannot_be_planned_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_another_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(ROOT / "assets/tiny_flux", tmp_path / "flux")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "HyperPipeline"}))
    assert cli.run(["plan", "quickstart", f"policy.pipeline={folder}"]) == 2
    assert "is a HyperPipeline, which this diffusers does not have" in capsys.readouterr().err


def test_no_weights_are_read(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "assets/tiny_flux", tmp_path / "flux")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    run = load("quickstart", [*SMALL, f"policy.pipeline={folder}"])
    whole = load("quickstart", SMALL)
    assert planned(run) == planned(whole)


def test_gpus_have_names_of_their_own() -> None:
    assert len({one.name for one in GPUS}) == len(GPUS)


def test_a_gradient_through_the_decoder_is_not_planned_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("data.prompts=prompts.txt", "evaluation={prompts: null}", "source.prompts=2")
    assert cli.run(["plan", "quickstart_draft", *changes]) == 2
    assert "DRaFT keeps the graph of decoder and reward model" in capsys.readouterr().err
