"""Train the tiny video pipeline's transformer and text encoder together, by flow matching, on clips and their captions.

Some rows are trained as image-to-video: the first latent frame is given, clean, and its tokens stand at time 0,
as `WanImageToVideoPipeline` with `expand_timesteps` will present it.
"""

from __future__ import annotations

import math
import time

import torch
from diffusers import WanPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.tiny_video.parts import TEXT_LENGTH

BATCH = 128
RATE = 2e-3
WARMUP = 100  # steps
FLAT = 0.3  # share of the steps at the full rate; a cosine after that
NO_CAPTION = 0.08  # share of the rows that learn the empty caption
FROM_IMAGE = 0.3  # share of the rows whose first frame is given
EMA = 0.999
NETWORK_TIMES = 1000  # what diffusers calls time 1


class Flow(nn.Module):
    """The trained parts of the pipeline as one module: from captions and a noisy latent to a velocity."""

    def __init__(self, pipe: WanPipeline, captions: list[str]) -> None:
        """Share the pipeline's modules, in training mode; `captions` are all there are, "" is added at the end."""
        super().__init__()
        self.text, self.transformer = pipe.text_encoder, pipe.transformer
        told = pipe.tokenizer(
            [*captions, ""], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        self.ids, self.mask = told.input_ids, told.attention_mask
        self.train()

    def forward(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """Return the velocity at `x` `[B, 16, 3, 4, 4]` and times `t` `[B, 12]`, a token each, in [0, 1].

        Args:
            x: Noisy latents.
            t: Times.
            rows: `[B]`, which caption each row has.
        """
        # On a CPU the fused attention spends more on so few tokens than two plain products.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            text = self.text(self.ids, self.mask).last_hidden_state * self.mask[..., None]
            velocity = self.transformer(x, t * NETWORK_TIMES, text[rows], return_dict=False)[0]
        return velocity.float()


def flow_loss(flow: Flow, x0: Tensor, rows: Tensor) -> Tensor:
    """Return the flow-matching loss, a scalar, at logit-normal times (mean 1, spread 1.2): motion is settled early."""
    t = torch.sigmoid(torch.randn(len(x0)) * 1.2 + 1.0)
    moving = torch.ones(len(x0), 1, x0.shape[2], 1, 1)
    moving[torch.rand(len(x0)) < FROM_IMAGE, :, 0] = 0
    noise = torch.randn_like(x0)
    mix = t.view(-1, 1, 1, 1, 1) * moving
    tokens = mix[:, 0].expand(-1, -1, x0.shape[3] // 2, x0.shape[4] // 2).flatten(1)
    error = (flow((1 - mix) * x0 + mix * noise, tokens, rows) - (noise - x0)).square()
    return (error * moving).sum() / moving.expand_as(error).sum()


def optimizers(flow: Flow) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices within the transformer's blocks and AdamW for everything else."""
    named = list(flow.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and name.startswith("transformer.blocks.")]
    outer = [p for _, p in named if all(p is not q for q in inner)]
    return [
        torch.optim.Muon(inner, RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_wan(pipe: WanPipeline, latents: Tensor, captions: list[str], steps: int) -> None:
    """Train `pipe` in place and leave it with the averaged weights.

    Args:
        pipe: From `new_pipeline`.
        latents: `[N, 16, 3, 4, 4]` from `encode_clips`.
        captions: One a row of `latents`.
        steps: Optimiser steps; 0.34 CPU-seconds each.
    """
    known = sorted(set(captions))
    caption_of = torch.tensor([known.index(caption) for caption in captions])
    flow = Flow(pipe, known)
    solvers = optimizers(flow)
    weights = list(flow.parameters())
    average = [w.detach().clone() for w in weights]
    mean = 0.0
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, step / steps - FLAT) / (1 - FLAT)))
        for group in (group for solver in solvers for group in solver.param_groups):
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (0.01 + 0.99 * cosine)
        rows = torch.randint(len(latents), (BATCH,))
        told = torch.where(torch.rand(BATCH) < NO_CAPTION, len(known), caption_of[rows])
        loss = flow_loss(flow, latents[rows], told)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for solver in solvers:
            solver.step()
            solver.zero_grad()
        keep = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - keep)
        mean += (loss.item() - mean) * max(0.02, 1 / (step + 1))
        if (step + 1) % 100 == 0:
            print(f"wan step {step + 1} loss {mean:.4f} cpu {time.process_time():.0f} s", flush=True)
    with torch.no_grad():
        for weight, averaged in zip(weights, average, strict=True):
            weight.copy_(averaged)
    flow.eval()
