"""Reading the answer of a chat endpoint. Every part of it is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from reward_models.serving.exchange import InvalidAnswer
from reward_models.vlms.base import CUE, NO, YES, spells

_ROUNDING = 0.01
"""How far above 1 the reported probabilities may add up."""
_NEVER = -1000.0
"""Log-probability below which servers mean -infinity (vLLM writes -9999)."""


def text_of(answer: Any) -> str:
    """Return the text that was written.

    Raises:
        InvalidAnswer: If there is none.
    """
    text = _only_choice(answer).get("message", {}).get("content")
    if not isinstance(text, str):
        raise InvalidAnswer(f"its answer has no text: {str(answer)[:120]}")
    return text


def verdict_of(answer: Any, *, reasoned: bool) -> tuple[float, float]:
    """Return the log-probabilities of yes and no at the place of the verdict; NaN where there was none.

    Args:
        answer: The JSON of a chat completion with log-probabilities.
        reasoned: Whether the verdict is the word after the last `CUE`, or the first word.

    Raises:
        InvalidAnswer: If the answer has no log-probabilities, or ones that cannot be.
    """
    tokens = _tokens(_only_choice(answer))
    place = _after_cue(tokens) if reasoned else 0
    if place is None:
        return math.nan, math.nan
    reported = _alternatives(tokens[place])
    listed = [sum(math.exp(p) for token, p in reported if spells(token, word)) for word in (YES, NO)]
    # A token not reported is at most as likely as the least likely reported one, and as all that is left.
    unseen = min(math.exp(min(p for _, p in reported)), max(0.0, 1 - sum(math.exp(p) for _, p in reported)))
    if not any(listed):
        return math.nan, math.nan
    # A server that tells every token there is leaves nothing over; a word it did not tell then has no token.
    yes, no = (math.log(p or unseen or math.exp(-100.0)) for p in listed)
    return yes, no


def first_words(answer: Any) -> list[tuple[str, float]]:
    """Return the reported words with which the answer may begin, and their log-probabilities.

    Raises:
        InvalidAnswer: If the answer has no log-probabilities, or ones that cannot be.
    """
    return _alternatives(_tokens(_only_choice(answer))[0])


def chance_of(reported: Sequence[tuple[str, float]], spellings: Sequence[str]) -> float:
    """Return the probability of a word in any of its spellings; a word that is not reported counts as 0."""
    words = {one.strip().lower() for one in spellings}
    return min(1.0, sum(math.exp(p) for token, p in reported if token.strip().lower() in words))


def _only_choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise InvalidAnswer(f"its answer has no single choice: {str(answer)[:120]}")
    return choices[0]


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]]:
    content = (choice.get("logprobs") or {}).get("content")
    if not isinstance(content, list) or not content or not all(isinstance(token, dict) for token in content):
        raise InvalidAnswer("its answer has no log-probabilities; vLLM gives up to --max-logprobs (20) of them")
    return content


def _after_cue(tokens: Sequence[dict[str, Any]]) -> int | None:
    """Return the place of the first word after the last cue."""
    words = [str(token.get("token", "")) for token in tokens]
    found = "".join(words).rfind(CUE)
    end = 0
    for place, word in enumerate(words):
        if found >= 0 and end >= found + len(CUE) and word.strip():
            return place
        end += len(word)
    return None


def _alternatives(token: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the reported (token, log-probability) at one place."""
    try:
        reported = [(str(one["token"]), float(one["logprob"])) for one in token["top_logprobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidAnswer(f"its log-probabilities cannot be read: {str(token)[:120]}") from error
    chances = [p for _, p in reported]
    if not reported or any(math.isnan(p) or p > _ROUNDING for p in chances):
        raise InvalidAnswer(f"these are not log-probabilities: {reported[:4]}")
    if sum(map(math.exp, chances)) > 1 + _ROUNDING:
        raise InvalidAnswer(f"the probabilities it reports add up to more than 1: {reported[:4]}")
    if len(reported) > 1 and sorted(chances)[-2] < _NEVER:
        raise InvalidAnswer(
            "one token has all the probability, so they were taken after sampling; vLLM reports those of the model "
            "itself with --logprobs-mode raw_logprobs"
        )
    return reported
