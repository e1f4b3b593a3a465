"""Reading what judges of the UnifiedReward family write.

Each reader returns NaN for a text without the expected words: a judgement that cannot be read is NaN, and never
a tie.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

FIRST, TIE, SECOND = 1.0, 0.5, 0.0
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_SHARES = rf"\s*(?:image|video)\s*1\s*:\s*{_NUMBER}\s*(?:image|video)\s*2\s*:\s*{_NUMBER}"
_BETTER = re.compile(r"\b(?:image|video)\s*([12])\s+is\s+better\b|\b(equally\s+good)\b", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_NAMED = re.compile(r"\b(?:image|video)\s*([12])\b", re.IGNORECASE)
_EVEN = re.compile(r"\b(?:tie|tied|draw|equal|equally|both|neither|none)\b", re.IGNORECASE)
_CATEGORIES = 3  # as many as the authors' own reward counts
_SUM_ERROR = 0.05  # how far the two shares of an axis may be from adding up to 1


def sentence(text: str) -> float:
    """Read "Image 1 is better", "Image 2 is better" or "equally good" from the last line that has one of them."""
    for line in reversed(text.splitlines()):
        parsed = {SECOND if which == "2" else FIRST if which else TIE for which, _ in _BETTER.findall(line)}
        if parsed:
            return parsed.pop() if len(parsed) == 1 else math.nan
    return math.nan


def answer(text: str) -> float:
    """Read the sentence in the last <answer> ... </answer>, whatever was thought before."""
    found = _ANSWER.findall(text)
    return sentence(found[-1]) if found else math.nan


def shares(text: str, axes: Sequence[str]) -> float:
    """Read the mean share of the first over the axes: "AXIS Score:", "Image 1: 0.6", "Image 2: 0.4"."""
    read = []
    for axis in axes:
        found = re.findall(rf"{re.escape(axis)}\s+Score\s*:{_SHARES}", text, re.IGNORECASE)
        if not found:
            return math.nan
        first, second = map(float, found[-1])
        if not (0 <= first <= 1 and 0 <= second <= 1 and abs(first + second - 1) <= _SUM_ERROR):
            return math.nan
        read.append(first / (first + second))
    return sum(read) / len(read)


def report(text: str, categories_weight: float) -> float:
    """Read a JSON report: its "winner", and the mean of the first three "categories" by their "cat_winner".

    Args:
        text: What was written; the report may stand among other words.
        categories_weight: Share of the categories in the result, in [0, 1]. A category whose winner cannot be read
            does not count.
    """
    parsed = _object(text)
    overall = _winner(parsed.get("winner"))
    listed = parsed.get("categories")
    parts = (
        [_winner(one.get("cat_winner")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    )
    parts = [part for part in parts[:_CATEGORIES] if not math.isnan(part)]
    if math.isnan(overall) or not parts or not categories_weight:
        return overall
    return (1 - categories_weight) * overall + categories_weight * sum(parts) / len(parts)


def marks(text: str, axes: Sequence[str]) -> list[float]:
    """Read a mark from 1 to 5 for each axis: "AXIS Score: x" or "AXIS Score (1-5): x"."""
    read = []
    for axis in axes:
        found = re.findall(rf"{re.escape(axis)}\s+Score\s*(?:\(1-5\))?\s*:\s*{_NUMBER}", text, re.IGNORECASE)
        mark = float(found[-1]) if found else math.nan
        read.append(mark if 1 <= mark <= 5 else math.nan)
    return read


def _winner(text: object) -> float:
    if not isinstance(text, str):
        return math.nan
    named = {FIRST if which == "1" else SECOND for which in _NAMED.findall(text)}
    if len(named) == 1:
        return named.pop()
    return TIE if _EVEN.search(text) else math.nan


def _object(text: str) -> Mapping[str, Any]:
    start, end = text.find("{"), text.rfind("}")
    try:
        parsed = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
