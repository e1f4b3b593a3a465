"""Adapters as `--as comfyui` writes them, through ComfyUI's own key map, for the published sizes of each class.

Run with `make oracle`. ComfyUI is cloned into `.oracle-comfyui` (or stands where `$VISALIGN_COMFYUI` says), and runs on
the CPU in an environment of its own that borrows PyTorch from ours; no network has numbers, none runs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from torch import nn

from alignment.policy.networks.module_names import Slot, names_of
from tests.support.adapters import export_ones
from tests.support.environments import cloned, environment

pytestmark = pytest.mark.oracle

SOURCE, RELEASE = "https://github.com/comfyanonymous/ComfyUI", "v0.8.0"
ALONE = ("einops", "torchsde", "trampoline", "psutil", "aiohttp", "yarl")
"""What ComfyUI's own code imports that we do not have."""

FLUX = {
    "image_model": "flux", "in_channels": 16, "patch_size": 2, "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120,
    "n_layers": 5,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "dim": 5120, "out_dim": 16, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40,
    "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
    "eps": 1e-6, "model_type": "t2v", "in_dim": 16,
}  # fmt: skip
Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30,
    "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "input_size": None, "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 36864, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "qkv_bias": True,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "depth": 2, "patch_size": 2, "hidden_size": 1152, "num_heads": 16,
    "input_size": 128, "pe_interpolation": 2, "micro_condition": False,
}  # fmt: skip
FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
    "context_in_dim": 15360, "hidden_size": 6144, "mlp_ratio": 3.0, "num_heads": 48, "depth": 8,
    "depth_single_blocks": 48, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False, "guidance_embed": True,
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "txt_ids_dims": [3],
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26,
    "qk_norm": True, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20,
    "depth_single_blocks": 40, "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "guidance_embed": True,
    "meanflow": False, "meanflow_sum": False, "byt5": False, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
XL = {
    "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip

CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any] | None]] = {
    "stable diffusion": (lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768), "SD15", None),
    "stable diffusion xl": (lambda: diffusers.UNet2DConditionModel(**XL), "SDXL", None),
    "stable diffusion 3.5": (
        lambda: diffusers.SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        ),
        "SD3",
        SD3,
    ),
    "aura flow": (
        diffusers.AuraFlowTransformer2DModel,
        "AuraFlow",
        {"max_seq": 4096, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36},
    ),
    "pixart sigma": (lambda: diffusers.PixArtTransformer2DModel(num_layers=2), "PixArtSigma", PIXART),
    "flux": (lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True), "Flux", FLUX),
    "chroma": (diffusers.ChromaTransformer2DModel, "Chroma", CHROMA),
    "qwen image": (
        diffusers.QwenImageTransformer2DModel,
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
    ),
    "z image": (diffusers.ZImageTransformer2DModel, "ZImage", Z_IMAGE),
    "flux 2": (diffusers.Flux2Transformer2DModel, "Flux2", FLUX2),
    "lumina 2": (diffusers.Lumina2Transformer2DModel, "Lumina2", LUMINA),
    "hunyuan video": (diffusers.HunyuanVideoTransformer3DModel, "HunyuanVideo", HUNYUAN),
    "ltx video": (diffusers.LTXVideoTransformer3DModel, "LTXV", {"image_model": "ltxv"}),
    "wan": (diffusers.WanTransformer3DModel, "WAN21_T2V", WAN),
    "wan i2v": (
        lambda: diffusers.WanTransformer3DModel(image_dim=1280, added_kv_proj_dim=5120, in_channels=36),
        "WAN21_I2V",
        WAN | {"model_type": "i2v", "in_dim": 36},
    ),
    "wan vace": (
        diffusers.WanVACETransformer3DModel,
        "WAN21_Vace",
        WAN | {"model_type": "vace", "vace_layers": 8, "vace_in_dim": 96},
    ),
}
"""What diffusers calls it, what ComfyUI does, and ComfyUI's settings; None where it reads them from the shapes."""


@pytest.fixture(scope="module")
def comfyui() -> tuple[Path, Path]:
    """Return an interpreter and ComfyUI's folder, made where there is none."""
    home = Path(__file__).parents[2] / ".oracle-comfyui"
    folder = cloned(SOURCE, home / "source", "VISALIGN_COMFYUI", release=RELEASE)
    return environment(home / "python", ALONE), folder


@pytest.mark.parametrize("case", CASES)
def test_comfyui_finds_every_module_and_nothing_else(case: str, comfyui: tuple[Path, Path], tmp_path: Path) -> None:
    make, theirs, config = CASES[case]
    python, folder = comfyui
    shapes, kind = export_ones(make, tmp_path / "style.safetensors", "comfyui")
    with torch.device("meta"):
        network = make()
    job = {
        "model": theirs,
        "config": config or {"diffusers": {name: list(z.shape) for name, z in network.state_dict().items()}},
        "device": "cpu" if case == "pixart sigma" else "meta",  # which asks for a number while it is built
        "file": str(tmp_path / "style.safetensors"),
    }
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    words = [python, Path(__file__).with_name("comfyui.py"), folder, tmp_path / "jobs.json"]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])[0]
    assert told["unread"] == []
    names, rows = names_of(kind), dict[str, int]()
    slots = {name: cast(Slot, names.slot("comfyui", name)) for name in shapes}
    for name, slot in slots.items():
        rows[slot.name] = rows.get(slot.name, 0) + shapes[name][0]  # of several of diffusers' matrices that are one
    places = {slot.name: told["found"][slot.name] for slot in slots.values()}
    assert {name: tuple(place[2:]) for name, place in places.items()} == {
        slot.name: (rows[slot.name], *shapes[name][1:]) for name, slot in slots.items()
    }
    assert len({tuple(place[:2]) for place in places.values()}) == len(places)  # each has rows of its own
