"""Getting a policy ready: the pipeline is loaded, probed, and shown every prompt there will be."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignment.errors import PipelineError
from alignment.policy.between import ROUNDS_AT_MOST, Seen, first_round, two_rounds
from alignment.policy.call_arguments import checked_arguments
from alignment.policy.call_forms import Form, brings_pictures, find_form, first_accepted, makes_two
from alignment.policy.door import Door, PipelineDoor, fresh_routes
from alignment.policy.networks.layout import Layout
from alignment.policy.networks.loading import experts, load_pipeline
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.weights import Weights, bring
from alignment.policy.pipeline_call import are_alike, naming_key
from alignment.policy.policy import ONE_ROW, Policy
from alignment.policy.prepared import Prepared
from alignment.policy.replay_check import check_replay
from alignment.policy.sizes import check_media, check_picture_size
from samplers import Conductor, Skip


def load_policy(
    spec: PolicySpec, *, device: torch.device, seed: int, pipe: Any = None, layout: Layout | None = None
) -> Policy:
    """Return the policy that `spec` describes.

    Args:
        spec: Which pipeline, how it is called, what of it is trained.
        device: Where everything runs.
        seed: Of new adapters.
        pipe: The pipeline, where it is loaded already.
        layout: Where the trained networks lie; None: whole, on `device`.

    Raises:
        ConfigError: If the pipeline does not take the call arguments, has not what is to be trained, or brought
            adapters are not its own.
        PipelineError: If it cannot be conducted.
    """
    pipe = load_pipeline(spec, device, layout) if pipe is None else pipe
    door, networks = PipelineDoor(pipe, fresh_routes(pipe, spec, device)), experts(pipe)
    weights = Weights(networks, spec, seed, bring(spec, pipe, networks), layout)
    if spec.quantize == "float8":  # what is rounded goes to the device in fewer bits
        for network in networks.values():
            network.to(device)
    return Policy(door, weights)


def prepare(
    policy: Policy,
    prompts: Sequence[str],
    held_out: Sequence[str] = (),
    arguments: dict[str, object] | None = None,
    *,
    scout: dict[str, object] | None = None,
    visits: bool = False,
) -> Prepared:
    """Get ready to train: probe the pipeline, embed every prompt, release the text encoders if all were kept.

    Args:
        policy: What is trained; what was found out is set on it.
        prompts: What will be sampled and trained.
        held_out: What will be generated only.
        arguments: What `generate` will be called with, where that differs from the policy's own arguments.
        scout: What prompts will be sampled with beside that, where scouts are sent.
        visits: Whether states of the caller's making will be visited: then it is found out if rows may have times of
            their own.

    Raises:
        ConfigError: If call arguments do not fit the pipeline.
        DataError: If prompts do not.
        PipelineError: If the pipeline cannot be trained.
    """
    with policy.weights.as_trained():
        files = {"data.prompts": prompts, "evaluation.prompts": held_out}
        other = _meet(policy, prompts, held_out, arguments or {}, files)
        others = [(prompt, other) for prompt in held_out[:1]]
        if scout:
            others += [(prompts[0], _meet_scouts(policy, prompts, scout))]
        check_replay(policy, prompts)
        return _look(policy, prompts, others, visits=visits)


def prepare_to_generate(policy: Policy, files: Mapping[str, Sequence[str]]) -> Prepared:
    """Get ready to generate alone: as `prepare`, for a pipeline that may be one that cannot be trained.

    Args:
        policy: What generates; what was found out is set on it.
        files: What it will be asked for, by what messages call it.

    Raises:
        ConfigError: If call arguments do not fit the pipeline.
        DataError: If prompts do not.
        PipelineError: If the pipeline cannot be conducted.
    """
    prompts = list(dict.fromkeys(prompt for asked in files.values() for prompt in asked))
    _meet(policy, prompts, (), {}, files)
    return _look(policy, prompts, (), visits=False)


def _meet(
    policy: Policy,
    prompts: Sequence[str],
    held_out: Sequence[str],
    arguments: dict[str, object],
    files: Mapping[str, Sequence[str]],
) -> dict[str, object]:
    """Probe the pipeline and embed every prompt; return the arguments of `generate`, as they are passed."""
    pipe = policy.pipe
    other = checked_arguments(type(pipe), arguments, "evaluation.call")
    check_media(pipe, {"policy.call": policy.arguments, "evaluation.call": other}, files)
    pictured = brings_pictures(prompts, policy.arguments)
    policy.embeddings.settle(mixed=not pictured)
    probe(policy, prompts[0])
    policy.form = _find_form(policy, prompts, held_out, pictured=pictured)
    policy.embeddings.settle(mixed=policy.form.mixes, bare=policy.form is Form.BARE)
    with naming_key("policy.call", pipe):
        _embed(policy, policy.door, prompts, {}, known=True)
    with naming_key("evaluation.call", pipe):
        _embed(policy, _another_door(policy), held_out, other, known=False)
    return other


def _meet_scouts(policy: Policy, prompts: Sequence[str], arguments: dict[str, object]) -> dict[str, object]:
    """Embed every prompt as scouts have it; return the arguments of scouts, as they are passed."""
    key = "source.scout.how.call"
    other = checked_arguments(type(policy.pipe), arguments, key)
    with naming_key(key, policy.pipe):
        _embed(policy, _another_door(policy), prompts, other, known=False)
    return other


def _look(
    policy: Policy, prompts: Sequence[str], others: Sequence[tuple[str, dict[str, object]]], *, visits: bool
) -> Prepared:
    """Make pixels for the first time, and release the text encoders if all embeddings were kept."""
    pipe = policy.pipe
    with naming_key("policy.call, policy.decode", pipe):  # the first time that pixels are made
        made = policy.shown.settle(pipe, lambda: _blank(policy, prompts[0]))
    check_picture_size(pipe, policy.arguments, made)
    _release(policy, [(prompts[0], {}), *others])
    policy.prepared = Prepared(
        type(pipe).__name__,
        type(policy.door.scheduler).__bases__[1].__name__,
        policy.rounds,
        policy.form.value,
        policy.between.value,
        _takes_row_times(policy) if visits else None,
        policy.embeddings.cacheable,
        policy.embeddings.released,
    )
    return policy.prepared


# ---- the steps, in order ---------------------------------------------------------------------------------------------


def probe(policy: Policy, prompt: str) -> None:
    """Run the pipeline once on one prompt, to learn its loop: how many rounds, which networks, which shapes.

    Raises:
        PipelineError: If the pipeline does not take the call arguments, or does not follow the scheduler contract.
    """

    def listen(form: Form) -> Conductor:
        policy.form, conductor = form, two_rounds()
        policy.call(conductor, (prompt,), ONE_ROW, pixels=False)
        return conductor

    with naming_key("policy.call", policy.pipe):
        conductor = first_accepted(listen, policy.shown.look_always)
    if conductor.round == 0:
        raise _never_stepped(policy)
    assert conductor.final is not None
    if not conductor.final.numel():
        raise PipelineError(
            f"policy.call: {type(policy.pipe).__name__} makes states of shape {list(conductor.final.shape[1:])} here, "
            "which hold nothing; ask for a larger height and width"
        )
    policy.layout = conductor.observed_layout()
    policy.rounds, policy.probed = conductor.round, (prompt, conductor.final)


def _find_form(policy: Policy, prompts: Sequence[str], held_out: Sequence[str], *, pictured: bool) -> Form:
    """Return how rows are passed to the pipeline, which was probed with one."""
    if policy.form.single:
        return policy.form

    def observe(form: Form, prompts: Sequence[str], seeds: Tensor) -> Tensor:
        """Return what the first round makes of these rows in that form: states and model outputs, `[n, d]`."""
        policy.form = form
        try:
            policy.call(first_round(), tuple(prompts), seeds, pixels=False)
        except Seen as seen:
            x, v, _ = seen.args
            return torch.cat([x.flatten(1), v.flatten(1)], 1).float()
        raise _never_stepped(policy)

    with naming_key("policy.call", policy.pipe):
        policy.form = find_form(policy.pipe, [*prompts, *held_out], observe, pictured=pictured)
    if policy.form.single or makes_two(policy.call, prompts[0], policy.rounds):
        return policy.form
    return Form.ALONE


def _embed(policy: Policy, door: Door, prompts: Sequence[str], arguments: dict[str, object], *, known: bool) -> None:
    """Run the pipeline on each prompt without its denoiser, so that the prompt is embedded.

    Args:
        policy: Whose prompts.
        door: Leads to its pipeline.
        prompts: What is embedded.
        arguments: What differs from the policy's own arguments.
        known: Whether the networks were run through this door before, so that the first call may go without them.
    """
    with torch.no_grad():
        for text in dict.fromkeys(prompts):
            given = policy.given((text,), ONE_ROW, policy.shown.unseen, arguments)
            door.conduct(Conductor([Skip()] * ROUNDS_AT_MOST) if known else two_rounds(), given, ONE_ROW)
            known = True


def _blank(policy: Policy, prompt: str) -> Tensor:
    """Return the pixels of a state that no network has changed."""
    made = policy.call(Conductor([Skip()] * policy.rounds), (prompt,), ONE_ROW, pixels=True)
    assert made is not None
    return made


def _release(policy: Policy, calls: Sequence[tuple[str, dict[str, object]]]) -> None:
    """Release the text encoders if every embedding was kept, unless the networks are then given something else."""
    embeddings = policy.embeddings
    if not embeddings.cacheable:
        return
    before_release = [_network_arguments(policy, *call) for call in calls]
    embeddings.release()
    if not embeddings.released:
        return
    try:
        same = all(
            are_alike(_network_arguments(policy, *call), before)
            for call, before in zip(calls, before_release, strict=True)
        )
    except PipelineError:  # encoders serve something else, too
        same = False
    if not same:
        embeddings.restore()


def _network_arguments(policy: Policy, prompt: str, arguments: dict[str, object]) -> list[Any]:
    """Return the arguments of the networks in the first round of a call, in order."""
    door, received = _another_door(policy), list[Any]()
    door.routes.listen = lambda name, given: received.append((name, given))
    with torch.no_grad(), contextlib.suppress(Seen):
        door.conduct(first_round(), policy.given((prompt,), ONE_ROW, policy.shown.unseen, arguments), ONE_ROW)
    return received


def _takes_row_times(policy: Policy) -> bool | None:
    try:
        return policy.row_times
    except PipelineError:  # no state can be handed over, which is said where somebody tries
        return None


def _another_door(policy: Policy) -> PipelineDoor:
    """Return a door to the same pipeline with new routes."""
    return PipelineDoor(policy.pipe, fresh_routes(policy.pipe, policy.spec, policy.device))


def _never_stepped(policy: Policy) -> PipelineError:
    return PipelineError(f"{type(policy.pipe).__name__} never stepped its scheduler: it cannot be conducted")
