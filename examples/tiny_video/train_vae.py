"""Train the tiny video pipeline's autoencoder on drawn clips: first on single frames, then on clips.

Wan's own learnt in that order too (arXiv 2503.20314, section 4.1). Here it decides whether training ends at all within
minutes: a single frame costs a ninth of a clip, and what is learnt from it, how colours and outlines are drawn, is most
of the work. Trained on short clips alone, the decoder drifts from frame to frame. At last the decoder goes on alone, on
latents that no longer change, a little noisy as the flow's will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from examples.tiny_video.parts import from_network, new_vae, to_network, to_unit

PICTURES, CLIPS = 32, 8  # a batch of single frames, a batch of clips
MIXED = 4  # every fourth batch of the second part is single frames again
PICTURE_RATE, CLIP_RATE = 2e-3, 1.5e-3
OBJECT = 5  # weight of the object's pixels, a tenth of all; the others weigh 1
KL = 3e-4
BLUR = 0.1  # noise on the latents that the decoder is trained alone on, in units of their spread


def train_vae(clips: Tensor, picture_steps: int, clip_steps: int) -> AutoencoderKLWan:
    """Return an autoencoder trained on `clips` `[N, 9, 32, 32, 3]` uint8; 0.2 to 0.3 CPU-seconds a step.

    The mean and spread of each latent channel are written to its config, so that the flow sees unit variance.
    """
    vae = new_vae()

    def pictures(step: int) -> Tensor:
        return clips[torch.randint(len(clips), (PICTURES,)), torch.randint(clips.shape[1], (PICTURES,))][:, None]

    def films(step: int) -> Tensor:
        return pictures(step) if step % MIXED == MIXED - 1 else clips[torch.randint(len(clips), (CLIPS,))]

    _fit(vae, lambda step: vae_loss(vae, to_unit(pictures(step))), picture_steps, PICTURE_RATE)
    _fit(vae, lambda step: vae_loss(vae, to_unit(films(step))), clip_steps, CLIP_RATE)
    vae.requires_grad_(False).eval()
    with torch.no_grad():
        z = vae.encode(to_unit(clips[:300])).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=z.mean(1).tolist(), latents_std=z.std(1).tolist())
    return vae


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Return latents `[N, 16, 3, 4, 4]` of `clips` `[N, 9, 32, 32, 3]` uint8, in the transformer's scaling."""
    return torch.cat([to_network(vae, vae.encode(to_unit(part)).latent_dist.mode()) for part in clips.split(50)])


def train_decoder(vae: AutoencoderKLWan, clips: Tensor, steps: int) -> None:
    """Train the decoder of `vae` on, in place; the encoder and its latents stay. Every other batch is first frames.

    Args:
        vae: From `train_vae`.
        clips: `[N, 9, 32, 32, 3]` uint8.
        steps: Optimiser steps; 0.17 CPU-seconds each.
    """
    latents = encode_clips(vae, clips)
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    decoder.requires_grad_(True).train()

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(clips), (CLIPS,))
        frames, moments = (1, 1) if step % 2 else (clips.shape[1], latents.shape[2])
        z = latents[rows, :, :moments]
        made = vae.decode(from_network(vae, z + BLUR * torch.randn_like(z))).sample
        return pixel_loss(made, to_unit(clips[rows, :frames]))

    _fit(decoder, loss, steps, CLIP_RATE)
    decoder.requires_grad_(False).eval()


def _fit(trained: nn.Module, loss_at: Callable[[int], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(trained.parameters(), rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"vae step {step} loss {loss.item():.4f} cpu {time.process_time():.0f} s", flush=True)


def vae_loss(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    """Return `pixel_loss` + 3e-4 KL; x is `[B, 3, F, H, W]`."""
    posterior = vae.encode(x).latent_dist
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return pixel_loss(vae.decode(posterior.sample()).sample, x) + KL * kl


def pixel_loss(made: Tensor, x: Tensor) -> Tensor:
    """Return L1 + 2 MSE, the object's pixels weighing more than the ground's; both are `[B, 3, F, H, W]`."""
    error = made - x
    ground = x[:, :, :1, :1, :1]
    weight = 1 + (OBJECT - 1) * ((x - ground).abs().amax(1, keepdim=True) > 0.15)
    return (weight * (error.abs() + 2 * error.square())).mean()
