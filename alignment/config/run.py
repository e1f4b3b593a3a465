"""What a run is: the tree of plain dataclasses that a YAML file constructs, and the checks that cross fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.config import registry
from alignment.config.parallel import Parallel
from alignment.errors import FieldError
from alignment.features.base import Extractor
from alignment.features.pixels import Pixels
from alignment.objectives.base import Objective
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.sources.base import Source
from reward_models.base import RewardModel
from samplers.kernels.dispatch import Kernels

__all__ = [
    "BatchSettings",
    "Data",
    "Evaluation",
    "Lora",
    "Optimizer",
    "Output",
    "Parallel",
    "PolicySpec",
    "Run",
    "Snapshots",
]

UNMEASURED = 16
"""Rows of a microbatch where nobody chose or measured how many."""


@dataclass(frozen=True)
class Data:
    """Where prompts come from.

    Attributes:
        prompts: A `.txt` file (a prompt per line) or `.jsonl` (an object with "prompt", and maybe "image", a line).
        dedupe: What to do with a prompt that occurs twice: refuse, drop the later ones, or keep.
        columns: Which column holds what, by the name of the pipeline's argument: `{image: first_frame}`. Columns that
            have the argument's own name need no mention. Held-out prompts are read in the same way.
        flipped: Share of the records whose label is made wrong, to see what a method makes of noisy preferences: 0 to
            0.5. Which ones follows from the run's seed.
    """

    prompts: str
    dedupe: Literal["error", "drop", "keep"] = "error"
    columns: dict[str, str] = field(default_factory=dict)
    flipped: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.flipped <= 0.5:
            raise FieldError(
                "flipped",
                f"got {self.flipped}, expected a share of the records from 0 to 0.5; with more, the labels would be "
                "right the other way round",
            )


@dataclass(frozen=True)
class Optimizer:
    """The rule of an update, and its learning-rate schedule, a pure function of the step.

    Attributes:
        learning_rate: Peak rate. Muon's is scaled to the size of AdamW's updates, so that it takes AdamW's rates.
        type: "adamw"; "adamw8bit", whose moments take 8 bits each (torchao); "adafactor", which keeps a row and a
            column of its second moment; "muon", for weights that are matrices: its momentum is made orthogonal. The
            last two need every weight whole, and do not go with parallel.shard.
        betas: How slowly AdamW's two moments change; null: 0.9 and 0.999.
        epsilon: What AdamW adds to the root of its second moment; null: 1e-8.
        momentum: How slowly Muon's momentum changes; null: 0.95.
        weight_decay: Share of the weights, times the rate, that each update takes off them.
        warmup: Steps of linear warm-up.
        final: Fraction of the peak reached, linearly, at the last step; 1 keeps the rate constant.
        max_grad_norm: Global norm to which gradients are clipped.
        offload: Keep what the rule remembers of the weights, and compute updates, in main memory, beside a copy of the
            weights and their gradients.
    """

    learning_rate: float = 1e-4
    type: Literal["adamw", "adamw8bit", "adafactor", "muon"] = "adamw"
    betas: tuple[float, float] | None = None
    epsilon: float | None = None
    momentum: float | None = None
    weight_decay: float = 0.0
    warmup: int = 0
    final: float = 1.0
    max_grad_norm: float = 1.0
    offload: bool = False

    def __post_init__(self) -> None:
        takes = {"muon": ("momentum",), "adafactor": ()}.get(self.type, ("betas", "epsilon"))
        given = {"betas": self.betas, "epsilon": self.epsilon, "momentum": self.momentum}
        for name in (name for name, value in given.items() if value is not None and name not in takes):
            has = f" but {' and '.join(takes)}" if takes else ""
            raise FieldError(name, f"{self.type} has no {name}{has}; leave it out, or set it to null")

    @property
    def needs_whole(self) -> dict[str, str]:
        """Keys that do not go with weights of which a process holds a part, each with the reason and what to do."""
        found = {}
        if self.type == "adafactor":
            found["optimizer.type"] = (
                "adafactor averages over whole columns of a weight, and torch's form of it looks at those of one "
                "process; use adamw or adamw8bit"
            )
        if self.type == "muon":
            found["optimizer.type"] = (
                "muon makes the momentum of a whole matrix orthogonal, and that of a part by itself comes out "
                "otherwise; use adamw or adamw8bit"
            )
        if self.offload:
            found["optimizer.offload"] = (
                "moments of parts stay on the device of their part, where each process has its share of them only; "
                "set it to false"
            )
        return found


@dataclass(frozen=True)
class Snapshots:
    """How the named copies of the trained weights follow the live ones, after each step.

    Attributes:
        ema: Decay of the averaged weights used for evaluation and export; 0 evaluates the live weights.
        behaviour: Largest decay of the weights that sample experience where an objective asks for them
            (DiffusionNFT's "old" policy); its warm-up is `behaviour_rate` per step.
        behaviour_rate: Growth of the behaviour decay per step, up to `behaviour`.
        every: Steps from one refresh of the behaviour copy to the next.
        above: Metrics and bounds. The behaviour copy is refreshed only after a step in which every metric named here is
            above its bound, like ADPO's anchor, which moves when a divergence has grown too large.
    """

    ema: float = 0.0
    behaviour: float = 0.5
    behaviour_rate: float = 0.001
    every: int = 1
    above: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchSettings:
    """How a step's experience becomes updates.

    Attributes:
        updates: Optimiser updates per step; experience is split among them at random.
        microbatch: Rows in one forward-backward pass on one process; "auto" measures how many are fastest before the
            first step, and keeps to it when the run is resumed.
    """

    updates: int = 1
    microbatch: int | Literal["auto"] = UNMEASURED

    @property
    def rows(self) -> int:
        """Rows in one pass at most; as many as by default, until they are measured."""
        return UNMEASURED if self.microbatch == "auto" else self.microbatch


@dataclass(frozen=True)
class Evaluation:
    """How progress is measured: held-out prompts, the pipeline's own `__call__`, its own sampler, averaged weights.

    Attributes:
        prompts: Held-out prompt file; null skips evaluation.
        reward: What to measure; null uses the source's reward.
        images_per_prompt: Pictures per prompt at the start and at the end.
        every: Steps between the small evaluations of the curve; 0 for none.
        curve_images_per_prompt: Pictures per prompt in those.
        batch_size: Pictures in one pipeline call.
        call: Arguments that differ from `policy.call`, such as more steps.
        grid: Pictures in the before/after grids.
    """

    prompts: str | None = None
    reward: RewardModel | None = None
    images_per_prompt: int = 4
    every: int = 0
    curve_images_per_prompt: int = 4
    batch_size: int = 64
    call: dict[str, object] = field(default_factory=dict)
    grid: int = 32


@dataclass(frozen=True)
class Watch:
    """What must not fall while something else is trained on; see docs/watch.md.

    Attributes:
        gold: Metrics of the evaluations that are not trained on, such as `shapes/strict`. The best checkpoint by the
            first of them is kept.
        also: What is watched beside them: "diversity" of the pictures of a prompt, "drift" from those before training,
            and "looks", the statistics of their light, colour and spectrum.
        features: What describes pictures for diversity and drift, such as {type: dinov2}.
        room: How far these may move: diversity and looks by so many of their standard deviations before training, a
            picture by so many times the distance of two of a prompt then.
        on_alarm: What is done when one has fallen: say so; save and stop, with the best checkpoint named; or go back to
            the best checkpoint and on from there at a lower learning rate.
        false_alarms: How often a run in which nothing falls may be alarmed, at most.
        slower: What the learning rate is multiplied by at each rollback.
    """

    gold: tuple[str, ...]
    also: tuple[Literal["diversity", "drift", "looks"], ...] = ()
    features: Extractor = Pixels()
    room: float = 1.0
    on_alarm: Literal["warn", "stop", "rollback"] = "warn"
    false_alarms: float = 0.05
    slower: float = 0.5


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        folder: Parent of the run's folder.
        save_every: Steps between checkpoints; 0 saves only at the end.
        keep: Checkpoints kept.
        report_to: Trackers, none by default: "wandb", "trackio", "tensorboard".
        overwrite: Move an existing run folder aside in place of refusing it.
    """

    folder: str = "runs"
    save_every: int = 50
    keep: int = 2
    report_to: tuple[Literal["wandb", "trackio", "tensorboard"], ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class Run:
    """A whole run.

    Attributes:
        name: Name of the run's folder, inside `output.folder`.
        policy: Which pipeline is aligned, how it is called, and what of it is trained.
        data: Where prompts come from, and what comes with them.
        source: Where a step's experience comes from.
        objective: What is minimised.
        steps: Training steps: sampling, scoring and learning once is one.
        seed: Seed of every random number.
        optimizer: The rule of an update, and its schedule.
        snapshots: Copies of the trained weights.
        batch: Updates and microbatches of a step.
        parallel: How the trained networks are spread over processes.
        evaluation: How progress is measured.
        watch: What is held against falling while something else is trained on; null for nothing.
        output: Where results go, and how often.
        device: Where networks run; "auto" takes a GPU where there is one.
        threads: Threads of one operation on the CPU; null leaves them to PyTorch.
        timeout: Seconds that a process waits for the others; then the run ends and names the processes it waited for.
            Set it above the slowest save, and above the largest difference in scoring time between processes.
        kernels: What computes steps, surrogates and matching errors: torch, Triton's fused kernels, or "auto", which
            takes Triton for tensors on a GPU where it is installed.
    """

    name: str
    policy: PolicySpec
    data: Data
    source: Source
    objective: Objective
    steps: int
    seed: int = 0
    optimizer: Optimizer = Optimizer()
    snapshots: Snapshots = Snapshots()
    batch: BatchSettings = BatchSettings()
    parallel: Parallel = Parallel()
    evaluation: Evaluation = Evaluation()
    watch: Watch | None = None
    output: Output = Output()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    timeout: float = 1800.0
    kernels: Kernels = "auto"

    def __post_init__(self) -> None:
        source, objective = type(self.source), type(self.objective)
        if source.produces is not objective.consumes:
            meets = [name for name, other in _classes(Source) if other.produces is objective.consumes]
            takes = [name for name, other in _classes(Objective) if other.consumes is source.produces]
            raise FieldError(
                "objective",
                f"{objective.__name__} consumes {objective.consumes.__name__}, but source {source.__name__} produces "
                f"{source.produces.__name__}. Sources that produce {objective.consumes.__name__}: {', '.join(meets)}; "
                f"objectives that consume {source.produces.__name__}: {', '.join(takes)}",
            )
        if self.data.flipped and not self.source.media:
            raise FieldError(
                "data.flipped",
                f"source {source.__name__} learns from no labels of a file; leave it out, or set it to 0",
            )
        if (self.source.structure is not None) is not objective.spatial:
            raise FieldError(
                "source.structure",
                f"it makes credit a map over the latent, but objective {objective.__name__} has no form "
                "for one; choose objective vipo, or leave source.structure out"
                if self.source.structure is not None
                else f"objective {objective.__name__} takes credit position by position, but source {source.__name__} "
                "spreads none; choose source on_policy_steps and say what spreads credit, as in source.structure: "
                "{type: perceptual, backbone: {type: dinov2}}",
            )
        if self.source.structure is not None and (problem := self.source.structure.problem(self.source.reward)):
            raise FieldError("source.structure", problem)

    @property
    def copies(self) -> tuple[str, ...]:
        """The frozen copies of the trained weights that are kept."""
        names = {*self.objective.snapshots, *self.source.snapshots}
        return tuple(sorted(names | ({"ema"} if self.snapshots.ema > 0 else set())))

    @property
    def measure(self) -> RewardModel | None:
        """What evaluation measures with; None only where nothing is evaluated, which `checks` sees to."""
        return self.evaluation.reward or self.source.reward


def _classes(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and class of everything in a kind's folder."""
    return ((name, registry.find(kind, name)) for name in registry.known(kind))
