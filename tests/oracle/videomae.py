"""What the authors' code of the content-debiased FVD makes of a clip; run with nothing of ours.

Usage: python videomae.py FOLDER JOBS.pt: {"state": weights, "width", "depth", "clips": [B, F, H, W, 3] levels};
writes the features over it.
"""

import functools
import sys

import torch

folder, jobs = sys.argv[1:]
sys.path.insert(0, folder)
from cdfvd.third_party.VideoMAEv2.utils import preprocess_videomae  # noqa: E402  # pyright: ignore[reportMissingImports]
from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer  # noqa: E402  # pyright: ignore[reportMissingImports]

told = torch.load(jobs, weights_only=True)
network = VisionTransformer(
    img_size=224, patch_size=14, embed_dim=told["width"], depth=told["depth"], num_heads=16, mlp_ratio=48 / 11,
    qkv_bias=True, num_classes=174, all_frames=16, tubelet_size=2, use_mean_pooling=True, init_scale=0.0,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
)  # fmt: skip
network.load_state_dict(told["state"])
with torch.no_grad():
    torch.save(network.eval().forward_features(preprocess_videomae(told["clips"].numpy())), jobs)
