"""The words that people bring from papers and other trainers, and what the same thing is called here."""

from __future__ import annotations

SAME: dict[str, tuple[str, ...]] = {
    # algorithms
    "branchgrpo": ("on_policy_tree",),
    "dancegrpo": ("clipped_surrogate", "dance_sde"),
    "ddpo": ("clipped_surrogate",),
    "diffusiondpo": ("dpo",),
    "diffusionkto": ("kto",),
    "diffusionnft": ("nft",),
    "flowgrpo": ("clipped_surrogate", "flow_sde"),
    "flowcps": ("coefficient_preserving",),
    "cps": ("coefficient_preserving",),
    "grpo": ("clipped_surrogate",),
    "grpoguard": ("guarded_surrogate",),
    "mixgrpo": ("clipped_surrogate", "sliding"),
    "ppo": ("clipped_surrogate",),
    "awm": ("weighted_matching",),
    # rewards
    "clipscore": ("clip",),
    "hps": ("hpsv2",),
    "hpsv21": ("hpsv2",),
    "pick": ("pickscore",),
    # settings
    "batchsize": ("batch.microbatch",),
    "beta1": ("optimizer.betas",),
    "cfg": ("policy.call.guidance_scale",),
    "cliprange": ("objective.clip",),
    "dataset": ("data.prompts",),
    "epochs": ("steps",),
    "eps": ("optimizer.epsilon",),
    "gradientaccumulationsteps": ("batch.microbatch",),
    "gradientclipping": ("optimizer.max_grad_norm",),
    "guidance": ("policy.call.guidance_scale",),
    "guidancescale": ("policy.call.guidance_scale",),
    "height": ("policy.call.height",),
    "klcoef": ("objective.kl",),
    "loraalpha": ("policy.lora.alpha",),
    "lorarank": ("policy.lora.rank",),
    "lr": ("optimizer.learning_rate",),
    "lrwarmupsteps": ("optimizer.warmup",),
    "maxsteps": ("steps",),
    "maxtrainsteps": ("steps",),
    "mixedprecision": ("policy.autocast",),
    "model": ("policy.pipeline",),
    "numgenerations": ("source.group_size",),
    "numimagesperprompt": ("source.group_size",),
    "numinferencesteps": ("policy.call.num_inference_steps",),
    "numtrainsteps": ("steps",),
    "optim": ("optimizer.type",),
    "outputdir": ("output.folder",),
    "precision": ("policy.autocast",),
    "pretrainedmodel": ("policy.pipeline",),
    "r": ("policy.lora.rank",),
    "reportto": ("output.report_to",),
    "resolution": ("policy.call.height",),
    "samplingsteps": ("policy.call.num_inference_steps",),
    "targetmodules": ("policy.lora.targets",),
    "use8bitadam": ("optimizer.type",),
    "wandb": ("output.report_to",),
    "width": ("policy.call.width",),
}
"""Types by name and keys by path, of what is written without capitals, '_', '-' and '.'."""


def same_as(word: str) -> tuple[str, ...]:
    """Return what `word` is called here: names of types, or paths of keys; nothing where nobody uses it otherwise."""
    return SAME.get("".join(letter for letter in word.lower() if letter not in "_-. "), ())
