"""Train the cases on however many processes a launcher started, and write what came out; test_processes.py runs it.

Usage: torchrun --nproc_per_node N two_processes.py TOY_FOLDER OUTPUT_FOLDER REWARD_SERVER SHARD CASE,CASE,... FOLDER
CASE ...

The second folder is that of `families.py`, whose cases follow.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from alignment.checkpoints.parts import whole
from alignment.config.run import BatchSettings, Data, Evaluation, Optimizer, Parallel, Run, Snapshots
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.data.prompts import Prompts
from alignment.objectives.base import Learn, Loss, Objective
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.forward_process.kto import KTO
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.vipo import ViPO
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.seppo import SePPO
from alignment.sources.base import Source
from alignment.sources.offline import Offline
from alignment.sources.offline_pairs import OfflinePairs
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.sources.prompts_only import PromptsOnly
from alignment.sources.scouting.scout import Cheaply, Scout
from alignment.sources.semi_policy import SemiPolicy
from alignment.training.evaluation import Evaluator
from alignment.training.loop import Trainer
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour
from reward_models.serving.remote import Remote
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.branch import Branch
from samplers.windows.fraction import Fraction
from tests.equivalence import families
from tests.support.toy import REWARD, fit, labelled, pairs, toy_run, trainer_of

STEPS = 3
Outcome = tuple[dict[str, torch.Tensor], dict[str, Any]]
# The calls of a step train other steps of the loop, so that the processes know other numbers for the record. A call may
# be one prompt, all of a process's (two here), or more than it has.
CASES: dict[str, tuple[Source, Objective]] = {
    "transitions": (
        OnPolicySteps(4, REWARD, FlowSDE(), Fraction(0.3), group_size=4, prompts_per_call=1),
        ClippedSurrogate(clip=1e-2, kl=0.1),
    ),
    "branch": (
        OnPolicySteps(4, REWARD, FlowSDE(), Branch((0, 1, 2, 3)), group_size=4, prompts_per_call=4),
        ClippedSurrogate(clip=1e-2, weight="equal"),
    ),
    "vipo": (
        OnPolicySteps(
            4,
            REWARD,
            FlowSDE(),
            Branch((0, 1, 2, 3)),
            group_size=4,
            prompts_per_call=1,
            structure=Perceptual(Saliency()),
        ),
        ViPO(),
    ),
    "compared": (
        OnPolicySteps(
            4,
            WinRate(BradleyTerry(REWARD, temperature=0.1)),
            FlowSDE(),
            Fraction(0.3),
            group_size=4,
        ),
        ClippedSurrogate(clip=1e-2),
    ),
    "served": (
        OnPolicySteps(4, REWARD, FlowSDE(), Fraction(0.3), group_size=4, prompts_per_call=1, overlap="always", stale=1),
        ClippedSurrogate(clip=1e-2),
    ),
    "nft": (OnPolicy(4, REWARD, group_size=4, weights="behaviour"), NFT()),
    "scouts": (
        OnPolicy(4, REWARD, group_size=2, prompts_per_call=1, scout=Scout(6, Cheaply(call={"num_inference_steps": 3}))),
        NFT(),
    ),
    "tails": (  # as many calls of the network as steps up to the branch, and two
        OnPolicySteps(4, REWARD, FlowSDE(), Branch((0, 1, 2, 3)), group_size=4, prompts_per_call=1, tail=2),
        ClippedSurrogate(clip=1e-2, weight="equal"),
    ),
    "scouts with tails": (
        OnPolicySteps(
            4, REWARD, FlowSDE(), Branch((1, 2)), group_size=2, prompts_per_call=1, scout=Scout(6, Cheaply(tail=2))
        ),
        ClippedSurrogate(clip=1e-2, weight="equal"),
    ),
    "tree": (OnPolicyTree(4, FlowSDE(), REWARD, splits=(0, 1)), ClippedSurrogate(clip=1e-2, weight="equal")),
    "pairs": (OnPolicyPairs(4, REWARD, group_size=4, prompts_per_call=1), DPO(beta=5.0)),
    "direct": (PromptsOnly(4, Colour(), group_size=4), DRaFT(last=2)),
    "offline": (Offline(8, rows_per_group=2), KTO(beta=5.0)),
    "offline pairs": (OfflinePairs(8), DPO(beta=5.0)),
    "semi": (SemiPolicy(8, every=2), SePPO(beta=5.0)),
}
DATA = {"offline": "labelled.jsonl", "offline pairs": "pairs.jsonl", "semi": "winners/wanted.jsonl"}
"""Data files of those that learn from one; `write_data` writes them, before there are two who could."""
HELD_OUT = Prompts(("prompt 0", "prompt 1", "prompt 2"))
IMAGES = 3  # of each: 9 pictures, which two processes cannot share evenly


def write_data(folder: Path) -> None:
    """Write the data files of `DATA`."""
    labelled(folder)
    pairs(folder)
    (folder / "winners").mkdir()
    labelled(folder / "winners", wanted=True)


def run_of(folder: Path, name: str, server: str | None = None, shard: int = 1) -> Run:
    """Return the run of a case; "served" asks a server for the scores that it else makes itself."""
    source, objective = CASES[name]
    if server is not None and name == "served":
        source = replace(source, reward=Remote(server, pixels="float32"))
    data = {"data": Data(str(folder / DATA[name]))} if name in DATA else {}
    return toy_run(
        folder,
        source,
        objective,
        STEPS,
        **data,
        batch=BatchSettings(updates=2, microbatch=3),
        snapshots=Snapshots(ema=0.5),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1),
        parallel=Parallel(shard),
    )


def outcome(trainer: Trainer) -> Outcome:
    """Train; return the weights, and everything that should not depend on the number of processes."""
    lines = fit(trainer)
    weights = {name: whole(p.detach()).clone() for name, p in trainer.policy.trainable.items()}
    weights |= {f"ema {name}": whole(z) for name, z in trainer.policy.snapshots["ema"].items()}
    found = Evaluator(Evaluation(batch_size=2), HELD_OUT, REWARD)(trainer.context(STEPS), IMAGES, "ema")
    timed = ("seconds/", "memory/", "samples_per_second", "scout/time_share", "compile/graphs")
    metrics = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    return weights, {"metrics": metrics, "seeds": found.seeds.tolist(), "scores": found.scores["reward"].tolist()}


def broken_on_the_last_process(trainer: Trainer) -> bool:
    """Give one process a NaN; return whether the weights here stayed as they were."""
    before = [p.detach().clone() for p in trainer.policy.trainable.values()]
    factor = float("nan") if trainer.runtime.world.rank == trainer.runtime.world.size - 1 else 1.0
    batch = trainer.experience(trainer.context(STEPS)).batch
    broken: Learn = lambda loss: trainer.runtime.learn(Loss(loss.per_row * factor, {}), 1)  # noqa: E731
    one_call = (batch.chunk == batch.chunk[0]).nonzero().flatten()
    trainer.run.objective(trainer.context(STEPS), batch[one_call], broken)
    trainer.runtime.update(1e-3)
    after = trainer.policy.trainable.values()
    return all(torch.equal(whole(old), whole(p.detach())) for old, p in zip(before, after, strict=True))


def main() -> None:
    """Train the cases and write CASE.safetensors and CASE.json from the main process."""
    folder, output, server, shard = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    for name in sys.argv[5].split(","):
        trainer = trainer_of(run_of(folder, name, server, shard))
        weights, told = outcome(trainer)
        told["skipped on all"] = trainer.runtime.world.everyone(broken_on_the_last_process(trainer))
        if trainer.runtime.main:
            save_file(weights, output / f"{name}.safetensors")
            (output / f"{name}.json").write_text(json.dumps(told))
    families.train(Path(sys.argv[6]), output, sys.argv[7:])
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
