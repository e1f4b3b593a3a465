"""The laws of a run's surroundings: its settings, its reward, its pipeline, its adapter, its checkpoints."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from alignment.checkpoints.adapter_files import trained_adapters
from alignment.checkpoints.artifacts import Card, write_artifacts
from alignment.checkpoints.checkpoint import Checkpoints
from alignment.checkpoints.state import TrainState, read_state, write_state
from alignment.config import checks
from alignment.errors import CheckpointError
from alignment.policy.networks.adapter_places import file_name
from alignment.policy.networks.loading import experts, pipeline_class, trained_scheduler
from alignment.policy.networks.tuning import ADAPTER
from alignment.preflight.doctor.subject import PAIR, Finding, NotApplicable, Subject, at_most, more_than
from samplers import Conductor, Look, take
from samplers.dynamics.ode import ODE

REWARD_NOISE = 0.01
"""A scorer may differ from itself by this share of its spread: half precision does, and credit hardly sees it."""
ROUNDING = 1e-5
"""Float32 arithmetic on numbers of unit size, in another order."""
NO_BYTES = "free space, or choose another output.folder"
LIMITED = 100_000
"""transformers writes a huge number where a tokenizer has no limit of its own."""
MOST_STEPS = 100
"""Steps whose window is tried."""
MOST_PROMPTS = 2_000
"""Prompts whose length is looked at; slow tokenizers read a few thousand a second."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def geometry(subject: Subject) -> Finding:
    """Prompts, groups, calls, rows and updates fit together for every step of the run's own pipeline."""
    run, rounds = subject.trainer.run, subject.policy.rounds
    checks.check(run, subject.trainer.runtime.world.processes)
    says = f"{run.source.prompts} prompts a step, {rounds} denoising steps"
    if run.source.window is not None:
        for step in range(min(run.steps, MOST_STEPS)):
            run.source.window.choose(rounds, step, 0, subject.ctx.draw.generator("doctor", step))
    if len(subject.trainer.prompts.texts) < run.source.prompts:
        says += f"; a prompt comes more than once a step: the file has {len(subject.trainer.prompts.texts)}"
    return Finding("pass", says=says)


def disk_space(subject: Subject) -> Finding:
    """The folder of the run has room for the checkpoints it will keep."""
    run, policy = subject.trainer.run, subject.policy
    weights = sum(p.numel() * 4 for p in policy.trainable.values())
    # The weights users load, those of the state, two moments, the copies; and one checkpoint more while it is written.
    needed = weights * (4 + len(policy.snapshots)) * (run.output.keep + 1)
    folder = Path(run.output.folder).absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    says = f"{free / 2**30:.1f} GiB free, checkpoints need about {needed / 2**30:.2f}"
    return more_than(free / 2**30, needed / 2**30, says, NO_BYTES)


def prompt_length(subject: Subject) -> Finding:
    """Text encoders read the prompts whole; what they cut off does not steer the picture."""
    texts = tuple(dict.fromkeys(subject.trainer.prompts.texts))[:MOST_PROMPTS]
    parts = subject.policy.pipe.components.items()
    found = {name: part for name, part in parts if name.startswith("tokenizer") and part is not None}
    if not found:
        raise NotApplicable("the pipeline has no tokenizer")
    limits = {name: _token_limit(subject, tokenizer) for name, tokenizer in found.items()}
    ids = {name: [_tokens(tokenizer, text) for text in texts] for name, tokenizer in found.items()}
    cut = {name: sum(len(row) > limits[name] for row in ids[name]) for name in limits}
    seen = [tuple(tuple(ids[name][i][: limits[name] - 1]) for name in limits) for i in range(len(texts))]
    says = ", ".join(f"{cut[name]} of {len(texts)} over {limits[name]} tokens ({name})" for name in limits)
    if len(set(seen)) < len(texts):
        cause = (
            "prompts become the same tokens once cut off, and the pipeline cannot tell them apart: "
            "shorten them, or raise policy.call.max_sequence_length"
        )
        return Finding("FAIL", float(len(texts) - len(set(seen))), "0", says, cause)
    # What the widest reads whole is not lost: FLUX has CLIP read 77 tokens and T5 all 512.
    lost = float(max(cut[name] for name in limits if limits[name] == max(limits.values())))
    if lost:
        cause = "the ends of these prompts do not steer: shorten them, or raise policy.call.max_sequence_length"
        return Finding("warning", lost, "0", says, cause)
    return Finding("pass", lost, "0", says)


def _token_limit(subject: Subject, tokenizer: Any) -> int:
    """Return how many tokens the pipeline takes from this tokenizer: CLIP's limit is fixed, others' is an argument."""
    own = min(int(tokenizer.model_max_length), LIMITED)
    asked = subject.trainer.run.policy.call.get("max_sequence_length")
    return own if type(tokenizer).__name__.startswith("CLIP") or not isinstance(asked, int) else min(own, asked)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, truncation=False, verbose=False)["input_ids"]


# ---- the reward ------------------------------------------------------------------------------------------------------


def reward_repeats(subject: Subject) -> Finding:
    """The same pictures get the same scores."""
    first, second = subject.score().value, subject.score().value
    cause = "the scorer is random (dropout, sampling, a busy server?): put it in eval mode or fix its seed"
    return _close(first, second, "the same pictures scored twice", cause)


def reward_of_a_batch(subject: Subject) -> Finding:
    """The score of a batch is the scores of its rows, or of its groups where the reward compares within them."""
    whole, grouped = subject.score().value, subject.reward.scope == "group"
    size = PAIR if grouped else 1
    alone = torch.cat([subject.score(slice(i, i + size)).value for i in range(0, len(whole), size)])
    cause = "the scorer mixes rows: a whole list of prompts for one picture, padding, or statistics over the batch"
    return _close(whole, alone, f"pictures scored together and {'group by group' if grouped else 'one by one'}", cause)


def reward_knows_its_answers(subject: Subject) -> Finding:
    """Samples whose scores are known get those scores."""
    scorer = subject.ctx.world.scorer(subject.reward)
    answers = scorer.examine()
    if not answers:
        raise NotApplicable(f"{scorer.model} has no known answers")
    return Finding("pass", float(len(answers)), says="known answers given: " + "; ".join(a.says for a in answers))


def reward_speaks(subject: Subject) -> Finding:
    """Every picture has a score, and not all have the same."""
    value = subject.score().value
    missing = value.isnan().float().mean().item()
    if missing:
        cause = "the scorer gives NaN for pictures of the policy; look at them, and at its input size and language"
        return Finding("FAIL", missing, "0", f"{missing:.0%} of {len(value)} pictures unscored", cause)
    says = f"{len(value)} pictures, mean {value.mean().item():.4g}"
    spread = (value.max() - value.min()).item()
    if spread > 0:
        return Finding("pass", spread, "> 0", f"spread of {says}")
    # Eight pictures of a strict reward may tie; a whole step of them is looked at later.
    cause = "all have the same score: a reward too hard or too easy, pictures of the wrong range, or a constant"
    return Finding("warning", spread, "> 0", f"spread of {says}", cause)


def _close(a: Tensor, b: Tensor, says: str, cause: str) -> Finding:
    """Compare scores; the same row unscored in both is the same."""
    apart = (a - b).abs().nan_to_num(nan=math.inf)
    apart[a.isnan() & b.isnan()] = 0
    known = a[~a.isnan()]
    spread = known.std(correction=0).item() if len(known) else 0.0
    return at_most(apart.max().item(), max(REWARD_NOISE * spread, ROUNDING), says, cause)


# ---- the pipeline ----------------------------------------------------------------------------------------------------


def zero_noise_parity(subject: Subject) -> Finding:
    """Without noise the stand-in scheduler gives what the pipeline gives with its own."""
    policy, seeds = subject.policy, torch.arange(2)
    prompts = policy.form.companions(subject.trainer.prompts.texts[:2])
    scheduler = policy.pipe.scheduler
    if trained_scheduler(scheduler) is not scheduler:
        raise NotApplicable(f"{type(scheduler).__name__} has no density: its first-order sibling is trained on")
    own = policy.generate(prompts, seeds[: len(prompts)], {}).pixels
    conducted = policy.call(Conductor(), prompts, seeds[: len(prompts)], pixels=True)
    assert conducted is not None
    apart = (own - conducted.float().cpu()).abs().max().item()
    limit = 0.0 if policy.device.type == "cpu" else ROUNDING
    says = "largest difference of a pixel, the pipeline's own scheduler against the stand-in"
    cause = "the pipeline reaches its scheduler by another way than set_timesteps, timesteps and step, or is random"
    return at_most(apart, limit, says, cause)


def step_formula(subject: Subject) -> Finding:
    """The step that is trained on, its noise left out, is the scheduler's own."""
    policy, seen = subject.policy, []
    looks = [Look(lambda x, v, grid: seen.append((x, v, grid))) for _ in range(policy.rounds)]
    conductor = Conductor(looks)
    policy.call(conductor, subject.trainer.prompts.texts[:1], torch.zeros(1, dtype=torch.int64), pixels=False)
    assert conductor.final is not None
    after = [*(x for x, _, _ in seen[1:]), conductor.final]
    apart = 0.0
    for k, ((x, v, grid), native) in enumerate(zip(seen, after, strict=True)):
        mean = take(ODE(), grid, k, k + 1).to(x.device).mean(x, v)
        apart = max(apart, ((mean - native.float()).abs().max() / native.abs().max()).item())
    limit = max(ROUNDING, 2 * torch.finfo(conductor.final.dtype).eps)
    cause = "the scheduler's states are not on the path read from its config (shift, order, clip_sample?)"
    return at_most(apart, limit, f"a x + b v against the scheduler's step, {len(seen)} steps", cause)


def pipeline_repeats(subject: Subject) -> Finding:
    """The denoiser answers the same question twice alike: dropout or a forgotten train mode makes every ratio wrong."""
    modules = subject.policy.denoiser.named_modules()
    dropping = [name for name, m in modules if m.training and isinstance(m, DROPOUTS) and m.p > 0]
    if dropping:  # a call fixes the global random stream, so that only other rows would show it
        cause = f"the denoiser is in train mode and {dropping[0]} drops out: call eval() on it"
        return at_most(len(dropping), 0, "layers of the denoiser that drop out at random", cause)
    apart = (subject.latents() - subject.latents()).abs().max().item()
    limit = 0.0 if subject.policy.device.type == "cpu" else ROUNDING
    cause = "the denoiser or the pipeline draws random numbers of its own"
    return at_most(apart, limit, "the same prompt and seed twice", cause)


# ---- the adapter -----------------------------------------------------------------------------------------------------


def adapter_binds(subject: Subject) -> Finding:
    """There is something to train, and it is not frozen."""
    policy = subject.policy
    weights = list(policy.trainable.values())
    if policy.spec.lora is None:
        bound, says = float(len(weights)), f"tensors trained, {sum(p.numel() for p in weights):,} numbers"
    else:
        layers = [m for m in policy.denoiser.modules() if isinstance(m, BaseTunerLayer)]
        bound, says = float(len(layers)), f"modules adapted, {sum(p.numel() for p in weights):,} numbers trained"
    frozen = sum(not p.requires_grad for p in weights)
    if frozen or not weights:
        cause = f"{frozen} of {len(weights)} trained tensors are frozen (requires_grad is false): they cannot learn"
        return Finding("FAIL", bound, "> 0", says, cause)
    return more_than(bound, 0, says, "the adapter's targets match no module: set policy.lora.targets")


def training_changes_the_output(subject: Subject) -> Finding:
    """Moving the trained weights moves the output."""
    before = subject.latents()
    with subject.moved():
        moved = (subject.latents() - before).abs().max().item()
    cause = (
        "the weights trained are not those the pipeline uses: a copy, a disabled adapter, or targets outside the path"
    )
    return more_than(moved, ROUNDING, "latents after moving the trained weights a little", cause)


def reference_is_adapter_off(subject: Subject) -> Finding:
    """The reference is the policy as it was before training, whatever became of the trained weights."""
    policy = subject.policy
    if not policy.weights.reference_is_off and "reference" not in policy.snapshots:
        raise NotApplicable("no objective of this run asks for the reference")
    before = subject.latents()
    with subject.moved(), policy.using("reference"):
        apart = (subject.latents() - before).abs().max().item()
    cause = "switching the adapter off leaves some of it in place, so a KL to the reference holds to something else"
    return at_most(apart, ROUNDING, "the start against the reference of moved weights", cause)


# ---- what is saved ---------------------------------------------------------------------------------------------------


def checkpoint_reopens(subject: Subject) -> Finding:
    """A checkpoint can be written, verified, resumed from, and opened in plain diffusers."""
    policy = subject.policy
    with tempfile.TemporaryDirectory() as temporary, subject.moved():
        try:
            saved = saved_checkpoint(subject, Path(temporary))
        except CheckpointError as error:
            return Finding("FAIL", cause=str(error))
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        state = read_state(saved).trainable
        lost = sum(not torch.equal(state[name], p.detach().cpu()) for name, p in policy.trainable.items())
        lost += _lost_in_diffusers(subject, saved)
    says = f"tensors that came back otherwise, of {len(policy.trainable)}; {size / 2**20:.1f} MiB"
    return at_most(float(lost), 0, says, "weights change on their way through the disk: name, dtype or scale")


def saved_checkpoint(subject: Subject, folder: Path) -> Path:
    """Save the policy as it is into a run folder, as training would, and return the verified checkpoint."""
    policy = subject.policy
    config = yaml.safe_load(subject.resolved)
    checkpoints = Checkpoints(folder, 1, config)

    def write(into: Path) -> None:
        live = {name: p.detach() for name, p in policy.trainable.items()}
        moments = subject.trainer.runtime.moments()
        write_state(into, TrainState(1, live, moments, policy.snapshots, 0.0, config))
        write_artifacts(into, policy.pipe, policy.weights, Card(config, 1, {}))

    return checkpoints.find(checkpoints.save(1, write))


def load_adapters(pipe: Any, component: str, folder: Path) -> None:
    """Load the adapters of a checkpoint into a plain pipeline, as its model card says.

    Raises:
        NotApplicable: If diffusers has no adapters for the trained class.
    """
    networks = experts(pipe)
    if not isinstance(networks[component], PeftAdapterMixin):
        kind = type(networks[component]).__name__
        raise NotApplicable(f"diffusers has no adapters for {kind}: `visalign export --as merged` folds them in")
    if isinstance(pipe, LoraBaseMixin):
        pipe.load_lora_weights(str(folder), adapter_name=ADAPTER)  # type: ignore[call-arg]  # every subclass takes it
        del networks[component]
    for name, network in networks.items():
        file = file_name(name, component)
        network.load_lora_adapter(str(folder), prefix=component, weight_name=file, adapter_name=ADAPTER)


def _lost_in_diffusers(subject: Subject, folder: Path) -> int:
    """Return how many trained tensors plain diffusers reads otherwise than they are, scales of adapters included."""
    policy, lost = subject.policy, 0
    if policy.spec.lora is None:
        for name, network in policy.experts.items():
            read = dict(type(network).from_pretrained(folder, subfolder=name).named_parameters())
            trained = [(key, p.detach().cpu()) for key, p in network.named_parameters() if p.requires_grad]
            lost += sum(not torch.equal(read[key], p.to(read[key])) for key, p in trained)
        return lost
    kind = pipeline_class(policy.spec.pipeline_class)
    plain = kind.from_pretrained(policy.spec.pipeline, revision=policy.spec.revision)
    load_adapters(plain, policy.component, folder)
    adapters = trained_adapters(policy.weights)
    for name, network in policy.experts.items():
        there = plain.components[name]
        mine, theirs = adapters[name].weights, get_peft_model_state_dict(there, adapter_name=ADAPTER)
        lost += len(mine.keys() ^ theirs.keys())
        lost += sum(not torch.equal(mine[key].cpu(), theirs[key].to(mine[key].dtype)) for key in {*mine} & {*theirs})
        lost += sum(a != b for a, b in zip(_scales(network), _scales(there), strict=True))
    return lost


def _scales(denoiser: nn.Module) -> list[list[float]]:
    adapted: list[Any] = [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer)]
    return [list(m.scaling.values()) for m in adapted]
