"""Load weights as a user does, in a Python that has diffusers and nothing of ours; tests run it in its own process.

Usage: python -I plain_diffusers.py JOBS.json, a list of {"how", "base", "folder", "component", "call", "output"}; each
picture is written to its output as safetensors.
"""

import json
import sys
from pathlib import Path

OURS = {"alignment", "evals", "reward_models", "samplers", "tests", "visalign"}


class Absent:
    """Make our packages impossible to import, wherever they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is not there")


def load(job):
    """Return the pipeline of one job."""
    import diffusers

    folder, component = job["folder"], job["component"]
    if job["how"] == "pipeline":
        return diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(job["base"])
    if job["how"] == "lora":
        pipe.load_lora_weights(folder)
    elif job["how"] == "adapter":
        file = "pytorch_lora_weights.safetensors"
        pipe.components[component].load_lora_adapter(folder, prefix=component, weight_name=file)
    else:
        trained = type(pipe.components[component]).from_pretrained(folder, subfolder=component)
        pipe = diffusers.DiffusionPipeline.from_pretrained(job["base"], **{component: trained})
    return pipe


def main():
    """Make one picture a job."""
    sys.meta_path.insert(0, Absent())
    import torch
    from safetensors.torch import save_file

    for job in json.loads(Path(sys.argv[1]).read_text()):
        pipe = load(job)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made = pipe("a red circle", generator=generator, output_type="np", **job["call"]).images[0]
        save_file({"picture": torch.from_numpy(made).contiguous()}, job["output"])
    leaked = OURS & {name.split(".")[0] for name in sys.modules}
    if leaked:
        raise SystemExit(f"these were imported: {leaked}")


if __name__ == "__main__":
    main()
