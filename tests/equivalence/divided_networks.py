"""Networks of the zoo, run whole and with their tokens divided over all processes there are."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
import torch.distributed
from diffusers import MiniMaxH3Transformer3DModel
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from alignment.errors import VisalignError
from alignment.policy.networks.layout import Whole
from alignment.policy.networks.loading import denoiser_name
from alignment.policy.networks.recompute import let_recompute
from alignment.training.runtime.divided import Divided
from alignment.training.runtime.team import team_of
from tests.pipelines.zoo import built

CPU = torch.device("cpu")
HOW: dict[str, bool | Literal["selective"]] = {"kept": False, "recomputed": True, "some recomputed": "selective"}
"""What becomes of activations."""


class Seen(Exception):
    """Ends a pipeline's call once it has called its denoiser."""


def call_of(pipe: Any, network: nn.Module, call: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the first call of the denoiser in a pipeline's call."""
    seen: list[Any] = []

    def hook(module: nn.Module, args: Any, named: Any) -> None:
        seen.append((args, named))
        raise Seen

    size = (int(call.get("width", 32)), int(call.get("height", 32)))
    pixels = torch.randint(256, (*size[::-1], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    picture = Image.fromarray(pixels.numpy())
    takes = inspect.signature(type(pipe).__call__).parameters
    brought = {"image": picture, "mask_image": picture.convert("L")}
    call = {**{name: value for name, value in brought.items() if name in takes}, **call}
    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        pipe(**call, prompt="a red circle", generator=torch.Generator().manual_seed(0), output_type="latent")
    except Seen:
        return seen[0]
    finally:
        handle.remove()
    raise AssertionError("the denoiser was not called")


def minimax_h3() -> tuple[nn.Module, dict[str, Any]]:
    """Return a network of clips with sound, which diffusers has no pipeline class of, and arguments of a call."""
    torch.manual_seed(0)
    network = MiniMaxH3Transformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=48,
        in_channels=4,
        audio_in_channels=6,
        text_dim=24,
        freq_dim=16,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    text, clip, sound = torch.arange(13).split((4, 6, 3))  # thirteen tokens, which two processes cannot share evenly
    places = torch.arange(13)[:, None] * torch.tensor([1, 2, 3])
    named = {
        "hidden_states": torch.randn(2, len(clip), 16),
        "audio_hidden_states": torch.randn(2, len(sound), 6),
        "encoder_hidden_states": torch.randn(2, len(text), 24),
        "timestep": torch.tensor([0.3, 0.7]),
        "timestep_indices": torch.tensor([0] * 7 + [1] * 6),
        "token_tags": torch.tensor([1] * len(text) + [0] * len(clip) + [2] * len(sound)),
        "position_ids": places.float(),
        "video_indices": clip,
        "audio_indices": sound,
        "text_indices": text,
    }
    return network.eval(), named


def called(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return a denoiser, and the arguments of a call of it: of a member of the zoo, or one without a pipeline."""
    if name == minimax_h3.__name__:
        network, named = minimax_h3()
        return network, (), named
    member = built(name)
    network = member.pipe.components[denoiser_name(member.pipe)]  # type: ignore[attr-defined]  # of any pipeline
    return network, *call_of(member.pipe, network, dict(member.call))


def learned(network: nn.Module, args: Any, named: Any, share: float) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return what a network makes of a call, and the gradients of a loss of it by its weights."""
    network.zero_grad(set_to_none=True)
    args, named = tree_map_only(Tensor, torch.clone, (args, named))
    out = [z for z in tree_leaves(network(*args, **named)) if isinstance(z, Tensor)]
    stream = torch.Generator().manual_seed(1)
    loss = sum((z * torch.randn(z.shape, generator=stream)).sum() for z in out)
    (loss * share).backward()
    return [z.detach() for z in out], {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def apart(ours: Tensor, theirs: Tensor, scale: float) -> float:
    return ((ours - theirs).abs().max() / scale).item()


def differences(name: str) -> dict[str, Any]:
    """Return how far apart the two are, relative to what is largest: outputs, and gradients."""
    network, args, named = called(name)
    network.requires_grad_(True)
    out, gradients = learned(network, args, named, 1.0)
    size = torch.distributed.get_world_size()
    told = {}
    try:
        Divided(Whole(), team_of(size, CPU), None).place(network, [n for n, _ in network.named_parameters()])
        for how in HOW:
            let_recompute(network, HOW[how], whole=True)
            theirs, parts = learned(network, args, named, 1 / size)
            for part in parts.values():
                torch.distributed.all_reduce(part)
            told[f"{how}, outputs"] = max(apart(a, b, a.abs().max().item()) for a, b in zip(out, theirs, strict=True))
            largest = max(g.abs().max().item() for g in gradients.values())
            zero = torch.zeros(())
            told[f"{how}, gradients"] = max(apart(g, parts.get(n, zero), largest) for n, g in gradients.items())
            told[f"{how}, others"] = max([0.0, *(g.abs().max().item() for n, g in parts.items() if n not in gradients)])
    except VisalignError as error:
        return {"refused": str(error)}
    return told
