"""How many processes hold the networks together: by the config, by accelerate, and what does not work out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env

from alignment.config.parallel import Division, Parallel, as_launched, divide, problems
from alignment.config.run import Optimizer
from alignment.errors import FieldError
from alignment.policy.networks.spec import Lora, PolicySpec

SETTINGS = Path(__file__).parents[3] / "configs" / "accelerate"
MEANT = {
    "ddp.yaml": (8, Division(1, 8)),
    "fsdp2.yaml": (8, Division(8, 1)),
    "hsdp.yaml": (16, Division(8, 2)),
    "context.yaml": (8, Division(8, 1, 2)),
}


def told(*arguments: str) -> dict[str, str]:
    """Return the environment that `accelerate launch` gives its processes."""
    parsed = launch.launch_command_parser().parse_args([*arguments, "train.py"])
    return prepare_multi_gpu_env(launch._validate_launch_command(parsed)[0])


@pytest.mark.parametrize("name", sorted(path.name for path in SETTINGS.iterdir()))
def test_settings_of_accelerate_mean_the_same(name: str) -> None:
    processes, meant = MEANT[name]
    environment = told("--config_file", str(SETTINGS / name))
    assert divide(as_launched(Parallel(), environment), processes) == meant
    assert divide(as_launched(Parallel(meant.shard), environment), processes) == meant


@pytest.mark.parametrize(
    ("parallel", "processes", "meant"),
    [
        (Parallel(), 1, Division(1, 1)),
        (Parallel(), 8, Division(1, 8)),
        (Parallel("auto"), 8, Division(8, 1)),
        (Parallel(4), 8, Division(4, 2)),
        (Parallel("auto", 2), 8, Division(4, 2)),
        (Parallel(4, "auto"), 8, Division(4, 2)),
        (Parallel(2, 4), 8, Division(2, 4)),
        (Parallel(None, 8), 8, Division(1, 8)),
        (Parallel(context=4), 8, Division(1, 8, 4)),
        (Parallel("auto", context=8), 8, Division(8, 1, 8)),
        (Parallel(4, 2, context=2), 8, Division(4, 2, 2)),
    ],
)
def test_what_is_not_said_is_what_is_left(parallel: Parallel, processes: int, meant: Division) -> None:
    assert divide(parallel, processes) == meant


@pytest.mark.parametrize(
    ("parallel", "processes", "words"),
    [
        (Parallel(3), 8, r"3 processes in each of 2 sets are not the 8 .* \(8 = 3 x 2 \+ 2\)"),
        (Parallel(4, 4), 8, r"4 processes in each of 4 sets are not the 8 that were launched \(they ask for 16\)"),
        (Parallel(8), 1, r"8 processes in each of 0 sets are not the 1 "),
        (Parallel(context=3), 8, r"teams of 3 .* do not divide the 8 processes .* use one of 1, 2, 4, 8"),
        (Parallel(context=16), 8, r"teams of 16 .* or launch a multiple of 16"),
    ],
)
def test_a_mesh_that_does_not_multiply(parallel: Parallel, processes: int, words: str) -> None:
    with pytest.raises(FieldError, match=words):
        divide(parallel, processes)


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("name", ["shard", "replicate", "context"])
def test_fewer_than_one_process(name: str, count: int) -> None:
    with pytest.raises(FieldError, match=f"{name}: got {count}, expected a number of processes"):
        Parallel(**{name: count})


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "launched with DeepSpeed, which is not used here"),
        ({"ACCELERATE_USE_FSDP": "true"}, "launched with fsdp_version 1; set it to 2"),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
                "PARALLELISM_CONFIG_TP_SIZE": "2",
            },
            "launched with tp_size 2; only dp_shard, dp_replicate and cp are used",
        ),
    ],
)
def test_what_accelerate_is_not_asked_for_here(environment: dict[str, str], words: str) -> None:
    with pytest.raises(FieldError, match=words):
        as_launched(Parallel(), environment)


def test_two_places_that_contradict_each_other() -> None:
    environment = told("--config_file", str(SETTINGS / "hsdp.yaml"))
    with pytest.raises(FieldError, match=r"parallel\.shard: it is 4, but accelerate was launched with 8"):
        as_launched(Parallel(4), environment)
    environment = told("--config_file", str(SETTINGS / "context.yaml"))
    with pytest.raises(FieldError, match=r"parallel\.context: it is 4, but accelerate was launched with 2"):
        as_launched(Parallel(context=4), environment)


def test_what_accelerate_was_not_asked_for_contradicts_nothing() -> None:
    environment = told("--config_file", str(SETTINGS / "hsdp.yaml"))
    assert divide(as_launched(Parallel(context=2), environment), 16) == Division(8, 2, 2)


def test_processes_of_a_team_count_as_one() -> None:
    assert Division(4, 2, 2).teams == 4
    assert Division(1, 8, 8).teams == 1


@pytest.mark.parametrize(
    ("spec", "key"), [({"attention": "flex"}, "policy.attention"), ({"compile": True}, "policy.compile")]
)
def test_what_cannot_be_divided(spec: dict[str, object], key: str) -> None:
    policy = PolicySpec("pipeline", **spec)  # type: ignore[arg-type]  # fields of it
    assert [found for found, _ in problems(Parallel(context=2), policy, {}, 2)] == [key]
    assert not list(problems(Parallel(), policy, {}, 2))


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"lora": Lora(merge=True)}, "policy.lora.merge"),
        ({"lora": Lora(), "quantize": "8bit"}, "policy.quantize"),
        ({"compile": True}, "policy.compile"),
    ],
)
def test_what_cannot_be_spread(spec: dict[str, object], key: str) -> None:
    policy = PolicySpec("pipeline", **spec)  # type: ignore[arg-type]  # fields of it
    assert [found for found, _ in problems(Parallel(2), policy, {}, 2)] == [key]
    assert not list(problems(Parallel(), policy, {}, 2))


@pytest.mark.parametrize(("kind", "words"), [("adafactor", "averages over whole columns"), ("muon", "orthogonal")])
def test_a_rule_that_needs_whole_weights(kind: Literal["adafactor", "muon"], words: str) -> None:
    why = Optimizer(type=kind).needs_whole
    ((key, message),) = problems(Parallel(2), PolicySpec("pipeline"), why, 2)
    assert (key, words in str(message)) == ("optimizer.type", True)
    assert not list(problems(Parallel(), PolicySpec("pipeline"), why, 2))


def test_moments_in_main_memory_are_whole() -> None:
    ((key, message),) = problems(Parallel(2), PolicySpec("pipeline"), Optimizer(offload=True).needs_whole, 2)
    assert (key, "or parallel.shard=1 (it is 2)" in message) == ("optimizer.offload", True)
