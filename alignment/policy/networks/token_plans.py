"""Where the tokens of a network can be divided over processes, so that each works at a part of a sample.

Between attentions a transformer treats every token by itself. So its tokens are cut once they are tokens and joined
again before they become a picture; whoever cuts them sees to it that attention meets all of them. Many networks of
diffusers say where that is (`_cp_plan`); for others it is said here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import ConfigMixin
from torch import nn

from alignment.errors import ConfigError
from alignment.policy.networks.loading import attentions

ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Arguments of `scaled_dot_product_attention` that have a place."""
TEXT = "encoder_hidden_states"
"""What diffusers calls the text's tokens, wherever a module takes them."""


@dataclass(frozen=True)
class Cut:
    """An axis of tokens.

    Attributes:
        dim: Which.
        dims: How many axes the tensor has; one with another number has no tokens. None: any.
        behind: Argument whose tokens come first along this axis, and are divided by themselves; so are the rest.
    """

    dim: int
    dims: int | None = None
    behind: str | None = None


Cuts = Mapping[str | int, Cut | tuple[Cut, ...]]
"""Arguments by name and outputs by number; for a list or tuple one cut for each of its tensors."""


@dataclass(frozen=True)
class TokenPlan:
    """Where a network's tokens are cut and joined; `*` in the name of a module is any number, -1 the last one.

    Attributes:
        cut: By module.
        joined: By module: the axis of each of its outputs.
    """

    cut: Mapping[str, Cuts]
    joined: Mapping[str, tuple[int | None, ...]]

    @property
    def texts(self) -> bool:
        """Whether the text's tokens are divided, too; else every process has all of them."""
        return any(TEXT in cuts for cuts in self.cut.values())


_BLOCK: Cuts = {"hidden_states": Cut(1, 3), TEXT: Cut(1, 3)}
_ROTATION = (Cut(0, 2), Cut(0, 2))
_JOINED: Mapping[str, tuple[int | None, ...]] = {"proj_out": (1,)}
_ROPES = ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")
PLANS = {
    "SD3Transformer2DModel": TokenPlan({"transformer_blocks.0": _BLOCK}, _JOINED),
    "CogVideoXTransformer3DModel": TokenPlan(
        {"transformer_blocks.0": _BLOCK, "transformer_blocks.*": {"image_rotary_emb": _ROTATION}}, _JOINED
    ),
    # SkyReels-V1 is this network, too. Its mask is over the clip's tokens, then the text's.
    "HunyuanVideoTransformer3DModel": TokenPlan(
        {
            "transformer_blocks.0": _BLOCK,
            "transformer_blocks.*": {"attention_mask": Cut(3, 4, "freqs_cis"), "freqs_cis": _ROTATION},
            "single_transformer_blocks.*": {
                "attention_mask": Cut(3, 4, "image_rotary_emb"),
                "image_rotary_emb": _ROTATION,
            },
        },
        _JOINED,
    ),
    "HunyuanVideo15Transformer3DModel": TokenPlan(
        {
            "transformer_blocks.0": _BLOCK,
            "transformer_blocks.*": {"attention_mask": Cut(1, 2), "freqs_cis": _ROTATION},
        },
        _JOINED,
    ),
    # A picture to begin with gives each token a time of its own.
    "LTXVideoTransformer3DModel": TokenPlan(
        {
            "": {**_BLOCK, "encoder_attention_mask": Cut(1, 2), "timestep": Cut(1, 2)},
            "rope": {0: Cut(1, 3), 1: Cut(1, 3)},
        },
        _JOINED,
    ),
    # Sound has tokens, too. Rotations are for each head, or for all of them.
    "LTX2VideoTransformer3DModel": TokenPlan(
        {
            "": {
                **{f"{kind}{name}": Cut(1, 3) for kind in ("", "audio_") for name in ("hidden_states", TEXT)},
                **{
                    f"{kind}{name}": Cut(1, 2)
                    for kind in ("", "audio_")
                    for name in ("encoder_attention_mask", "timestep")
                },
            },
            **{name: {0: Cut(-2), 1: Cut(-2)} for name in _ROPES},
        },
        {**_JOINED, "audio_proj_out": (1,)},
    ),
    # With a time for each frame, the times of all tokens meet them once more behind the blocks.
    "SkyReelsV2Transformer3DModel": TokenPlan(
        {
            "rope": {0: Cut(1, 4), 1: Cut(1, 4)},
            "blocks.0": {"hidden_states": Cut(1, 3)},
            "blocks.*": {"temb": Cut(2, 4)},
        },
        {"blocks.-1": (1,)},
    ),
}
"""Plans by class, for networks that have none of their own."""


_APART = {"image_condition_type": "token_replace", "is_amplify_history": True}
"""Settings of networks that count tokens of a clip within their blocks."""


COUNTING = "kv_cache_mode"
"""Argument of a call whose blocks tell tokens of reference pictures from others by counting them (FLUX.2 klein KV)."""


def token_plan(network: nn.Module) -> TokenPlan | None:
    """Return the plan of a network; None if it has none."""
    name = next((cls.__name__ for cls in type(network).__mro__ if cls.__name__ in PLANS), None)
    if name is not None:
        return PLANS[name]
    own = network._cp_plan if hasattr(network, "_cp_plan") else None
    return None if own is None else _read(own)  # pyright: ignore[reportArgumentType]


def _read(plan: Mapping[str, Any]) -> TokenPlan:
    """Return the plan that diffusers states."""

    def cut(told: Any) -> Cut | tuple[Cut, ...]:
        return tuple(map(cut, told)) if isinstance(told, list | tuple) else Cut(told.split_dim, told.expected_dims)  # pyright: ignore[reportReturnType]

    joined = {name: told for name, told in plan.items() if not isinstance(told, Mapping)}
    joined = {name: told if isinstance(told, list | tuple) else (told,) for name, told in joined.items()}
    return TokenPlan(
        {name: {key: cut(one) for key, one in told.items()} for name, told in plan.items() if name not in joined},
        {name: tuple(None if one is None else one.gather_dim for one in told) for name, told in joined.items()},
    )


def modules_called(network: nn.Module, pattern: str) -> Iterator[nn.Module]:
    """Yield the modules of a network that a plan names."""
    if pattern.endswith(".-1"):
        yield network.get_submodule(pattern.removesuffix(".-1"))[-1]  # pyright: ignore[reportIndexIssue]
        return
    wanted = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
    yield from (module for name, module in network.named_modules() if wanted.fullmatch(name))


def check_divisible(network: nn.Module, context: int) -> TokenPlan:
    """Return the plan of a network whose tokens are to be divided over `context` processes.

    Raises:
        ConfigError: If it has none, or heads that so many processes cannot share.
    """
    plan, name = token_plan(network), type(network).__name__
    if plan is None:
        raise ConfigError(
            f"parallel.context: nothing says how the tokens of {name} can be divided over {context} processes: neither "
            "diffusers (_cp_plan) nor alignment/policy/networks/token_plans.py has a plan of it; set parallel.context=1"
        )
    config = network.config if isinstance(network, ConfigMixin) else {}
    apart = [f"{key}: {value}" for key, value in _APART.items() if config.get(key) == value]
    if apart:
        raise ConfigError(
            f"parallel.context: the blocks of this {name} treat some tokens of a clip in a way of their own "
            f"({apart[0]}), and would take others for them if they were divided; set parallel.context=1"
        )
    heads = math.gcd(*(module.heads for module in attentions(network) if hasattr(module, "heads")))
    if heads % context:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ConfigError(
            f"parallel.context: {context} processes cannot share the {heads} heads of the attention of {name} evenly; "
            f"use one of {fitting}"
        )
    return plan


def attention_arguments(args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of torch's `scaled_dot_product_attention` by name."""
    return dict(zip(ATTENTION, args, strict=False)) | dict(named)
