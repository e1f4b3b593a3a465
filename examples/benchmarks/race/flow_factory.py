"""Flow-Factory in the race: its own trainer, from a checkout that can run on a CPU, told its task by `run`.

Everything but the reward is the checkout's. Its settings are the nearest to the task that it has: noise in so many
random steps, samples in calls of `rows`, credit within groups. What a checkout needs to run on a CPU is not in this
repository: float32 where `mixed_precision` is "no", and texts of RACE_TOKENS tokens.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.benchmarks.race.contestant import serve
from examples.benchmarks.race.task import Task
from reward_models.base import Media
from reward_models.verifiers.shapes import Shapes


def settings(task: Task, folder: Path, reward_model: str) -> dict[str, object]:
    """Return the task as Flow-Factory reads it; what it writes goes into `folder`, where its prompts are."""
    return {
        "mixed_precision": "no",
        "data": {
            "dataset_dir": str(folder),
            "cache_dir": str(folder / "cache"),
            "dataloader_num_workers": 0,
            "sampler_type": "group_contiguous",
        },
        "model": {
            "finetune_type": "lora",
            "lora_rank": task.rank,
            "lora_alpha": task.rank,
            "target_modules": list(task.targets),
            "master_weight_dtype": "float32",
            "model_name_or_path": task.pipeline,
            "model_type": "flux1",
        },
        "log": {"logging_backend": "none", "save_dir": str(folder / "saves"), "save_freq": 0, "verbose": False},
        "train": {
            "trainer_type": "grpo",
            "advantage_aggregation": "sum",
            "global_std": False,
            "clip_range": task.clip,
            "kl_beta": 0,
            "resolution": task.side,
            "num_inference_steps": task.steps,
            "guidance_scale": 1.0,
            "per_device_batch_size": task.rows,
            "group_size": task.group,
            "unique_sample_num_per_epoch": task.prompts,
            "gradient_step_per_epoch": task.updates,
            "learning_rate": task.learning_rate,
            "adam_weight_decay": 0.0,
            "ema_decay": 0,
            "ema_device": "cpu",
            "ref_param_device": "cpu",
            "latent_storage_dtype": "fp32",
            "seed": task.seed,
        },
        "scheduler": {
            "dynamics_type": "Flow-SDE",
            "noise_level": task.noise,
            "num_sde_steps": task.window,
            "sde_steps": list(range(task.steps - 1)),
            "seed": task.seed,
        },
        "eval": {"eval_freq": 0, "resolution": task.side},
        "rewards": [
            {
                "name": "shapes",
                "reward_model": reward_model,
                "batch_size": task.prompts * task.group,
                "device": "cpu",
                "dtype": "float32",
            }
        ],
    }


def reward_model(strict: float, given: list[float]) -> str:
    """Put the race's reward where Flow-Factory finds it, and return its name there; scores are noted in `given`."""
    theirs = importlib.import_module("flow_factory.rewards.abc")
    scorer = Shapes(strict).load(device=torch.device("cpu"))

    class ShapesReward(theirs.PointwiseRewardModel):
        """How far pictures are what their caption asks for."""

        use_tensor_inputs = True

        def __call__(self, prompt: list[str], image: list[Tensor]) -> Any:
            scores = scorer(media=Media(torch.stack(image).float()[:, None]), prompts=prompt).value
            given.extend(scores.tolist())
            return theirs.RewardModelOutput(rewards=scores)

    vars(theirs)[ShapesReward.__name__] = ShapesReward
    return f"{theirs.__name__}.{ShapesReward.__name__}"


@dataclass
class FlowFactory:
    """Its trainer, and the scores that it was given since the last iteration."""

    trainer: Any
    given: list[float]

    @classmethod
    def of(cls, task: Task) -> FlowFactory:
        """Return the trainer of a task."""
        folder, given = Path(tempfile.mkdtemp(prefix="flow-factory-")), []
        (folder / "train.txt").write_text(Path(task.learned).read_text())
        hparams = importlib.import_module("flow_factory.hparams")
        trainers = importlib.import_module("flow_factory.trainers")
        told = settings(task, folder, reward_model(task.strict, given))
        return cls(trainers.load_trainer(hparams.Arguments.from_dict(told)), given)

    def iterate(self) -> float:
        """Do what its loop does in an epoch, without checkpoints and evaluation."""
        trainer = self.trainer
        self.given.clear()
        trainer.adapter.scheduler.set_seed(trainer.epoch + trainer.training_args.seed)
        samples = trainer.sample()
        trainer.prepare_feedback(samples)
        trainer.optimize(samples)
        trainer.adapter.ema_step(step=trainer.epoch)
        trainer.epoch += 1
        return statistics.mean(self.given)

    def network(self) -> Any:
        """Return the denoiser."""
        trainer = self.trainer
        return trainer.accelerator.unwrap_model(trainer.adapter.transformer).eval()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("flow_factory: it takes the path of a checkout")
    sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
    serve(FlowFactory.of)
