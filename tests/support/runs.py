"""Small runs of the real command, and what they leave behind, for the tests that interrupt them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from alignment.cli import main as cli

STEPS = 6
TIMED = ("seconds/", "memory/", "samples_per_second", "scout/time_share", "compile/graphs")

CONFIGS = {
    "common": """
name: run
steps: 6
policy:
  pipeline: FOLDER/pipeline
  call: {height: 16, width: 16, num_inference_steps: 4, max_sequence_length: 24}
data: {prompts: FOLDER/prompts.txt}
source: {prompts: 2, group_size: 3, reward: {type: function, call: "tests.support.runs:brightness"}}
snapshots: {ema: 0.9}
batch: {updates: 2, microbatch: 4}
evaluation: {prompts: FOLDER/held_out.txt, images_per_prompt: 2, every: 3, curve_images_per_prompt: 1}
output: {folder: FOLDER/runs, save_every: 2}
""",
    "grpo": """
extends: common.yaml
policy: {lora: {rank: 2}}
source: {type: on_policy_steps, dynamics: {type: flow_sde}, window: {type: random, size: 2}}
objective: {type: clipped_surrogate, clip: 1e-2, kl: 0.1}
""",
    "scouts": """
extends: grpo.yaml
source: {group_size: 2, scout: {candidates: 4, how: {tail: 1}}, overlap: always, stale: 1}
""",
    "nft": """
extends: common.yaml
source: {type: on_policy, weights: behaviour}
objective: {type: nft}
""",
}

calls = 0
at_call: dict[int, Callable[[], None]] = {}
"""What happens in the nth call of the reward, counted in `calls`. The first scores the held-out pictures, the next
three one step each: checkpoint 2 is behind the fourth."""


def brightness(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Reward: how bright a picture is."""
    global calls
    calls += 1
    at_call.pop(calls, lambda: None)()
    return pixels.mean((1, 2, 3, 4))


def prepared(folder: Path, pipeline: Path) -> Path:
    """Write configs and prompts into `folder` and return it."""
    folder.mkdir(exist_ok=True)
    (folder / "pipeline").symlink_to(pipeline)
    (folder / "prompts.txt").write_text("a cat\na dog\na cow\n")
    (folder / "held_out.txt").write_text("a bird\n")
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def prepared_for_the_toy(folder: Path, pipeline: Path) -> Path:
    """Do the same for a saved toy, all of whose weights are trained: for what does not depend on the pipeline."""
    prepared(folder, pipeline)
    for kind in ("common", "grpo"):
        file = folder / f"{kind}.yaml"
        text = re.sub(r"call: \{.*\}", "call: {num_inference_steps: 4}", file.read_text())
        file.write_text(text.replace("policy: {lora: {rank: 2}}\n", ""))
    return folder


def train(folder: Path, kind: str, *more: str) -> int:
    """Run `visalign train` in this process and return its exit code; the run is called `name` of `more`, or run."""
    return cli.run(["train", str(folder / f"{kind}.yaml"), *more])


def left_by(run: Path) -> dict[str, object]:
    """Return what decides whether two runs are the same: weights and state, metrics and evaluations."""
    checkpoint = run / f"checkpoint-{STEPS}"
    tensors = {
        f"{path.relative_to(checkpoint)} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if not name.startswith(TIMED)} for line in lines]
    evaluations = {path.name: json.loads(path.read_text())["scores"] for path in run.glob("evaluation/*.json")}
    return {"tensors": tensors, "metrics": metrics, "evaluations": evaluations}
