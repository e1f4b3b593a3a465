"""What ComfyUI makes of adapters, by its own key map; run with ComfyUI's code on the path, and nothing of ours.

Usage: python comfyui.py COMFYUI JOBS.json: a list of {"model", "config", "device", "file"}; prints for each {"unread":
names that ComfyUI does not know, "found": {name of a module in the file: [weight, first row, rows, columns]}}.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
jobs = sys.argv[2]
del sys.argv[1:]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def model(name, config, device):
    """Return a model; on the meta device, one without numbers."""
    if "diffusers" in config:  # the shapes of a UNet, whose settings ComfyUI reads from them
        weights = {key: torch.empty(shape, device="meta") for key, shape in config["diffusers"].items()}
        config = comfy.model_detection.unet_config_from_diffusers_unet(weights, torch.float32)
    described = next(kind for kind in comfy.supported_models.models if kind.__name__ == name)(dict(config))
    described.custom_operations = None
    with torch.device(device):
        return described.get_model({}, device=device)


def look(job):
    """Return what ComfyUI makes of one file."""
    made = model(job["model"], job["config"], job["device"])
    keys = comfy.lora.model_lora_keys_unet(made, {})
    lora = comfy.lora_convert.convert_lora(load_file(job["file"]))
    found, unread = {}, set(lora)
    shapes = {name: tuple(weight.shape) for name, weight in made.state_dict().items()}
    for name, target in keys.items():
        patches = comfy.lora.load_lora(dict(lora), {name: target}, log_missing=False)
        if not patches:
            continue
        weight, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
        first, rows = (0, shapes[weight][0]) if offset is None else offset[1:]
        adapter = next(iter(patches.values()))
        unread -= adapter.loaded_keys
        found[name] = [weight, first, rows, *shapes[weight][1:]]
    return {"unread": sorted(unread), "found": found}


sys.stdout.write(json.dumps([look(job) for job in json.loads(Path(jobs).read_text())]))
