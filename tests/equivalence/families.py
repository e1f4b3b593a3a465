"""Every family of objectives on pipelines of pictures and clips; test_families.py trains them on several processes.

Usage: torchrun --nproc_per_node N families.py FOLDER OUTPUT_FOLDER CASE ...

A case is one of those below, or a member of the zoo, or `minimax_h3`, whose network is run whole and divided.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from alignment.checkpoints.parts import whole
from alignment.config.run import (
    BatchSettings,
    Data,
    Evaluation,
    Optimizer,
    Output,
    Parallel,
    PolicySpec,
    Run,
    Snapshots,
)
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.objectives.base import Objective
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.vipo import ViPO
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.seppo import SePPO
from alignment.policy.networks.spec import FrozenAdapter, Lora
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.prompts_only import PromptsOnly
from alignment.sources.semi_policy import SemiPolicy
from reward_models.measures.colour import Colour
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.equivalence.divided_networks import differences, minimax_h3
from tests.pipelines.zoo import ZOO, built
from tests.support.adapters import save
from tests.support.toy import fit, trainer_of

STEPS = 3
RATE = 1e-4
PROMPTS = 4
PIPELINES = ("flux", "wan", "wan_2_2")
STEPWISE = OnPolicySteps(PROMPTS, Colour(), FlowSDE(), Fraction(0.5), group_size=2)
FAMILIES: dict[str, tuple[Source, Objective]] = {
    "grpo": (STEPWISE, ClippedSurrogate(clip=1e-2, kl=0.1)),
    "vipo": (
        OnPolicySteps(PROMPTS, Colour(), FlowSDE(), Fraction(0.5), group_size=2, structure=Perceptual(Saliency())),
        ViPO(),
    ),
    "nft": (OnPolicy(PROMPTS, Colour(), group_size=2, weights="behaviour"), NFT()),
    "awm": (OnPolicy(PROMPTS, Colour(), group_size=2), WeightedMatching()),
    "dpo": (OnPolicyPairs(PROMPTS, Colour(), group_size=2), DPO(beta=5.0)),
    "seppo": (SemiPolicy(PROMPTS, every=2), SePPO(beta=5.0)),
    "draft": (PromptsOnly(PROMPTS, Colour(), group_size=1), DRaFT(last=1)),
}


@dataclass(frozen=True)
class Case:
    """A pipeline, a family of objectives, and what is trained.

    Attributes:
        pipeline: Member of the zoo.
        family: Of objectives.
        what: "full" for all weights; adapters that are new, "lora" or "pissa", or begin at files, "start" or "loha".
        shard: Processes that hold the networks together.
        context: Processes that work at the same samples.
    """

    pipeline: str
    family: str
    what: str
    shard: int = 1
    context: int = 1

    def __str__(self) -> str:
        return f"{self.pipeline}-{self.family}-{self.what}-shard{self.shard}-context{self.context}"

    @classmethod
    def read(cls, text: str, shard: int = 1, context: int = 1) -> Case:
        """Return the case of this name, whole or without how it is divided."""
        pipeline, family, what, *how = text.split("-")
        if how:
            shard, context = (int(re.sub(r"\D", "", word)) for word in how)
        return cls(pipeline, family, what, shard, context)

    @property
    def alone(self) -> Case:
        """The same on one process."""
        return Case(self.pipeline, self.family, self.what)


def write(folder: Path) -> None:
    """Save the pipelines, and the winners that SePPO learns from."""
    for name in PIPELINES:
        built(name).pipe.save_pretrained(folder / name)
    adapted: Any = built("flux").pipe
    save(adapted, folder / "adapter", Lora(2))
    layer, parts = "transformer_blocks.0.attn.to_q", ("w1_a", "w1_b", "w2_a", "w2_b")
    rows, columns = adapted.transformer.get_submodule(layer).base_layer.weight.shape
    sides = [torch.full((rows, 2), 0.2), torch.full((2, columns), 0.3)] * 2
    factors = {f"{layer}.hada_{part}": side.clone() for part, side in zip(parts, sides, strict=True)}
    save_file(factors, folder / "loha.safetensors")
    (folder / "prompts.txt").write_text("".join(f"{colour} circle\n" for colour in ("a red", "a green", "a blue", "a")))
    for name, frames in {"flux": 1, "wan": 5}.items():
        call = built(name).call
        size = (int(str(call["width"])), int(str(call["height"])))
        lines = []
        for k in range(8):
            pictures = [Image.new("RGB", size, (40 * frame, 30 * k, 200)) for frame in range(frames)]
            file = folder / f"{name}_{k}.{'png' if frames == 1 else 'gif'}"
            pictures[0].save(file, save_all=frames > 1, append_images=pictures[1:])
            lines.append(json.dumps({"prompt": f"a {k} circle", "media": file.name}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def run_of(folder: Path, case: Case) -> Run:
    """Return the run of a case."""
    source, objective = FAMILIES[case.family]
    spec = PolicySpec(
        str(folder / case.pipeline),
        call=dict(built(case.pipeline).call),
        **what_is_trained(folder, case.what),
        check_latents=False,
    )
    return Run(
        name="family",
        policy=spec,
        data=Data(str(folder / (f"{case.pipeline}.jsonl" if source.media else "prompts.txt"))),
        source=source,
        objective=objective,
        steps=STEPS,
        optimizer=Optimizer(learning_rate=RATE, weight_decay=0.1),
        snapshots=Snapshots(ema=0.5),
        # Wan takes one time per call, so that rows of a microbatch share one where states are noised.
        batch=BatchSettings(updates=1, microbatch=3 if case.pipeline == "flux" else 1),
        parallel=Parallel(case.shard, context=case.context, stay_gathered=case.what != "full"),
        evaluation=Evaluation(),
        output=Output(),
        device="cpu",
    )


def what_is_trained(folder: Path, what: str) -> dict[str, Any]:
    """Return the part of a policy that says so."""
    if what == "start":
        frozen = FrozenAdapter(str(folder / "loha.safetensors"), 0.5)
        return {"lora": Lora(start=str(folder / "adapter")), "adapters": (frozen,)}
    if what == "loha":
        return {"lora": Lora(start=str(folder / "loha.safetensors"))}
    return {"lora": Lora(2, init="pissa" if what == "pissa" else "gaussian") if what != "full" else None}


def outcome(folder: Path, case: Case) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return the weights after training, with the averaged copy, and the metrics of each step."""
    trainer = trainer_of(run_of(folder, case))
    lines = fit(trainer)
    weights = {name: whole(p.detach()).clone() for name, p in trainer.policy.trainable.items()}
    return weights | {f"ema {name}": whole(z) for name, z in trainer.policy.snapshots["ema"].items()}, lines


def train(folder: Path, output: Path, names: Sequence[str]) -> None:
    """Write CASE.safetensors and CASE.json for each case, from the main process."""
    for name in names:
        if name in ZOO or name == minimax_h3.__name__:
            weights, told = {}, differences(name)
        else:
            weights, told = outcome(folder, Case.read(name))
        if PartialState().is_main_process:
            save_file(weights, output / f"{name}.safetensors")
            (output / f"{name}.json").write_text(json.dumps(told))


def main() -> None:
    """Train the cases on the processes that there are."""
    torch.set_num_threads(1)
    PartialState(cpu=True)
    train(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
