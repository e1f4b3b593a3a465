"""The policy: a diffusers pipeline whose denoiser is trained, reached through the pipeline alone.

There is no denoising code here. Three doors lead through the pipeline's own `__call__`, conducted by the scheduler
stand-in: `call` samples, `replay` visits recorded states again, `visit` visits states one made oneself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.data.batches import Batch, Transitions, made_from, one_of_each_state
from alignment.data.frame_rate import frame_rate
from alignment.data.pixels import Shown
from alignment.errors import ForwardProcessError, PipelineError
from alignment.policy.between import ROUNDS_AT_MOST, Between, Receive, Seen, first_round, replaying, two_rounds
from alignment.policy.call_forms import Form, arrange, brings_pictures, find_form, first_accepted, makes_two
from alignment.policy.embeddings import Embeddings
from alignment.policy.encodings import Encodings
from alignment.policy.latents import Latents
from alignment.policy.networks.loading import experts, load_pipeline, loop_networks, own_scheduler, trained_scheduler
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.weights import Weights
from alignment.policy.pipeline_call import (
    alike,
    asking,
    blaming,
    checked_arguments,
    global_stream,
    output,
    same_states,
    taken,
)
from alignment.policy.prepared import Prepared
from alignment.policy.replay_check import check_replay, how_visits_go
from alignment.policy.sizes import check_media, check_picture_size
from alignment.policy.visits import visiting
from reward_models.base import Media
from samplers import Conductor, LoopLayout, Routes, Skip, Visit, by_row, read_path, stand_in_for
from samplers.errors import SchedulerError
from samplers.paths.path import Path as ForwardPath

_ALONE = torch.zeros(1, dtype=torch.int64)  # seeds of a call that asks one row a question


class Policy(Weights):
    """A pipeline, the weights of it that are trained, and named frozen copies of those.

    Attributes:
        spec: The description it was loaded from.
        pipe: The diffusers pipeline, with its own scheduler in place whenever no door is open.
        component: Name of the trained component in the pipeline.
        denoiser: That component.
        experts: All trained components by name: `denoiser`, and those that take over from it at some time.
        trainable: Trained parameters by name, float32; a further expert's begin with its component's name.
        snapshots: Named frozen copies of `trainable`.
        rounds: Denoising steps of a call.
        form: How rows that bring pictures are told to the pipeline; found out by `prepare`.
        prepared: What `prepare` found out.
        probed: The prompt that was run to learn the loop, and the state `[1, *latent]` it ended with.
        share_states: Whether `replay` runs a state that several rows share once; false exists to be measured against.
        device: Where everything runs.
    """

    def __init__(self, spec: PolicySpec, *, device: torch.device, seed: int, pipe: Any = None) -> None:
        self.device = device
        self.pipe: Any = load_pipeline(spec, device) if pipe is None else pipe
        self._native = own_scheduler(self.pipe)
        super().__init__(experts(self.pipe), spec, seed)
        self.component, self.denoiser = next(iter(self.experts.items()))
        self._arguments = checked_arguments(self.pipe, spec.call, "policy.call")
        self._stand_in = stand_in_for(trained_scheduler(self._native))
        self._routes = self._fresh_routes()
        cache = None if spec.embedding_cache is None else Path(spec.embedding_cache)
        self.embeddings, self.encodings = Embeddings(self.pipe, cache), Encodings(self.pipe)
        self.latents = Latents(self, cache, check=spec.check_latents)
        self._layout: LoopLayout | None = None
        self._one_visit, self._shown = False, Shown()
        self.rounds, self.form, self.share_states, self._between = 0, Form.SHARED, True, Between.SKIPPED
        self.probed: tuple[str, Tensor] | None = None
        self.prepared: Prepared | None = None

    @functools.cached_property
    def path(self) -> ForwardPath:
        """The forward process, for methods that noise clean samples themselves.

        Raises:
            ForwardProcessError: If it cannot be read from the scheduler.
        """
        try:
            return read_path(self._stand_in)
        except SchedulerError as error:
            raise ForwardProcessError(str(error)) from error

    @property
    def storage(self) -> torch.device:
        """Where sampled states wait for their update."""
        return torch.device("cpu") if self.spec.trajectories == "cpu" else self.device

    @property
    def between(self) -> Between:
        """What becomes of rounds that nobody learns from; decided by `prepare`."""
        return self._between

    @between.setter
    def between(self, value: Between) -> None:
        self._between, self._routes.stubs = value, value is Between.SKIPPED

    @property
    def stubs(self) -> bool:
        """Whether rounds that nobody learns from go without the denoiser."""
        return self._between is Between.SKIPPED

    # ---- the three doors ---------------------------------------------------------------------------------------

    def call(
        self, conductor: Conductor, prompts: tuple[str, ...], seeds: Tensor, *, pixels: bool, grad: bool = False
    ) -> Tensor | None:
        """Run the pipeline once, or once a row where it takes one row a call; see `samplers.Call`.

        With `grad` a graph leads from the pixels through the decoder to every round in which networks run.
        """
        with torch.set_grad_enabled(grad), contextlib.nullcontext() if grad else self.sampling():
            return self._run(conductor, prompts, seeds, pixels=pixels)

    def replay(self, batch: Transitions, receive: Receive, *, grad: bool) -> None:
        """Visit the recorded states of `batch` again, in order; the denoiser runs in those rounds only.

        Rows that leave their first trained step from one state, as samples of a group do that part there, go through
        the denoiser as one row, forward and backward.

        Args:
            batch: Rows of one chunk.
            receive: Called inside the pipeline's step, so that a backward pass in it frees its graph at once.
            grad: Whether the model output carries a graph.

        Raises:
            PipelineError: If the pipeline does not come by the recorded states again.
        """
        leaders, follows = one_of_each_state(batch)
        if len(leaders) == len(batch) or not self.share_states:
            self._replay(batch, 0, receive, grad)
            return
        alone = batch[leaders]
        self._replay(replace(alone, index=alone.index[:, :1]), 0, lambda k, v: receive(k, v[follows]), grad)
        if batch.index.shape[1] > 1:
            self._replay(batch, 1, receive, grad)

    def _replay(self, batch: Transitions, first: int, receive: Receive, grad: bool) -> None:
        """Visit the trained steps of `batch` from column `first` on: in one call, or each in its own whole graph."""
        columns = list(range(first, batch.index.shape[1]))
        for visited in [[k] for k in columns] if grad and self.between is Between.WHOLE else [columns]:
            script = replaying(batch, visited, receive, self.rounds, self.between)
            self._differentiable(Conductor(script), batch.prompts, batch.seeds, grad)

    def replay_whole(self, batch: Transitions, receive: Receive) -> None:
        """Visit the recorded states in one call, all of whose rounds are one graph: what others have to come to."""
        columns = list(range(batch.index.shape[1]))
        script = replaying(batch, columns, receive, self.rounds, Between.WHOLE)
        self._differentiable(Conductor(script), batch.prompts, batch.seeds, grad=True)

    def visit(self, batch: Batch, points: Sequence[tuple[Tensor, Tensor]], receive: Receive, *, grad: bool) -> None:
        """Visit states of one's own making: `points` holds (x `[n, *latent]`, t `[n]` in [0, 1]) pairs.

        The first round is a stub that hands the pipeline the first state. The rest is as in `replay`. Where `row_times`
        is false, the rows of a point have to share their time.
        """
        assert self._layout is not None
        name = type(self.pipe).__name__
        if not self._layout.in_step:
            raise ForwardProcessError(f"{name} denoises its streams one after the other in this call")
        if not self.stubs:
            raise ForwardProcessError(
                f"{name} keeps something from round to round, so its answer to a state depends on others"
            )
        # What a pipeline leaves out at the start may depend on how many times there are: there are as many as ever.
        most = self.rounds - 1 if self._layout.before else len(points)
        most = min(most, 1) if self._one_visit else most
        if most == 0:
            raise PipelineError(f"{name} takes one step here: no state can be handed to it")
        for first in range(0, len(points), most):
            part = [(x, t.to(self.device)) for x, t in points[first : first + most]]
            heard: Receive = lambda k, v, first=first: receive(first + k, v)  # noqa: E731
            conductor = visiting(self.path, part, heard, self.rounds, self._layout)
            self._differentiable(conductor, batch.prompts, batch.seeds, grad)

    def generate(self, prompts: Sequence[str], seeds: Tensor, arguments: dict[str, object]) -> Media:
        """Make pictures as a user would: the pipeline's own `__call__` and its own scheduler.

        Args:
            prompts: One text a row.
            seeds: `[n]` keys of the initial noise.
            arguments: What differs from the policy's own arguments.
        """
        other = checked_arguments(self.pipe, arguments, "evaluation.call")
        made: list[Tensor | None] = [None] * len(prompts)
        for rows in self.form.calls(prompts):
            given = self._given([prompts[row] for row in rows], seeds[rows], self._shown.seen, other)
            routed = self._fresh_routes().on(self.pipe, Conductor(), len(rows))
            with torch.no_grad(), self.sampling(), global_stream(seeds[rows], self.device), routed:
                for row, clip in zip(rows, self._shown.clips(output(self.pipe(**given))).float().cpu(), strict=True):
                    made[row] = clip
        return self.media(prompts, torch.stack([clip for clip in made if clip is not None]), other)

    def media(self, prompts: Sequence[str], pixels: Tensor, call: Mapping[str, object] | None = None) -> Media:
        """Return samples `[n, F, 3, H, W]` as rewards see them: with what each was made from, and a clip's rate."""
        return made_from(prompts, pixels, frame_rate(self.pipe, self.spec.fps, {**self._arguments, **(call or {})}))

    def probe(self, prompt: str) -> None:
        """Run the pipeline once on one prompt, to learn its loop: how many rounds, which networks, which shapes.

        Raises:
            PipelineError: If the pipeline does not take the call arguments, or does not follow the scheduler contract.
        """
        with blaming("policy.call", self.pipe):
            conductor = first_accepted(lambda form: self._listen(form, prompt), self._shown.look_always)
        if conductor.round == 0:
            raise PipelineError(f"{type(self.pipe).__name__} never stepped its scheduler: it cannot be conducted")
        assert conductor.final is not None
        self._layout = conductor.observed_layout()
        self.rounds, self.probed = conductor.round, (prompt, conductor.final)

    def _listen(self, form: Form, prompt: str) -> Conductor:
        self.form, conductor = form, two_rounds()
        self.call(conductor, (prompt,), _ALONE, pixels=False)
        return conductor

    @functools.cached_property
    def row_times(self) -> bool:
        """Whether the pipeline takes a time for each row; found out when it is first asked, after `probe`."""
        assert self.probed is not None
        prompt, state = self.probed
        rows = torch.arange(2)
        visit = functools.partial(self.visit, Batch((prompt, prompt), rows, rows, rows), grad=False)
        row_times, self._one_visit = how_visits_go(visit, torch.cat([state, state]))
        return row_times

    def _takes_row_times(self) -> bool | None:
        try:
            return self.row_times
        except PipelineError:  # no state can be handed over, which is said where somebody tries
            return None

    # ---- getting ready -----------------------------------------------------------------------------------------

    def prepare(
        self,
        prompts: Sequence[str],
        held_out: Sequence[str] = (),
        arguments: dict[str, object] | None = None,
        *,
        visits: bool = False,
    ) -> None:
        """Get ready to train: probe the pipeline, embed every prompt, drop the text encoders where all was kept.

        Args:
            prompts: What will be sampled and trained.
            held_out: What will be generated only.
            arguments: What `generate` will be called with, where that differs from the policy's own arguments.
            visits: Whether states of one's own will be visited: then it is found out if rows may have their own times.
        """
        other = checked_arguments(self.pipe, arguments or {}, "evaluation.call")
        check_media(self.pipe, {"policy.call": self._arguments, "evaluation.call": other}, prompts, held_out)
        pictured = brings_pictures(prompts, self._arguments)
        self.embeddings.settle(mixed=not pictured)
        self.probe(prompts[0])
        with blaming("policy.call", self.pipe):
            if not self.form.single:
                self.form = find_form(self.pipe, [*prompts, *held_out], self._observe, pictured=pictured)
        if not self.form.single and not makes_two(self.call, prompts[0], self.rounds):
            self.form = Form.ALONE
        self.embeddings.settle(mixed=self.form.mixes, bare=self.form is Form.BARE)
        with blaming("policy.call", self.pipe):
            self._embed(prompts, self._routes, {})
        with blaming("evaluation.call", self.pipe):
            self._embed(held_out, self._fresh_routes(), other)
        check_replay(self, prompts)
        with blaming("policy.call, policy.decode", self.pipe):  # the first time that pixels are made
            made = self._shown.settle(self.pipe, lambda: self._blank(prompts[0]))
        check_picture_size(self.pipe, self._arguments, made)
        self._release([(prompts[0], {}), *((prompt, other) for prompt in held_out[:1])])
        self.prepared = Prepared(
            type(self.pipe).__name__,
            type(self._stand_in).__bases__[1].__name__,
            self.rounds,
            self.form.value,
            self.between.value,
            self._takes_row_times() if visits else None,
            self.embeddings.cacheable,
            self.embeddings.released,
        )

    def _release(self, calls: Sequence[tuple[str, dict[str, object]]]) -> None:
        """Let the text encoders leave where every answer was kept, unless the networks are then told something else."""
        if not self.embeddings.cacheable:
            return
        told = [self._told(*call) for call in calls]
        self.embeddings.release()
        if not self.embeddings.released:
            return
        try:
            same = all(alike(self._told(*call), before) for call, before in zip(calls, told, strict=True))
        except PipelineError:  # encoders serve something else, too
            same = False
        if not same:
            self.embeddings.restore()

    def _blank(self, prompt: str) -> Tensor:
        """Return the pixels of a state that no network has changed."""
        made = self.call(Conductor([Skip()] * self.rounds), (prompt,), _ALONE, pixels=True)
        assert made is not None
        return made

    def _told(self, prompt: str, arguments: dict[str, object]) -> list[Any]:
        """Return what the networks of a call are told in its first round, in order."""
        routes, told = self._fresh_routes(), list[Any]()
        routes.listen = lambda name, given: told.append((name, given))
        with torch.no_grad(), contextlib.suppress(Seen):
            self._conduct(first_round(), self._given((prompt,), _ALONE, self._shown.unseen, arguments), routes, _ALONE)
        return told

    def _observe(self, form: Form, prompts: Sequence[str], seeds: Tensor) -> Tensor:
        """Return what the first round makes of these rows in that form: states and model outputs, `[n, d]`."""
        self.form = form
        try:
            self.call(first_round(), tuple(prompts), seeds, pixels=False)
        except Seen as seen:
            x, v, _ = seen.args
            return torch.cat([x.flatten(1), v.flatten(1)], 1).float()
        raise PipelineError(f"{type(self.pipe).__name__} never stepped its scheduler: it cannot be conducted")

    def _embed(self, prompts: Sequence[str], routes: Routes, arguments: dict[str, object]) -> None:
        """Run the pipeline on each prompt without its denoiser, so that it asks for the prompt's embeddings."""
        with torch.no_grad():
            for text in dict.fromkeys(prompts):
                given = self._given((text,), _ALONE, self._shown.unseen, arguments)
                conductor = Conductor([Skip()] * ROUNDS_AT_MOST) if routes.known else two_rounds()
                self._conduct(conductor, given, routes, _ALONE)

    # ---- the pipeline ------------------------------------------------------------------------------------------

    def _fresh_routes(self) -> Routes:
        """Return routes that know nothing yet: call arguments decide the shapes of a network's answers."""
        return Routes(loop_networks(self.pipe), self.device, None if self.spec.autocast is None else torch.bfloat16)

    def _given(
        self, prompts: Sequence[str], seeds: Tensor, output_type: str, arguments: dict[str, object] | None = None
    ) -> dict[str, object]:
        """Return the arguments of one call with a row a prompt."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        bare = self.form is Form.BARE
        own = {"generator": generators[0] if bare else generators, "output_type": output_type, "return_dict": False}
        return taken(self.pipe, arrange(self.form, self.pipe, prompts, self._arguments | (arguments or {})) | own)

    def _run(self, conductor: Conductor, prompts: Sequence[str], seeds: Tensor, *, pixels: bool) -> Tensor | None:
        conductor.layout = self._layout

        def run(rows: slice, conductor: Conductor) -> Tensor | None:
            given = self._given(prompts[rows], seeds[rows], self._shown.seen if pixels else self._shown.unseen)
            images = self._conduct(conductor, given, self._routes, seeds[rows])
            return self._shown.clips(images) if pixels else None

        if not self.form.single or len(seeds) == 1:
            return run(slice(None), conductor)
        clips = [clip for clip in by_row(conductor, len(seeds), run) if clip is not None]
        return torch.cat(clips) if clips else None

    def _conduct(self, conductor: Conductor, given: dict[str, Any], routes: Routes, seeds: Tensor) -> Tensor:
        vars(self.pipe)["scheduler"] = self._stand_in
        self._stand_in.conduct(conductor)
        conductor.rows = len(seeds)
        try:
            call = type(self.pipe).__call__
            routed, drawn = routes.on(self.pipe, conductor, len(seeds)), global_stream(seeds, self.device)
            call = inspect.unwrap(call) if torch.is_grad_enabled() else call
            with same_states(self.pipe, seeds, own=conductor.times is not None), asking(self.pipe), routed, drawn:
                return output(call(self.pipe, **given))
        finally:
            self._stand_in.conduct(None)
            vars(self.pipe)["scheduler"] = self._native

    def _differentiable(self, conductor: Conductor, prompts: tuple[str, ...], seeds: Tensor, grad: bool) -> None:
        expected = sum(isinstance(action, Visit) for action in conductor.script)
        with torch.set_grad_enabled(grad):
            self._run(conductor, prompts, seeds, pixels=False)
        if conductor.round != len(conductor.script):
            raise PipelineError(
                f"{type(self.pipe).__name__} ran {conductor.round} rounds where {len(conductor.script)} were conducted "
                f"({expected} of them to be learned from)"
            )
