"""The command line. Every subcommand is a thin function that imports what it needs when it is called."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alignment import __version__
from alignment.cli.warned import warned_plainly
from alignment.errors import OutOfMemory, VisalignError
from alignment.importing import importing
from alignment.reports.terminal import complain, show

Commands = Any
"""What `add_subparsers` returns; argparse keeps its class private."""
INTERRUPTED = 130
USERS = 2
"""What a reward, a dynamics, a window or a scheduler cannot do is the user's to mend, as a config is."""
KEYS = {"dynamics": "source.dynamics", "window": "source.window", "scheduler": "policy.pipeline"}
"""Where a config says what a `SamplingError` is about."""


def main() -> int:
    """Run the command line of this process; the entry point of `visalign`."""
    return run(sys.argv[1:])


def run(argv: Sequence[str]) -> int:
    """Run `visalign ARGV...` and return the exit code.

    What is the user's to mend (a `VisalignError`, a reward that fails) is printed alone, without a traceback.

    Raises:
        SystemExit: argparse has answered: --help, --version, or arguments that cannot be read (code 2).
    """
    if any("\0" in word for word in argv):
        complain("visalign: a null character in the command line, which no name or number has")
        return USERS
    args = _parse(argv)
    with warned_plainly():
        return _answer(lambda: args.command(args))


def _answer(command: Callable[[], int]) -> int:
    """Return the command's exit code, or that of what stopped it."""
    try:
        return command()
    except VisalignError as error:
        if str(error):  # else another process of the run tells it
            _tell(f"visalign: {error}")
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        complain(f"visalign: no file can have a name as long as {error.filename!s:.80}...; shorten it")
        return USERS
    except KeyboardInterrupt:
        complain("visalign: interrupted")
        return INTERRUPTED
    except (RuntimeError, ValueError, MemoryError) as error:
        # Here and not at the top: the modules import torch, which --help does without.
        from reward_models.base import RewardError
        from reward_models.foreign import out_of_memory, what_ran_out
        from samplers.errors import SamplingError

        if out_of_memory(error):
            reason = what_ran_out(error)
            _tell(f"visalign: memory ran out: {reason}. Ask for less at once, or for smaller pictures; see docs/faq.md")
            return OutOfMemory.exit_code
        if not isinstance(error, RewardError | SamplingError):
            raise
        key = f"{KEYS[error.about]}: " if isinstance(error, SamplingError) else ""
        _tell(f"visalign: {key}{error}")
        return USERS


def _tell(message: str) -> None:
    """Print where errors go, and leave it to the launcher."""
    from alignment.cli.launcher import tell

    complain(message)
    tell(message)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args, left = parser.parse_known_args(argv)
    # argparse fills `key=value ...` only up to the first option; what stands behind options comes back here.
    takes = "overrides" in args
    unknown = [word for word in left if not takes or word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes:
        args.overrides = [*args.overrides, *left]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visalign", description="Align diffusion and flow generators with what people want.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"visalign {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_init, _add_train, _add_doctor, _add_plan, _add_profile, _add_export, _add_report, _add_evals, _add_tune,
        _add_rewards, _add_serve_reward, _add_config,
    ):  # fmt: skip
        add(commands)
    return parser


def _add(commands: Commands, name: str, says: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=says, description=says, allow_abbrev=False)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="laid over the config, such as objective.clip=1e-4",
    )


def _add_init(commands: Commands) -> None:
    parser = _add(commands, "init", "write a config of your own from a recipe, whole and with every field explained")
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="its name, or a file; without it, list the recipes")
    parser.add_argument("--to", metavar="FILE", help="file to write; the recipe's name in this folder by default")
    parser.set_defaults(command=_init)


def _init(args: argparse.Namespace) -> int:
    from alignment.config import recipes

    if args.recipe is None:
        show(recipes.list_recipes())
        return 0
    written = recipes.init(args.recipe, args.to)
    show(f"wrote {written}; visalign train {written} --dry-run says what it lacks here")
    return 0


def _add_train(commands: Commands) -> None:
    parser = _add(commands, "train", "align a pipeline as a config describes")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    _add_overrides(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the whole config and what would happen, and stop")
    parser.add_argument(
        "--resume",
        metavar="latest|auto|PATH",
        help="continue from the newest or a given checkpoint; auto: from the newest, or from the start without one",
    )
    parser.set_defaults(command=_train)


def _train(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args)
    from alignment.cli.launcher import one_tells, unused_gpus
    from alignment.config.load import checked

    with one_tells(), importing():
        run = checked(args.config, args.overrides)
        from alignment.config.checks import processes
        from alignment.preflight.plan.utilisation import least_seconds
        from alignment.training import session

    if unused := unused_gpus(args.config, run.device):
        show(unused)
    session.train(run, args.resume, least_seconds(run, processes()))
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    from alignment.config.load import load

    run = load(args.config, args.overrides)
    from alignment.config import build, checks
    from alignment.training.setup import read_inputs

    checks.check(run, checks.processes())
    read_inputs(run)
    show(f"{build.resolved(run)}\n{checks.describe(run, checks.processes())}")
    return 0


def _add_doctor(commands: Commands) -> None:
    parser = _add(commands, "doctor", "check the laws of training on a config or a pipeline before time is spent on it")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file")
    _add_overrides(parser)
    parser.add_argument("--pipeline", metavar="PATH", help="check a pipeline (folder or hub id) without a config")
    parser.add_argument(
        "--call",
        nargs="+",
        default=[],
        metavar="name=value|FILE",
        help="with --pipeline: arguments of its call, such as height=64 num_frames=9, or a YAML file of them",
    )
    parser.add_argument(
        "--snr", action="store_true", help="measure the gradient's signal-to-noise at each step, on steps=N batches"
    )
    parser.add_argument(
        "--shuffle", action="store_true", help="measure the damage done by shuffled advantages in steps=N steps"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.set_defaults(command=_doctor, usage_error=parser.error)


def _doctor(args: argparse.Namespace) -> int:
    if args.pipeline is not None and args.config is not None and "=" in args.config:
        # The first word is the config only where one is asked for.
        args.config, args.overrides = None, [args.config, *args.overrides]
    if (args.config is None) == (args.pipeline is None):
        args.usage_error("give either a CONFIG or --pipeline PATH")
    with importing():
        from alignment.preflight.doctor import examine

    return examine.main(
        args.config,
        args.overrides,
        pipeline=args.pipeline,
        call=args.call,
        snr=args.snr,
        shuffle=args.shuffle,
        as_json=args.json,
    )


def _add_plan(commands: Commands) -> None:
    parser = _add(commands, "plan", "parameters, FLOPs, memory and time of a run, before anything is loaded")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    _add_overrides(parser)
    parser.add_argument(
        "--gpu", default="h200", metavar="NAME", help="kind of GPU: h200 (default), h100, a100-80, 4090, ..."
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many of them share a step; 1 by default")
    parser.add_argument(
        "--peak-fraction",
        type=float,
        default=0.4,
        metavar="F",
        help="share of peak FLOP/s that is reached; 0.4 by default",
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="GB/S",
        help="what a GPU receives of others; by default as its links are sold",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    parser.set_defaults(command=_plan)


def _plan(args: argparse.Namespace) -> int:
    with importing():
        from alignment.cli.plan import main as print_plan
        from alignment.preflight.plan import plan
        from alignment.preflight.plan.gpus import gpu

    setup = plan.Setup(gpu(args.gpu), args.gpus, args.peak_fraction, args.bandwidth)
    return print_plan(args.config, args.overrides, setup, as_json=args.json)


def _add_profile(commands: Commands) -> None:
    parser = _add(commands, "profile", "where the time of a run's steps goes, by phase and operator, and torch's trace")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    _add_overrides(parser)
    parser.add_argument("--count", type=int, default=2, metavar="N", help="steps to look at, behind one to warm up; 2")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.set_defaults(command=_profile)


def _profile(args: argparse.Namespace) -> int:
    with importing():
        from alignment.preflight.profile import profile

    return profile.main(args.config, args.overrides, args.count, as_json=args.json)


def _add_export(commands: Commands) -> None:
    parser = _add(commands, "export", "write a checkpoint as plain diffusers loads it")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint-N folder")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    forms = ("diffusers", "peft", "comfyui", "kohya", "merged", "full", "gguf-ready")
    parser.add_argument("--as", dest="form", required=True, choices=forms, help="what to write; docs/adapters.md")
    parser.add_argument("--pipeline", metavar="PATH", help="the pipeline it was trained on, where it has moved")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the numbers; as they are")
    parser.add_argument(
        "--trigger", metavar="WORDS", help="what calls up what was learned, for the header and the card"
    )
    parser.add_argument("--licence", metavar="NAME", help="the hub's name of a licence; told in header and card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it into a private repository of the hub")
    parser.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    with importing():
        from alignment.checkpoints import export

    order = export.Order(args.form, args.pipeline, args.dtype, args.trigger, args.licence)
    return export.main(args.checkpoint, args.to, order, args.push)


def _add_report(commands: Commands) -> None:
    parser = _add(commands, "report", "write report.html of a run again")
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.set_defaults(command=_report)


def _report(args: argparse.Namespace) -> int:
    from alignment.reports import report

    return report.main(args.run)


def _add_evals(commands: Commands) -> None:
    from evals import cli as evals

    for add in (evals.add_eval, evals.add_generate, evals.add_vote):
        add(commands)


def _add_tune(commands: Commands) -> None:
    from alignment.cli import tune

    parser = _add(commands, "tune", "search a few numbers of a config by short runs")
    _add_overrides(tune.arguments(parser))


def _add_rewards(commands: Commands) -> None:
    from evals import cli as evals

    rewards = _add(commands, "rewards", "list, score with, measure and train reward models")
    actions = rewards.add_subparsers(metavar="ACTION", required=True)
    evals.add(actions)
    train = _add(actions, "train", "train a vision-language model to judge, from preference pairs")
    train.add_argument("config", metavar="CONFIG", help="a YAML file; docs/judges.md describes its fields")
    _add_overrides(train)
    train.set_defaults(command=_rewards_train)


def _rewards_train(args: argparse.Namespace) -> int:
    from alignment.training.judges import session as train_judge

    return train_judge.main(args.config, args.overrides)


def _add_serve_reward(commands: Commands) -> None:
    parser = _add(commands, "serve-reward", "serve a reward model to trainings in other environments")
    parser.add_argument("name", metavar="NAME", help="a type of reward, 'package.module:Class', or a YAML file")
    _add_overrides(parser)
    parser.add_argument("--host", help="address to listen on (127.0.0.1); any other needs a token")
    parser.add_argument("--port", type=int, help="port to listen on (8765); 0 takes a free one")
    parser.add_argument(
        "--token-file", metavar="FILE", help="file with the token clients need; or VISALIGN_REWARD_TOKEN"
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rows", type=int, help="most samples scored in one call (16)")
    parser.add_argument("--queue", type=int, help="requests that may wait (256); further ones are refused for now")
    parser.add_argument("--patience", type=float, help="seconds for a request to arrive, and to be answered (120)")
    parser.add_argument("--timeout", type=float, help="seconds for a call of the scorer, then the server ends (600)")
    parser.add_argument("--connections", type=int, help="connections at once, with a token or not (256)")
    for limit, says in (("body", "bytes"), ("rows", "samples"), ("pixels", "pixels of a frame"), ("frames", "frames")):
        parser.add_argument(f"--max-{limit}", type=int, help=f"most {says} in a request")
    parser.set_defaults(command=_serve_reward)


def _serve_reward(args: argparse.Namespace) -> int:
    from alignment.cli import serve_reward

    given = {key: value for key, value in vars(args).items() if value is not None}
    limits = {key.removeprefix("max_"): given.pop(key) for key in list(given) if key.startswith("max_")}
    settings = {key: given[key] for key in given.keys() - {"name", "overrides", "command"}}
    serving = serve_reward.Serving(**settings, limits=serve_reward.Limits(**limits))
    return serve_reward.main(args.name, args.overrides, serving)


def _add_config(commands: Commands) -> None:
    parser = _add(commands, "config", "list what a config can hold")
    parser.add_argument("kind", nargs="?", metavar="KIND", help="run, objectives, sources, ...; without it, the kinds")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with whole docstrings")
    parser.set_defaults(command=_config)


def _config(args: argparse.Namespace) -> int:
    from alignment.config.listing import listing, listing_json
    from alignment.config.run import Run

    show(listing_json(Run, args.kind) if args.json else listing(Run, args.kind))
    return 0
