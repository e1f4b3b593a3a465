"""What kohya's own code makes of adapters; run with that code on the path, and nothing of ours.

Usage: python kohya.py SOURCE JOBS.json: a list of {"model", "file"}; prints for each {"missing", "unexpected": names,
"found": {name of a module: [rows of its update, columns, alpha over rank]}}.
"""

import importlib
import json
import sys
from pathlib import Path

source, jobs = sys.argv[1:]
del sys.argv[1:]
sys.path.insert(0, source)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

if not torch.cuda.is_available():
    torch.cuda.current_device = lambda: 0  # which musubi-tuner asks for while it is imported


def of(name):
    """Return a module of theirs."""
    return importlib.import_module(name)


def musubi(name):
    """Return a module of musubi-tuner."""
    return of(f"musubi_tuner.{name}")


SD3 = {
    "patch_size": 2, "in_channels": 16, "depth": 24, "adm_in_channels": 2048, "context_embedder_in_features": 4096,
    "context_embedder_out_features": 1536, "pos_embed_max_size": 192, "num_patches": 36864, "input_size": None,
}  # fmt: skip
WAN = {"in_dim": 16, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
MODELS = {
    "sd15": ("networks.lora", lambda: of("library.original_unet").UNet2DConditionModel(64, cross_attention_dim=768)),
    "sdxl": ("networks.lora", lambda: of("library.sdxl_original_unet").SdxlUNet2DConditionModel()),
    "sd3": ("networks.lora_sd3", lambda: of("library.sd3_models").MMDiT(**SD3)),
    "flux": (
        "networks.lora_flux",
        lambda: of("library.flux_models").Flux(of("library.flux_models").configs["dev"].params),
    ),
    "chroma": (
        "networks.lora_flux",
        lambda: of("library.chroma_models").Chroma(of("library.chroma_models").chroma_params),
    ),
    "lumina": ("networks.lora_lumina", lambda: of("library.lumina_models").NextDiT_2B_GQA_patch2_Adaln_Refiner()),
    "flux2": (
        "musubi_tuner.networks.lora_flux_2",
        lambda: musubi("flux_2.flux2_models").Flux2(musubi("flux_2.flux2_models").Flux2Params(), attn_mode="torch"),
    ),
    "hunyuan": (
        "musubi_tuner.networks.lora",
        lambda: musubi("hunyuan_model.models").HYVideoDiffusionTransformer(
            4096, 768, in_channels=16, out_channels=16, guidance_embed=True, attn_mode="torch"
        ),
    ),
    "qwen": (
        "musubi_tuner.networks.lora_qwen_image",
        lambda: musubi("qwen_image.qwen_image_model").QwenImageTransformer2DModel(),
    ),
    "zimage": (
        "musubi_tuner.networks.lora_zimage",
        lambda: musubi("zimage.zimage_model").ZImageTransformer2DModel(),
    ),
    "wan": ("musubi_tuner.networks.lora_wan", lambda: musubi("wan.modules.model").WanModel(attn_mode="torch", **WAN)),
}  # fmt: skip


def look(job):
    """Return what is made of one file."""
    module, make = MODELS[job["model"]]
    with torch.device("meta"):
        model = make()
    weights = load_file(job["file"])
    if module.startswith("musubi"):
        network = of(module).create_arch_network_from_weights(1.0, weights, unet=model)
    else:
        network, weights = of(module).create_network_from_weights(
            1.0, job["file"], None, [torch.nn.Module()], model, weights_sd=weights
        )
    network.apply_to([], model, apply_text_encoder=False, apply_unet=True)
    told = network.load_state_dict(weights, strict=False)
    found = {
        lora.lora_name: [
            lora.lora_up.weight.shape[0],
            lora.lora_down.weight[0].numel(),
            float(lora.alpha) / lora.lora_down.weight.shape[0],
        ]
        for lora in network.unet_loras
    }
    return {"missing": list(told.missing_keys), "unexpected": list(told.unexpected_keys), "found": found}


sys.stdout.write("\n" + json.dumps([look(job) for job in json.loads(Path(jobs).read_text())]))
