"""Train the tiny pipeline's transformer and text encoders together, by flow matching."""

from __future__ import annotations

import math
import time

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.tiny_pipeline.parts import LATENT_CHANNELS, LATENT_SIDE, TEXT_LENGTH, to_unit

BATCH = 128
RATE = 2e-3
WARMUP = 100  # steps
FLAT = 0.3  # share of the budget at the full rate; a cosine after that
NO_CAPTION = 0.08  # share of the rows that learn the empty caption
EMA = 0.999


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return packed latents `[N, 16, 32]` of `pictures` `[N, 32, 32, 3]` uint8, in the transformer's scaling."""
    packed = []
    for part in pictures.split(500):
        z = (vae.encode(to_unit(part)).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        packed.append(FluxPipeline._pack_latents(z, len(z), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE))
    return torch.cat(packed)


class Flow(nn.Module):
    """The trained parts of the pipeline as one module: from token ids and a noisy latent to a velocity."""

    def __init__(self, pipe: FluxPipeline) -> None:
        """Share the pipeline's modules, in training mode."""
        super().__init__()
        self.clip, self.t5, self.transformer = pipe.text_encoder, pipe.text_encoder_2, pipe.transformer
        half = LATENT_SIDE // 2
        self.image_ids = pipe._prepare_latent_image_ids(1, half, half, "cpu", torch.float32)
        self.text_ids = torch.zeros(TEXT_LENGTH, 3)
        self.train()

    def forward(self, x: Tensor, t: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Return the velocity at `x` `[B, 16, 32]` and `t` `[B]` in (0, 1)."""
        # On a CPU the fused attention spends more on 28 tokens than two plain products: a fifth of the backward pass.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = self.transformer(
                hidden_states=x,
                timestep=t,
                pooled_projections=self.clip(clip_ids).pooler_output,
                encoder_hidden_states=self.t5(t5_ids)[0],
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                return_dict=False,
            )[0]
        return velocity.float()


def tokenize(pipe: FluxPipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return the CLIP and the T5 ids of the captions, `[B, 12]` each, as the pipeline makes them."""
    clip, t5 = (
        tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True).input_ids
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    )
    return torch.tensor(clip), torch.tensor(t5)


def optimizers(flow: Flow) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices within the transformer's blocks and AdamW for everything else."""
    named = list(flow.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and name.startswith("transformer.") and "blocks." in name]
    outer = [p for _, p in named if all(p is not q for q in inner)]
    return [
        torch.optim.Muon(inner, RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def flow_loss(flow: Flow, x0: Tensor, ids: tuple[Tensor, Tensor]) -> Tensor:
    """Return the flow-matching loss, a scalar, at logit-normal times (mean 0.2, spread 1.2)."""
    t = torch.sigmoid(torch.randn(len(x0)) * 1.2 + 0.2)
    noise = torch.randn_like(x0)
    mix = t[:, None, None]
    return nn.functional.mse_loss(flow((1 - mix) * x0 + mix * noise, t, *ids), noise - x0)


def train_flux(pipe: FluxPipeline, latents: Tensor, captions: list[str], cpu_seconds: float) -> int:
    """Train `pipe` in place for a budget of CPU time and leave it with the averaged weights.

    The learning rate follows the CPU time that was used, so that a busy machine takes longer but learns the same.

    Args:
        pipe: From `new_pipeline`.
        latents: `[N, 16, 32]` from `encode_pictures`.
        captions: One a row of `latents`.
        cpu_seconds: Budget; 0.3 to 0.4 a step.

    Returns:
        The number of steps taken.
    """
    flow = Flow(pipe)
    solvers = optimizers(flow)
    weights = list(flow.parameters())
    average = [w.detach().clone() for w in weights]
    clip_ids, t5_ids = tokenize(pipe, captions)
    no_clip, no_t5 = tokenize(pipe, [""])
    started, step, mean = time.process_time(), 0, 0.0
    while (done := (time.process_time() - started) / cpu_seconds) < 1:
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - FLAT) / (1 - FLAT)))
        for group in (group for solver in solvers for group in solver.param_groups):
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (0.01 + 0.99 * cosine)
        rows = torch.randint(len(latents), (BATCH,))
        drop = torch.rand(BATCH, 1) < NO_CAPTION
        ids = torch.where(drop, no_clip, clip_ids[rows]), torch.where(drop, no_t5, t5_ids[rows])
        loss = flow_loss(flow, latents[rows], ids)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for solver in solvers:
            solver.step()
            solver.zero_grad()
        keep = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - keep)
        mean += (loss.item() - mean) * max(0.02, 1 / (step + 1))
        step += 1
        if step % 100 == 0:
            print(f"flux step {step} loss {mean:.4f} cpu {time.process_time() - started:.0f} s", flush=True)
    with torch.no_grad():
        for weight, averaged in zip(weights, average, strict=True):
            weight.copy_(averaged)
    flow.eval()
    return step
