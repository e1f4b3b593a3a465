"""What an algorithm cannot work with is refused when the config loads: file, line, key, and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config.load import load
from alignment.errors import ConfigError
from tests.support.recipe import write

HEAD = """name: trial
policy:
  pipeline: nowhere
  call: {num_inference_steps: 6}
data: {prompts: nowhere.txt}
steps: 10
"""
POLICY_GRADIENT = """source:
  type: on_policy_steps
  prompts: 6
  group_size: 4
  window: {type: random}
  dynamics: {type: flow_sde}
  reward: {type: shapes}
objective: {type: clipped_surrogate}
"""
TREE = """source:
  type: on_policy_tree
  prompts: 6
  splits: [0, 1]
  dynamics: {type: flow_sde}
  reward: {type: shapes}
objective: {type: clipped_surrogate}
"""
DIRECT = """source:
  type: prompts_only
  prompts: 6
  reward: {type: colour}
objective: {type: draft}
"""
GROUPS = """source:
  type: on_policy
  prompts: 6
  group_size: 8
  reward: {type: shapes}
objective: {type: dgpo}
batch: {microbatch: 8}
"""
BODIES = {"steps": POLICY_GRADIENT, "tree": TREE, "direct": DIRECT, "groups": GROUPS}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_they_stand_for_loads(tmp_path: Path, body: str) -> None:
    load(write(tmp_path, HEAD + body))


@pytest.mark.parametrize(
    ("body", "instead", "says"),
    [
        ("steps", ("{type: flow_sde}", "{type: ode}"), r"a.yaml:7: source: dynamics: ODE is deterministic here"),
        ("steps", ("{type: flow_sde}", "{type: flow_sde, a: 0.0}"), r"a.yaml:7: source: .* is deterministic here"),
        ("steps", ("group_size: 4", "group_size: 1"), r"a.yaml:7: source: group_size must be >= 2, got 1"),
        ("steps", ("group_size: 4", "group_size: 4\n  keep: 3"), r"a.yaml:7: source: keep has to be an even number"),
        (
            "steps",
            ("group_size: 4", "group_size: 4\n  scout: {candidates: 1, how: {tail: 1}}"),
            r"a.yaml:11: source.scout.candidates: got 1: one scout is not compared with any",
        ),
        (
            "steps",
            ("group_size: 4", "group_size: 4\n  scout: {candidates: 3, how: {tail: 1}}"),
            r"a.yaml:11: source.scout.candidates: got 3, and 4 of them are made anew",
        ),
        (
            "groups",
            ("group_size: 8", "group_size: 8\n  scout: {candidates: 24, how: {call: {num_inference_steps: 2}}}"),
            r"a.yaml:11: source.scout: DGPO takes the samples of a group for all that the policy makes",
        ),
        ("steps", ("{type: clipped_surrogate}", "{type: draft}"), r"DRaFT consumes Starts, but source OnPolicySteps"),
        ("tree", ("{type: flow_sde}", "{type: ode}"), r"a.yaml:7: source: dynamics: ODE is deterministic here"),
        ("tree", ("[0, 1]", "[1, 1]"), r"a.yaml:7: source: splits must be one or more steps >= 0, ascending"),
        ("tree", ("[0, 1]", "[0, 1]\n  branching: 1"), r"a.yaml:7: source: branching must be >= 2, got 1"),
        (
            "direct",
            ("{type: colour}", "{type: shapes}"),
            r"a.yaml:10: source.reward: DRaFT climbs the gradient .* Shapes gives it none",
        ),
        (
            "direct",
            ("{type: colour}", "{type: weighted, parts: {a: {reward: {type: colour}}, b: {reward: {type: jpeg}}}}"),
            r"a.yaml:10: source.reward: DRaFT climbs the gradient .* Weighted gives it none",
        ),
        (
            "tree",
            ("[0, 1]", "[0, 1]\n  trained: [0, 3]"),
            r"a.yaml:7: source: trained must be one or more of the splits",
        ),
        ("tree", ("{type: clipped_surrogate}", "{type: vipo}"), r"choose source on_policy_steps and say what spreads"),
        (
            "tree",
            ("{type: clipped_surrogate}", "{type: clipped_surrogate}\nbatch: {updates: 5}"),
            r"batch.updates: 18 rows per step do not divide into 5: 18 = 5 x 3 \+ 3",
        ),
        ("groups", ("microbatch: 8}", "microbatch: 8}\nsnapshots: {every: 0}"), r"snapshots.every: got 0, expected at"),
        (
            "groups",
            ("microbatch: 8}", "microbatch: 8}\nsnapshots: {above: {a: .inf}}"),
            r"above.a: got inf, expected a f",
        ),
        ("steps", ("steps: 10", "steps: 10\nsnapshots: {every: 3}"), r"snapshots.every: .* nothing in this run reads"),
        ("steps", ("steps: 10", "steps: 10\nsnapshots: {above: {a: 1.0}}"), r"snapshots.above: .* nothing in this run"),
        ("direct", ("{type: draft}", "{type: draft, noises: 0}"), r"a.yaml:11: objective: noises must be >= 1 or null"),
        (
            "direct",
            ("{type: draft}", "{type: draft, last: 6, noises: 2}"),
            r"a.yaml:11: objective: .* not before all 6",
        ),
        (
            "steps",
            ("{type: shapes}", "{type: colour}\n  advantage: {type: min, parts: [strict]}"),
            r"a.yaml:\d+: source.advantage: Min reads the part 'strict' of the reward, but Colour has no parts",
        ),
        ("tree", ("[0, 1]", "[0, 5]"), r"a.yaml:7: source: with .*num_inference_steps 6: splits: a split at step 5"),
        ("direct", ("{type: draft}", "{type: draft, last: 7}"), r"a.yaml:11: objective: .* last: 7 steps .* takes 6"),
        ("direct", ("{type: draft}", "{type: alignprop, most: 9}"), r"a.yaml:11: objective: .* up to 9 steps"),
        ("groups", ("microbatch: 8", "microbatch: 7"), r"a.yaml:13: batch.microbatch: got 7, but DGPO compares the 8"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_what_cannot_work_is_refused_with_its_place(
    tmp_path: Path, body: str, instead: tuple[str, str], says: str
) -> None:
    text = HEAD + BODIES[body]
    assert instead[0] in text
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, text.replace(*instead)))
