"""PEFT's settings of an adapter, as a file beside it or its header tells them: read by their types, or refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peft.utils.other import get_pattern_key

from alignment.errors import ConfigError

_ALPHA = 8.0
"""What PEFT takes where its settings do not say it, for LoRA, LoHa and LoKr alike."""
_OF_A_RESIDUAL = re.compile(r"pissa.*|olora|corda.*|loftq|lora_ga", re.IGNORECASE)
"""Values of `init_lora_weights` that take the first update out of the weights under it."""
_OTHERS = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config")
"""Settings of LoRAs that compute something else than `B A`."""
_SHOWN = 60


@dataclass(frozen=True)
class PeftSettings:
    """What is told about an adapter.

    Attributes:
        where: Key of the config and file, for messages.
        told: The settings; None where there are none, and the tensors alone say everything.
    """

    where: str
    told: Mapping[str, object] | None = field(default_factory=dict)

    def check(self, kind: str, modules: Sequence[str], *, magnitudes: bool) -> None:
        """Refuse what is not of such an adapter, or of one that means more than its tensors.

        Args:
            kind: What the tensors are: LoRA, LoHa or LoKr.
            modules: Names of those it has tensors for.
            magnitudes: Whether there are some among them.

        Raises:
            ConfigError: Naming the setting, its value, what is expected and what can be done.
        """
        named = self._get("peft_type")
        if named is not None and named != kind.upper():
            raise self.wrong("peft_type", named, f'"{kind.upper()}", for the tensors are those of a {kind}')
        for name in ("alpha_pattern", "rank_pattern"):
            patterns = self._patterns(name)
            used = {get_pattern_key(list(patterns), module) for module in modules}
            if strange := next((key for key in patterns if key not in used), None):
                raise self.wrong(
                    f"{name}.{strange}",
                    patterns[strange],
                    "the name of one of its modules, as diffusers has them, or the end of one; leave it out if it is "
                    "of none",
                )
        if kind != "LoRA":
            return
        init = self._get("init_lora_weights")
        if isinstance(init, str) and _OF_A_RESIDUAL.fullmatch(init):
            raise self.wrong(
                "init_lora_weights",
                init,
                "one that leaves the pipeline's weights as they are: this adapter belongs to weights that its first "
                "update was taken out of. Save it anew with PEFT's save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...)",
            )
        for name in _OTHERS:
            if (value := self._get(name)) not in (None, False):
                raise self.wrong(name, value, "none: such an adapter adds something else than B A")
        if self.flag("use_dora") and not magnitudes:
            raise self.wrong("use_dora", True, "false, or magnitudes (lora_magnitude_vector) in the file")
        if self._get("use_dora") is False and magnitudes:
            raise self.wrong("use_dora", False, "true: the file has magnitudes (lora_magnitude_vector)")

    def flag(self, name: str) -> bool:
        """Return a setting that is true or false; False where nobody says it."""
        value = self._get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(name, value, "true or false")

    def rank(self, module: str) -> int | None:
        """Return the rank of a module; None where nobody says it."""
        key, value = self._by_module(module, "rank_pattern", "r")
        if value is None:
            return None
        number = self._number(key, value)
        if number < 1 or number % 1:
            raise self.wrong(key, value, "a whole number of at least 1")
        return int(number)

    def alpha(self, module: str, usual: str) -> float | None:
        """Return alpha of a module, or PEFT's own where the settings do not say it; None without settings.

        Args:
            module: Its name.
            usual: What PEFT calls alpha for such an adapter.
        """
        key, value = self._by_module(module, "alpha_pattern", usual)
        if value is None:
            return None if self.told is None else _ALPHA
        return self._number(key, value)

    def check_alpha(self, module: str, usual: str, beside: float) -> None:
        """Refuse an alpha that is not that of a tensor beside the matrices: nobody can say which is meant.

        Args:
            module: Name of the module.
            usual: What PEFT calls alpha for such an adapter.
            beside: What the tensor says.
        """
        key, value = self._by_module(module, "alpha_pattern", usual)
        if value is not None and self._number(key, value) != beside:
            raise self.wrong(key, value, f"{beside:g}, as {module}.alpha in the file says; leave one of the two out")

    def wrong(self, key: str, value: object, expected: str) -> ConfigError:
        """Return the error of a setting."""
        shown = json.dumps(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        return ConfigError(f"{self.where}: {key} is {shown}, expected {expected}")

    def _get(self, name: str) -> object:
        return None if self.told is None else self.told.get(name)

    def _by_module(self, module: str, pattern: str, usual: str) -> tuple[str, object]:
        """Return the key of a module's setting, and its value, as PEFT finds it."""
        patterns = self._patterns(pattern)
        if (key := get_pattern_key(list(patterns), module)) in patterns:
            value = patterns[key]
            if value is None:
                raise self.wrong(f"{pattern}.{key}", value, "a number")
            return f"{pattern}.{key}", value
        return usual, self._get(usual)

    def _patterns(self, name: str) -> Mapping[str, object]:
        """Return numbers by patterns of modules' names."""
        patterns = self._get(name)
        if patterns is None:
            return {}
        if not isinstance(patterns, Mapping):
            raise self.wrong(name, patterns, "an object of numbers by the modules' names")
        for key in patterns:
            try:
                re.compile(rf"(.*\.)?({key})$")
            except re.error as error:
                raise ConfigError(f"{self.where}: {name}.{key} is not a regular expression: {error}") from error
        return patterns

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(key, value, "a finite number")
        return number
