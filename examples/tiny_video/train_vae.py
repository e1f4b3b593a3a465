"""Train the tiny video pipeline's autoencoder on drawn clips: first on single frames, then on clips.

Wan's own learnt in that order too (arXiv 2503.20314, section 4.1). Here it decides whether training ends at all within
minutes: a single frame costs a ninth of a clip, and what is learnt from it, how colours and outlines are drawn, is most
of the work. Trained on short clips alone, the decoder drifts from frame to frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from examples.tiny_video.parts import new_vae, to_unit

PICTURES, CLIPS = 32, 8  # a batch of single frames, a batch of clips
MIXED = 4  # every fourth batch of the second part is single frames again
PICTURE_RATE, CLIP_RATE = 2e-3, 1.5e-3
OBJECT = 5  # weight of the object's pixels, a tenth of all; the others weigh 1
KL = 3e-4


def train_vae(clips: Tensor, picture_steps: int, clip_steps: int) -> AutoencoderKLWan:
    """Return an autoencoder trained on `clips` `[N, 9, 32, 32, 3]` uint8; 0.2 to 0.35 CPU-seconds a step.

    The mean and spread of each latent channel are written to its config, so that the flow sees unit variance.
    """
    vae = new_vae()

    def pictures(step: int) -> Tensor:
        return clips[torch.randint(len(clips), (PICTURES,)), torch.randint(clips.shape[1], (PICTURES,))][:, None]

    def films(step: int) -> Tensor:
        return pictures(step) if step % MIXED == MIXED - 1 else clips[torch.randint(len(clips), (CLIPS,))]

    _fit(vae, pictures, picture_steps, PICTURE_RATE)
    _fit(vae, films, clip_steps, CLIP_RATE)
    vae.requires_grad_(False).eval()
    with torch.no_grad():
        z = vae.encode(to_unit(clips[:300])).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=z.mean(1).tolist(), latents_std=z.std(1).tolist())
    return vae


def _fit(vae: AutoencoderKLWan, batch: Callable[[int], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        loss = vae_loss(vae, to_unit(batch(step)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"vae step {step} loss {loss.item():.4f} cpu {time.process_time():.0f} s", flush=True)


def vae_loss(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    """Return L1 + 2 MSE, the object's pixels weighing more than the ground's, + 3e-4 KL; x is `[B, 3, F, H, W]`."""
    posterior = vae.encode(x).latent_dist
    error = vae.decode(posterior.sample()).sample - x
    ground = x[:, :, :1, :1, :1]
    weight = 1 + (OBJECT - 1) * ((x - ground).abs().amax(1, keepdim=True) > 0.15)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return (weight * (error.abs() + 2 * error.square())).mean() + KL * kl
