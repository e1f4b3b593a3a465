"""Train the tiny video pipeline's autoencoder on drawn clips."""

from __future__ import annotations

import time

import torch
from diffusers import AutoencoderKLWan
from torch.nn.functional import l1_loss, mse_loss

from examples.tiny_video.parts import new_vae, to_unit

BATCH = 16
PEAK_RATE = 3e-3
SHORT = 0.7  # share of the steps on clips of 5 frames, at half the price: two of the decoder's rounds in place of three


def train_vae(clips: torch.Tensor, steps: int) -> AutoencoderKLWan:
    """Return an autoencoder trained for `steps` on `clips` `[N, 9, 32, 32, 3]` uint8; 0.4 to 0.7 CPU-seconds a step.

    L1 + 2 MSE + 1e-3 KL. The mean and spread of each latent channel are written to its config, so that the flow sees
    unit variance.
    """
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        first, last = (int(torch.randint(5, ())), 5) if step < SHORT * steps else (0, 9)
        x = to_unit(clips[torch.randint(len(clips), (BATCH,)), first : first + last])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1_loss(y, x) + 2 * mse_loss(y, x) + 1e-3 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"vae step {step} loss {loss.item():.4f} cpu {time.process_time():.0f} s", flush=True)
    vae.requires_grad_(False).eval()
    with torch.no_grad():
        z = vae.encode(to_unit(clips[:500])).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=z.mean(1).tolist(), latents_std=z.std(1).tolist())
    return vae
