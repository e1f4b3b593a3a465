"""The words people bring lead to what there is: every one of them, and from where it would be written."""

from __future__ import annotations

import pytest

from alignment.config import build, registry, synonyms
from alignment.config.listing import kinds, listing
from alignment.config.overlay import nearest
from alignment.config.run import Run

KINDS = kinds(Run)
TYPES = {name for kind in KINDS.values() for name in registry.known(kind)}


def leads_somewhere(path: str) -> bool:
    """Return whether a path of keys is one of a run's, through any type that a kind has."""
    classes: list[type] = [Run]
    for key in path.split("."):
        hints = [build.fields_of(cls)[key][0] for cls in classes if key in build.fields_of(cls)]
        if not hints:
            return False
        parts = [part for hint in hints for part in build.members(hint)]
        if any("dict" in str(part) for part in parts):  # arguments of the pipeline's own call
            return True
        classes = [cls for part in parts if isinstance(part, type) for cls in _classes(part)]
    return True


def _classes(part: type) -> list[type]:
    if registry.is_kind(part):
        return [registry.find(part, name) for name in registry.known(part)]
    return [part] if hasattr(part, "__dataclass_fields__") else []


@pytest.mark.parametrize("word", synonyms.SAME)
def test_a_word_leads_to_a_type_or_a_key(word: str) -> None:
    for ours in synonyms.SAME[word]:
        assert ours in TYPES or leads_somewhere(ours), ours


def test_words_as_people_write_them() -> None:
    objectives = registry.known(KINDS["objectives"])
    for written in ("grpo", "GRPO", "FlowGRPO", "flow-grpo", "dance_grpo"):
        assert nearest(written, objectives) == "Did you mean 'clipped_surrogate'? "
    assert nearest("lr", ["learning_rate", "warmup"]) == "Did you mean 'learning_rate'? "
    assert nearest("lr", ["name", "steps"]) == "Here it is called optimizer.learning_rate. "
    assert nearest("r", ["rank", "alpha"]) == "Did you mean 'rank'? "
    assert nearest("cfg_scale", ["zebra"]) == ""
    assert nearest("dance_sd", ["dance_sde", "ode"]) == "Did you mean 'dance_sde'? "


@pytest.mark.parametrize("name", ["rewards", "reward", "reward_models"])
def test_rewards_are_listed_under_their_commands_name(name: str) -> None:
    assert listing(Run, name) == listing(Run, "reward_models")
    assert "type: shapes" in listing(Run, name)
