"""Short runs of one config with other numbers: the worse half ends early, and a study that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment.config import build
from alignment.config.load import checked
from alignment.config.run import Run
from alignment.errors import ConfigError, EnvironmentProblem, NumericsError, VisalignError
from alignment.reports import run_folder
from alignment.reports.terminal import show
from alignment.training import session
from alignment.training.tuning.page import Tried, write_page
from alignment.training.tuning.ranges import Range, read_ranges

STUDY, ASKED, PAGE = "study.log", "study.json", "tune.md"
SHARE = 2
"""Of the trials at one length, one in so many goes on to the next."""
REFUSED = "refused"
"""What a trial's record calls the message of a run that could not go on."""


@dataclass(frozen=True)
class Asked:
    """What is searched, and how far.

    Attributes:
        config: Config file.
        overrides: `key=value` words laid over it.
        search: `FIELD=LOW:HIGH` words.
        prompts: File of the prompts that trials are measured on: none that will be tested on later.
        metric: What is to be large on them: "reward", or the name of a part.
        trials: How many settings are tried.
        halvings: How often the worse half of them ends early; the first length is the config's steps, halved so often.
    """

    config: str
    overrides: tuple[str, ...]
    search: tuple[str, ...]
    prompts: str
    metric: str = "reward"
    trials: int = 16
    halvings: int = 2

    @property
    def words(self) -> tuple[str, ...]:
        """What all trials have in common, laid over the config."""
        return (*self.overrides, f"evaluation.prompts={self.prompts}", "evaluation.every=0", "output.save_every=0")


def tune(asked: Asked) -> Path:
    """Try settings until there are enough, and return the page that says what each did.

    Raises:
        ConfigError: If fields, numbers or the study are not what they have to be.
        EnvironmentProblem: If Optuna is not installed.
    """
    run = checked(asked.config, asked.words)
    resolved = yaml.safe_load(build.resolved(run))
    ranges = read_ranges(asked.search, resolved)
    if asked.trials < 1 or not 0 <= asked.halvings < 20 or run.steps < SHARE**asked.halvings:
        raise ConfigError(
            f"tune needs trials >= 1 and steps >= {SHARE}^halvings, got {asked.trials} trials, {run.steps} steps and "
            f"{asked.halvings} halvings"
        )
    folder = Path(run.output.folder, f"{run.name}-tune")
    same = {"search": list(asked.search), "metric": asked.metric, "halvings": asked.halvings}
    _remember(folder, {"config": resolved} | same)
    lengths = [run.steps // SHARE ** (asked.halvings - k) for k in range(asked.halvings + 1)]
    study = _open(folder, lengths[0])
    while len(_ended(study)) < asked.trials:
        _try_one(study, asked, ranges, run, lengths)
        write_page(folder / PAGE, asked.metric, [_tried(trial) for trial in _ended(study)])
    return folder / PAGE


def _remember(folder: Path, asked: Mapping[str, object]) -> None:
    """Write what a study is about, or refuse to go on with another one's."""
    file = folder / ASKED
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(file, asked)
    elif run_folder.read_json(file) != json.loads(json.dumps(asked)):
        raise ConfigError(
            f"{file} is of a study of another config, other fields or another metric; give this one a name of its own "
            "(name=...), or ask for what that one asked"
        )


def _open(folder: Path, shortest: int) -> Any:
    """Return the folder's study; what was being tried when it was stopped will be tried again."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise EnvironmentProblem(
            f"tune needs the package optuna, which cannot be imported ({error}); install it: pip install "
            "'visalign[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=shortest, reduction_factor=SHARE)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))), study_name=folder.name, load_if_exists=True,
        direction="maximize", pruner=pruner,
    )  # fmt: skip
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _try_one(study: Any, asked: Asked, ranges: Sequence[Range], run: Run, lengths: Sequence[int]) -> None:
    """Run one setting, longer and longer, until it is among the worse half of its length or at the last one."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(seed=run.seed + len(study.trials))  # the same where a study goes on
    trial = study.ask({one.field: _drawn_from(one) for one in ranges})
    value = 0.0
    for steps in lengths:
        try:
            value = measured(asked, run, trial.params, steps)
        except (ConfigError, NumericsError) as error:
            if isinstance(error, ConfigError) and not _ended(study):
                raise  # what the first one is refused for, others are, too
            return _refuse(study, trial, error)
        trial.report(value, steps)
        show(f"trial {trial.number}: {asked.metric} {value:.4f} after {steps} steps, {trial.params}")
        if steps != lengths[-1] and trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return None
    study.tell(trial, value)
    return None


def _refuse(study: Any, trial: Any, error: VisalignError) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr(REFUSED, str(error))
    show(f"trial {trial.number}: {error}")
    study.tell(trial, state=TrialState.FAIL)


def _drawn_from(between: Range) -> Any:
    """Return a range as Optuna has it."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if between.whole:
        return IntDistribution(int(between.low), int(between.high), log=between.by_magnitude)
    return FloatDistribution(between.low, between.high, log=between.by_magnitude)


def measured(asked: Asked, run: Run, params: Mapping[str, float], steps: int) -> float:
    """Return what a setting reached on the held-out prompts; a run that is finished is not run again."""
    words = [f"{field}={value!r}" for field, value in params.items()]
    key = hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    parent = Path(run.output.folder, f"{run.name}-tune")
    folder = parent / f"{key}-{steps}"
    if not (folder / run_folder.SUMMARY).exists():
        own = (f"name={folder.name}", f"output.folder={parent}", f"steps={steps}", "output.overwrite=true")
        session.train(checked(asked.config, [*asked.words, *words, *own]))
    evaluation = run_folder.read_json(folder / run_folder.SUMMARY)["evaluation"]
    if asked.metric not in evaluation:
        raise ConfigError(f"--metric {asked.metric}: evaluation measured {', '.join(evaluation)}")
    return evaluation[asked.metric]["final"]["mean"]


def _ended(study: Any) -> list[Any]:
    """Return the trials that count: not those that were stopped from outside."""
    from optuna.trial import TrialState

    kept = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in study.get_trials(deepcopy=False) if t.state in kept or REFUSED in t.user_attrs]


def _tried(trial: Any) -> Tried:
    steps, value = max(trial.intermediate_values.items(), default=(0, None))
    return Tried(trial.number, dict(trial.params), steps, value, trial.user_attrs.get(REFUSED))
