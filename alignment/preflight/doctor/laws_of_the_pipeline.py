"""Can a pipeline be trained at all? The checks that the test-suite makes on every family it knows, for any pipeline.

They need no config and know no model: a small GRPO run with adapters of rank 4 is put around the pipeline, on prompts
and pictures of our own, and each check looks at one thing that training relies on.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.checkpoints.export import Order, export
from alignment.config.run import Run
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.preference.dpo import DPO
from alignment.policy.networks.loading import pipeline_class, trained_scheduler
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from alignment.preflight.doctor import laws_of_learning, laws_of_the_run
from alignment.preflight.doctor.subject import Finding, NotApplicable, Subject, at_most, more_than, preserved
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from samplers import Act, Conductor

SAME_PICTURE = 1e-4
"""Float32 rounding of a whole call, in pixels: other rows, merged and reloaded weights sum in another order."""
LEVELS = 255
"""Some pipelines round their pixels to these themselves, for a checker that reads eight bits: rounding moves by one."""
PICTURES = ("image", "mask_image", "control_image")
"""Arguments for which a picture is made up, where a pipeline has them."""
GUIDANCE = ("true_cfg_scale", "guidance_scale")
"""Arguments that set the scale of guidance; where there are both, the second is a condition of the network."""
GUIDED, UNGUIDED = 3.0, 1.0
"""Scales with guidance and without."""
STEPS, FEW = "num_inference_steps", 4
"""Set where a pipeline takes it and the call does not say."""
SIDE = 512
"""Size of made-up pictures where the call does not say."""

PLAIN = """\
name: pipeline
steps: 1
policy: {{pipeline: {pipeline}, call: {{}}, lora: {{rank: 4}}}}
data: {{prompts: {prompts}}}
source:
  type: on_policy_steps
  prompts: 2
  group_size: 2
  dynamics: {{type: coefficient_preserving, a: 0.5}}
  window: {{type: all}}
  reward: {{type: colour}}
objective: {{type: clipped_surrogate, clip: 1e-2}}
optimizer: {{learning_rate: 1e-3}}
output: {{folder: {folder}}}
device: cpu
"""
"""A run of any pipeline at all."""
PROMPTS = ("a red circle", "a blue square on a table")


# ---- sampling --------------------------------------------------------------------------------------------------------


def own_sampler(subject: Subject) -> Finding:
    """Without noise the stand-in gives what the pipeline gives by itself, bit for bit."""
    policy, texts, seeds = subject.policy, subject.trainer.prompts.texts[:1], torch.zeros(1, dtype=torch.int64)
    scheduler = policy.pipe.scheduler
    sibling = trained_scheduler(scheduler)
    with _placed(policy.pipe, sibling):
        own = policy.generate(texts, seeds, {}).pixels
    conducted = policy.call(Conductor(), texts, seeds, pixels=True)
    assert conducted is not None
    apart = (own - conducted.float().cpu()).abs().max().item()
    says = f"largest difference of a pixel under {type(sibling).__name__}"
    if sibling is not scheduler:
        says += f", the sibling of {type(scheduler).__name__} that has a density"
    cause = "the pipeline reaches its scheduler by another way than set_timesteps, timesteps and step, or is random"
    return at_most(apart, 0.0 if policy.device.type == "cpu" else SAME_PICTURE, says, cause)


def sde_rollout(subject: Subject) -> Finding:
    """A rollout with noise takes steps that have a density, and its actions are spread as that density says."""
    if not bool(subject.look_at_a_step().media.pixels.isfinite().all()):
        return Finding("FAIL", cause="pixels are not finite: the weights hold NaN, or a network overflows in its dtype")
    std = subject.transitions.coefficients[..., 2]
    least = std.reshape(*std.shape[:2], -1).amax(dim=2).min().item()  # parts of a state may rest
    if not least > 0:
        return more_than(least, 0, "least std of a trained step", "a trained step has no noise, and so no density")
    return laws_of_learning.actions_follow_their_density(subject)


def replay(subject: Subject) -> Finding:
    """Replayed, every transition has the likelihood it had when it was sampled."""
    subject.look_at_a_step()
    return laws_of_learning.first_ratio(subject)


def guidance(subject: Subject) -> Finding:
    """The same holds with guidance and without, whichever the call has."""
    policy = subject.policy
    scale = _guidance_scale(policy)
    spec = replace(policy.spec, call={**policy.spec.call, **scale})
    other = load_policy(spec, device=policy.device, seed=0)
    if not scale:
        other.pipe.guider = _turned(other.pipe.guider)
    prepare(other, subject.trainer.prompts.texts)
    turned = Subject(replace(subject.trainer, policy=other), subject.resolved)
    said = ", ".join(f"{name}={value}" for name, value in scale.items()) or "its guider turned"
    apart = (turned.latents() - subject.latents()).abs().max().item()
    if apart == 0:
        raise NotApplicable(f"nothing changes with {said}")
    finding = own_sampler(turned)
    if finding.outcome == "pass":
        finding = replay(turned)
    return replace(finding, says=f"{finding.says}, with {said}")


def rows(subject: Subject) -> Finding:
    """Samples of a group, of several prompts, are what they are alone."""
    texts = [text for text in subject.policy.form.companions(subject.trainer.prompts.texts) for _ in range(2)]
    together = _rollout(subject, texts, torch.arange(len(texts)))
    alone = torch.cat([_rollout(subject, [text], torch.tensor([i])) for i, text in enumerate(texts)])
    apart = ((together - alone).abs().max() / together.abs().max()).item()
    cause = "rows of a call answer for each other, or draw from one random stream: keep to one row a call"
    return at_most(apart, SAME_PICTURE, f"{len(texts)} samples together against one by one, of the largest", cause)


def pixels(subject: Subject) -> Finding:
    """Samples decode to pixels in [0, 1]."""
    found = subject.look_at_a_step().media.pixels
    outside = torch.maximum(-found.amin(), found.amax() - 1).clamp(min=0).item()
    shape = " x ".join(map(str, found.shape[1:]))
    return at_most(outside, 0, f"distance of a pixel from [0, 1]; a sample is {shape}", "the decoder does not clamp")


# ---- learning --------------------------------------------------------------------------------------------------------


def gradient(subject: Subject) -> Finding:
    """Every adapter matrix gets a gradient, or provably does nothing; no other weight of the pipeline gets one."""
    subject.look_at_a_step()
    policy, batch = subject.policy, subject.transitions
    draws = subject.ctx.draw.generator("doctor cotangent")

    def pull(k: int, model_output: Tensor) -> None:
        (
            model_output.float() * torch.randn(model_output.shape, generator=draws).to(model_output.device)
        ).sum().backward()

    with subject.moved():
        policy.replay(batch, pull, grad=True)
        grads = {name: p.grad for name, p in policy.trainable.items()}
        silent = [name for name, g in grads.items() if g is None or not bool(g.any())]
        stray = sorted(_others_with_gradient(policy))
        before = subject.latents()
        for name in silent:
            policy.trainable[name].data.add_(1.0)
        idle = torch.equal(before, subject.latents())
    says = f"tensors without a gradient, of {len(grads)}"
    if stray:
        return Finding("FAIL", float(len(stray)), "0", says, f"{stray[0]} is frozen and got a gradient")
    if len(silent) == len(grads) or not idle:
        cause = f"{silent[0]} steers the output and learns nothing: a part of the network runs outside the graph"
        return Finding("FAIL", float(len(silent)), "0", says, cause)
    if silent:
        says += "; moving them changes nothing, so they have no say in the output"
    return Finding("pass", float(len(silent)), "0, or idle", says)


def grpo_step(subject: Subject) -> Finding:
    """A step of GRPO changes the weights."""
    return _step(subject, subject.trainer.run)


def nft_step(subject: Subject) -> Finding:
    """A step of DiffusionNFT changes the weights."""
    samples = OnPolicy(subject.trainer.run.source.prompts, subject.reward, group_size=2, weights="behaviour")
    return _step(subject, replace(subject.trainer.run, source=samples, objective=NFT()))


def dpo_step(subject: Subject) -> Finding:
    """A step of Diffusion-DPO changes the weights."""
    pairs = OnPolicyPairs(subject.trainer.run.source.prompts, subject.reward, group_size=2)
    return _step(subject, replace(subject.trainer.run, source=pairs, objective=DPO()))


# ---- what users load -------------------------------------------------------------------------------------------------


def lora_in_diffusers(subject: Subject) -> Finding:
    """Saved adapters, loaded by plain diffusers, give the same picture."""
    with tempfile.TemporaryDirectory() as temporary, subject.moved():
        saved = laws_of_the_run.saved_checkpoint(subject, Path(temporary))
        plain = pipeline_class(subject.policy.spec.pipeline_class).from_pretrained(subject.policy.spec.pipeline)
        laws_of_the_run.load_adapters(plain, subject.policy.component, saved)
        return _same_picture(subject, plain)


def whole_in_diffusers(subject: Subject) -> Finding:
    """A whole pipeline, exported with the adapters folded in and opened by plain diffusers, gives the same picture."""
    with tempfile.TemporaryDirectory() as temporary, subject.moved():
        saved = laws_of_the_run.saved_checkpoint(subject, Path(temporary))
        export(saved, Path(temporary) / "whole", Order("merged", subject.policy.spec.pipeline))
        plain = pipeline_class(subject.policy.spec.pipeline_class)
        return _same_picture(subject, plain.from_pretrained(Path(temporary) / "whole"))


CHECKS: tuple[Callable[[Subject], Finding], ...] = (
    own_sampler,
    sde_rollout,
    replay,
    gradient,
    guidance,
    rows,
    pixels,
    grpo_step,
    nft_step,
    dpo_step,
    lora_in_diffusers,
    whole_in_diffusers,
)
"""What is looked at, in this order."""


# ---- how it is done --------------------------------------------------------------------------------------------------


@contextmanager
def _placed(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Put a scheduler in the pipeline for a while."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own


@contextmanager
def _pipeline_of(policy: Policy, pipe: Any) -> Iterator[None]:
    """Let the policy call another pipeline for a while, with its own arguments."""
    own, policy.pipe = policy.pipe, pipe
    try:
        yield
    finally:
        policy.pipe = own


def _guidance_scale(policy: Policy) -> dict[str, object]:
    """Return the argument that turns guidance off where it is on, and on where it is off; nothing for a guider.

    Raises:
        NotApplicable: If the pipeline has no guidance.
    """
    parameters = inspect.signature(type(policy.pipe).__call__).parameters
    name = next((name for name in GUIDANCE if name in parameters), None)
    if name is None:
        if "guider" in policy.pipe.components:
            return {}
        raise NotApplicable("the pipeline has no guidance")
    now = policy.spec.call.get(name, parameters[name].default)
    guided = isinstance(now, int | float) and now > UNGUIDED
    scale: dict[str, object] = {name: UNGUIDED if guided else GUIDED}
    if not guided and "negative_prompt" in parameters and not policy.spec.call.get("negative_prompt"):
        scale["negative_prompt"] = "blurry"
    return scale


def _turned(guider: Any) -> Any:
    return guider.new(guidance_scale=UNGUIDED if guider.guidance_scale > UNGUIDED else GUIDED)


def _rollout(subject: Subject, texts: Sequence[str], samples: Tensor) -> Tensor:
    """Return the final latents of samples whose noise is keyed by their numbers."""

    def act(k: int) -> Act:
        draw = subject.ctx.draw
        return Act(subject.dynamics, lambda x: draw.normal("doctor rows", samples, k, x.shape[1:]).to(x.device))

    conductor = Conductor([act(k) for k in range(subject.policy.rounds - 1)])
    subject.policy.call(conductor, tuple(texts), samples, pixels=False)
    assert conductor.final is not None
    return conductor.final.float()


def _others_with_gradient(policy: Policy) -> Iterator[str]:
    """Yield the weights of the pipeline that are not trained and yet can be, or have a gradient."""
    trained = {id(p) for p in policy.trainable.values()}
    for component, module in policy.pipe.components.items():
        if isinstance(module, nn.Module):
            for name, p in module.named_parameters():
                if id(p) not in trained and (p.requires_grad or p.grad is not None):
                    yield f"{component}.{name}"


def _step(subject: Subject, run: Run) -> Finding:
    """Take one training step of `run` from moved weights and tell how many of them it changed."""
    policy, trainer = subject.policy, replace(subject.trainer, run=run)
    told: list[Mapping[str, float]] = []
    with subject.moved(), preserved(policy):
        for name in {*run.objective.snapshots, *run.source.snapshots}:
            policy.weights.keep(name)
        trainer.runtime.attach(policy, run.optimizer)
        before = {name: p.detach().clone() for name, p in policy.trainable.items()}
        trainer.fit(0, lambda step, experience, metrics: told.append(metrics))
        changed = sum(not torch.equal(before[name], p) for name, p in policy.trainable.items())
        finite = all(bool(p.isfinite().all()) for p in policy.trainable.values())
    trainer.runtime.attach(policy, subject.trainer.run.optimizer)
    says = f"tensors changed, of {len(before)}; loss {told[0]['loss']:.3g}, gradient {told[0]['grad/norm']:.3g}"
    return more_than(float(changed) if finite else float("nan"), 0, says, "the step left the weights as they were")


def _same_picture(subject: Subject, plain: Any) -> Finding:
    """Compare the policy's picture with that of a pipeline opened by plain diffusers."""
    policy, texts = subject.policy, subject.trainer.prompts.texts[:1]
    seeds = torch.zeros(1, dtype=torch.int64)
    mine = policy.generate(texts, seeds, {}).pixels
    plain.set_progress_bar_config(disable=True)
    plain.to(policy.device)
    with _pipeline_of(policy, plain):
        theirs = policy.generate(texts, seeds, {}).pixels
    apart = (mine - theirs).abs().max().item()
    whole = torch.allclose(mine, (mine * LEVELS).round() / LEVELS, rtol=0, atol=SAME_PICTURE)
    cause = "the weights are not what was trained, once plain diffusers has loaded them: a name, a dtype or a scale"
    return at_most(apart, SAME_PICTURE + whole / LEVELS, "largest difference of a pixel", cause)
