"""What a training needs before its first step."""

from __future__ import annotations

from pathlib import Path

from alignment.checkpoints.contents import adapters_digests, pipeline_digest, prompts_digest
from alignment.checkpoints.lineage import compare_bases
from alignment.checkpoints.manifest import NAME, verify
from alignment.config import checks
from alignment.config.run import Run
from alignment.data.batches import Pairs, Samples
from alignment.data.prompts import LABEL, Prompts, read_prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, DataError
from alignment.policy.caching.check import check_caches
from alignment.policy.networks.loading import load_pipeline
from alignment.policy.prepare import load_policy, prepare
from alignment.training.loop import Trainer
from alignment.training.microbatch import settled
from alignment.training.runtime.mesh import check_together, laid_out
from alignment.training.runtime.runtime import Runtime
from alignment.training.sameness import check_same
from reward_models.base import RewardError, RewardModel


def read_data(run: Run) -> Prompts:
    """Read the prompts of a run's data file, and the samples that its source learns from.

    Raises:
        DataError: As `read_prompts` does.
        EnvironmentProblem: As `read_prompts` does.
    """
    data, frames = run.data, run.policy.call.get("num_frames")
    prompts = read_prompts(data.prompts, data.dedupe, data.columns, run.source.media, frames)
    return prompts.mislabelled(data.flipped, Draw(run.seed)) if data.flipped else prompts


def read_held_out(run: Run) -> Prompts | None:
    """Read the prompts that a run is measured on, by the columns of its data; None where none are held out.

    Samples to learn from and their labels are not read: nothing is learned from these prompts.

    Raises:
        DataError: As `read_prompts` does.
        EnvironmentProblem: As `read_prompts` does.
    """
    if run.evaluation.prompts is None:
        return None
    learned = {*run.source.media, LABEL} if run.source.media else set()
    columns = {name: column for name, column in run.data.columns.items() if name not in learned}
    return read_prompts(run.evaluation.prompts, columns=columns)


def read_inputs(run: Run) -> tuple[Prompts, Prompts | None]:
    """Read all that a run learns from and is measured on; every command that trains or checks a run reads it so.

    Raises:
        ConfigError: If there are fewer samples than a step learns from.
        DataError: As `read_prompts` does, or if a reward knows that it cannot judge some prompt.
        EnvironmentProblem: As `read_prompts` does.
    """
    prompts, held_out = read_data(run), read_held_out(run)
    if run.source.media and len(prompts.texts) < run.source.prompts:
        raise ConfigError(
            f"source.prompts: got {run.source.prompts}, but {run.data.prompts} holds {len(prompts.texts)} records, so "
            f"that a step would learn from the same sample twice; use at most {len(prompts.texts)}, or more data"
        )
    if run.source.reward is not None:
        _check_judged(run.source.reward, run.data.prompts, prompts)
    if held_out is not None and run.measure is not None:
        _check_judged(run.measure, str(run.evaluation.prompts), held_out)
    return prompts, held_out


def _check_judged(reward: RewardModel, file: str, prompts: Prompts) -> None:
    try:
        reward.check(prompts.texts)
    except RewardError as error:
        raise DataError(f"{file}: {error}") from error


def _check_brought(run: Run) -> None:
    """Refuse adapters of a damaged checkpoint.

    Raises:
        CheckpointError: Naming the file.
    """
    start = None if run.policy.lora is None else run.policy.lora.start
    for place in (*(adapter.path for adapter in run.policy.adapters), *([] if start is None else [start])):
        if (Path(place) / NAME).is_file():
            verify(Path(place))


def load(run: Run, runtime: Runtime, microbatch: object = None) -> Trainer:
    """Return the trainer of a run: prompts read, pipeline loaded and probed, prompts embedded, copies kept.

    Args:
        run: The run.
        runtime: Where it is trained.
        microbatch: Rows of a microbatch that a checkpoint knows, where the run leaves them to be measured.
    """
    if run.watch is not None and run.watch.also:
        run.watch.features.check()  # before anything is loaded
    prompts, held_out = read_inputs(run)
    contents = {"data.prompts": prompts_digest(prompts)}
    if held_out is not None:
        contents["evaluation.prompts"] = prompts_digest(held_out)
        assert run.measure is not None  # `checks` refuses a run without
        runtime.world.ready(run.measure)
    if run.source.reward is not None:
        runtime.world.ready(run.source.reward)
    if run.source.structure is not None:
        runtime.world.allocator(run.source.structure)
    layout = laid_out(run, runtime.division, runtime.world)
    pipe = load_pipeline(run.policy, runtime.world.device, layout)
    contents["policy.pipeline"] = pipeline_digest(pipe)
    seed = Draw(run.seed).key("adapters")
    _check_brought(run)
    policy = load_policy(run.policy, device=runtime.world.device, seed=seed, pipe=pipe, layout=layout)
    contents |= adapters_digests(policy.weights.brought)
    compare_bases(run.policy, contents["policy.pipeline"], policy.weights.brought)
    # Before the networks are called: by all processes together, where they are spread.
    check_same(runtime.world, {f"the content of {key}": value for key, value in contents.items()})
    scheduler = pipe.components.get("scheduler")
    checks.check_scheduler(run, scheduler, None)
    visits = issubclass(run.source.produces, Samples | Pairs)
    others = () if held_out is None else held_out.texts
    asked = () if run.source.structure is None else run.source.structure.prompts()
    scout = None if run.source.scout is None else run.source.scout.how
    call = None if scout is None else scout.call
    caches = {"policy.cache": run.policy.cache, "source.scout.how.cache": None if scout is None else scout.cache}
    with runtime.world.explaining("finding out how the pipeline goes"):
        prepare(policy, (*prompts.texts, *asked), others, run.evaluation.call, scout=call, visits=visits)
        check_caches(policy, caches, prompts.texts[0])
    checks.check_scheduler(run, scheduler, policy.rounds)
    check_together(run, policy, runtime.world.size)
    if prompts.examples:  # what cannot be encoded is refused before anything is trained
        policy.latents(prompts.examples[0].media)
        policy.latents.check([sample for example in prompts.examples for sample in example.media])
    for name in run.copies:
        policy.weights.keep(name)
    runtime.attach(policy, run.optimizer)
    return settled(Trainer(run, policy, runtime, prompts, held_out, contents), microbatch)
