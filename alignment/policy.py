"""The policy: a diffusers pipeline whose denoiser is trained, reached through the pipeline alone.

There is no denoising code here. Three doors lead through the pipeline's own `__call__`, conducted by the scheduler
stand-in: `call` samples, `replay` visits recorded states again, `visit` visits states one made oneself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.batches import Batch, Transitions, made_from, one_of_each_state
from alignment.embeddings import Embeddings
from alignment.encodings import Encodings
from alignment.errors import ForwardProcessError, PipelineError
from alignment.forms import Form, arrange, brings_pictures, find_form, first_accepted, makes_two
from alignment.frame_rate import frame_rate
from alignment.latents import Latents
from alignment.loading import experts, load_pipeline, loop_networks, own_scheduler, trained_scheduler
from alignment.pipeline_call import blaming, checked_arguments, global_stream, output, same_states, taken
from alignment.pixels import Shown
from alignment.self_check import ANSWER_TOLERANCE, check_replay
from alignment.sizes import check_media, check_picture_size
from alignment.spec import PolicySpec
from alignment.visits import times_offered
from alignment.weights import Weights
from reward_models.base import Media
from samplers import Conductor, Grid, Look, Native, Round, Routes, Score, Skip, Visit, by_row, read_path, stand_in
from samplers.errors import SchedulerError
from samplers.path import Path as ForwardPath

Receive = Callable[[int, Tensor], None]
"""receive(k, velocity): the model output `[n, *latent]` of the k-th visit, with its graph where there is one."""

ROW_TIME_TOLERANCE = 1e-2
"""Rounding of a bfloat16 network moves outputs of unit size by less; another time moves them by far more."""

STATE_TOLERANCE = 1e-4
"""Networks that run again with another number of rows round otherwise; another noise would be off by far more."""

_ALONE = torch.zeros(1, dtype=torch.int64)  # seeds of a call that asks one row a question

_ROUNDS_AT_MOST = 10_000
"""Rounds a script covers where nobody knows yet how many the pipeline takes."""


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
        self._stand_in = stand_in(trained_scheduler(self._native))
        self._routes = self._fresh_routes()
        cache = None if spec.embedding_cache is None else Path(spec.embedding_cache)
        self.embeddings, self.encodings = Embeddings(self.pipe, cache), Encodings(self.pipe)
        self.latents = Latents(self, cache)
        self._score: Score | None = None
        self._one_visit, self._shown = False, Shown()
        self.rounds, self.form, self.share_states = 0, Form.SHARED, True
        self.probed: tuple[str, Tensor] | None = None

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
    def stubs(self) -> bool:
        """Whether rounds that nobody learns from go without the denoiser; decided by `prepare`."""
        return self._routes.stubs

    @stubs.setter
    def stubs(self, value: bool) -> None:
        self._routes.stubs = value

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
        """Visit the trained steps of `batch` from column `first` on.

        Rounds that are not trained are skipped. Where networks have to run in them all the same they are native, as
        they were when the batch was sampled, and a state that was drawn is handed over.
        """
        rounds = batch.index[0].tolist()
        stubs = self._routes.stubs
        script: list[Round] = [Skip() if stubs or index > rounds[-1] else Native() for index in range(self.rounds)]
        for k, index in enumerate(rounds):
            adjoins = k + 1 < len(rounds) and rounds[k + 1] == index + 1
            drawn = batch.x_next[:, k, 0] if not stubs and batch.actions == 1 else None
            following = batch.x[:, k + 1] if adjoins else drawn
            if k < first:
                script[index] = Skip(following)
                continue
            if index > 0 and stubs and not isinstance(script[index - 1], Visit):
                script[index - 1] = Skip(batch.x[:, k])
            tolerance = 0.0 if stubs else STATE_TOLERANCE
            script[index] = Visit(batch.x[:, k], functools.partial(receive, k), following, tolerance)
        self._differentiable(Conductor(script), batch.prompts, batch.seeds, grad)

    def visit(self, batch: Batch, points: Sequence[tuple[Tensor, Tensor]], receive: Receive, *, grad: bool) -> None:
        """Visit states of one's own making: `points` holds (x `[n, *latent]`, t `[n]` in [0, 1]) pairs.

        The first round is a stub that hands the pipeline the first state. The rest is as in `replay`. Where `row_times`
        is false, the rows of a point have to share their time.
        """
        assert self._score is not None
        if not self._score.in_step:
            raise ForwardProcessError(
                f"{type(self.pipe).__name__} denoises its streams one after the other in this call"
            )
        before, after = self._score.before, self._score.after
        # What a pipeline leaves out at the start may depend on how many times there are: there are as many as ever.
        most = self.rounds - 1 if before else len(points)
        most = min(most, 1) if self._one_visit else most
        if most == 0:
            raise PipelineError(f"{type(self.pipe).__name__} takes one step here: no state can be handed to it")
        for first in range(0, len(points), most):
            part = points[first : first + most]
            script: list[Round] = [Skip(part[0][0])]
            for k, (x, _) in enumerate(part):
                following = part[k + 1][0] if k + 1 < len(part) else None
                script.append(Visit(x, functools.partial(receive, first + k), following))
            idle = self.rounds - len(script) if before else 0
            times = times_offered(self.path, [t.to(self.device) for _, t in part], before + 1, idle + after)
            conductor = Conductor([*script, *([Skip()] * idle)], times=times)
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
        self._score = conductor.heard()
        self.rounds, self.probed = conductor.round, (prompt, conductor.final)

    def _listen(self, form: Form, prompt: str) -> Conductor:
        self.form, conductor = form, _two_rounds()
        self.call(conductor, (prompt,), _ALONE, pixels=False)
        return conductor

    @functools.cached_property
    def row_times(self) -> bool:
        """Whether the pipeline takes a time for each row; found out when it is first asked, after `probe`."""
        assert self.probed is not None
        prompt, state = self.probed
        rows = torch.arange(2)
        return self.probe_row_times(Batch((prompt, prompt), rows, rows, rows), torch.cat([state, state]))

    def probe_row_times(self, batch: Batch, x: Tensor) -> bool:
        """Find out whether rows may be visited at times of their own, by comparing with one time a call.

        And whether the answer to a visit depends on the others of its call, as where networks are told the next time.

        Args:
            batch: Two rows.
            x: A state of each, `[2, *latent]`.
        """
        answers, joint = list[Tensor](), list[Tensor]()
        own = torch.tensor([0.25, 0.75], device=self.device)
        points = [(x, t.expand(2)) for t in (own[:1], own[1:])]
        for point in points:
            self.visit(batch, [point], lambda k, v: answers.append(v.float()), grad=False)
        self._one_visit = False
        self.visit(batch, points, lambda k, v: joint.append(v.float()), grad=False)
        off = max((v - alone).abs().max() / alone.abs().max() for v, alone in zip(joint, answers, strict=True))
        self._one_visit = bool(off > ANSWER_TOLERANCE)
        try:
            self.visit(batch, [(x, own)], lambda k, v: answers.append(v.float()), grad=False)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            self.row_times = False
            return False
        apart = torch.stack([answers[0][0], answers[1][1]])
        self.row_times = torch.allclose(answers[2], apart, rtol=ROW_TIME_TOLERANCE, atol=ROW_TIME_TOLERANCE)
        return self.row_times

    # ---- getting ready -----------------------------------------------------------------------------------------

    def prepare(
        self, prompts: Sequence[str], held_out: Sequence[str] = (), arguments: dict[str, object] | None = None
    ) -> None:
        """Get ready to train: probe the pipeline, embed every prompt, drop the text encoders where all was kept.

        Args:
            prompts: What will be sampled and trained.
            held_out: What will be generated only.
            arguments: What `generate` will be called with, where that differs from the policy's own arguments.
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
        check_replay(self, prompts[0])
        with blaming("policy.call, policy.decode", self.pipe):  # the first time that pixels are made
            made = self._shown.settle(self.pipe, lambda: self._blank(prompts[0]))
        check_picture_size(self.pipe, self._arguments, made)
        self.embeddings.release()
        try:
            self._embed(prompts[:1], self._routes, {})
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):  # they serve something else, too
            self.embeddings.restore()

    def _blank(self, prompt: str) -> Tensor:
        """Return the pixels of a state that no network has changed."""
        made = self.call(Conductor([Skip()] * self.rounds), (prompt,), _ALONE, pixels=True)
        assert made is not None
        return made

    def _observe(self, form: Form, prompts: Sequence[str], seeds: Tensor) -> Tensor:
        """Return what the first round makes of these rows in that form: states and model outputs, `[n, d]`."""

        def receive(x: Tensor, v: Tensor, _: Grid) -> None:
            raise _Seen(torch.cat([x.flatten(1), v.flatten(1)], 1).float())

        self.form = form
        try:
            self.call(Conductor([Look(receive)] * self.rounds), tuple(prompts), seeds, pixels=False)
        except _Seen as seen:
            return seen.args[0]
        raise PipelineError(f"{type(self.pipe).__name__} never stepped its scheduler: it cannot be conducted")

    def _embed(self, prompts: Sequence[str], routes: Routes, arguments: dict[str, object]) -> None:
        """Run the pipeline on each prompt without its denoiser, so that it asks for the prompt's embeddings."""
        with torch.no_grad():
            for text in dict.fromkeys(prompts):
                given = self._given((text,), _ALONE, self._shown.unseen, arguments)
                conductor = Conductor([Skip()] * _ROUNDS_AT_MOST) if routes.known else _two_rounds()
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
        conductor.score = self._score

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
            with same_states(self.pipe, seeds, own=conductor.times is not None), routed, drawn:
                return output((inspect.unwrap(call) if torch.is_grad_enabled() else call)(self.pipe, **given))
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


class _Seen(Exception):
    """Leaves a pipeline as soon as its first round has shown what was asked for."""


def _two_rounds() -> Conductor:
    """Return the conductor of a call that runs the networks just often enough to learn which are in the loop."""
    return Conductor([Native(), Native(), *([Skip()] * _ROUNDS_AT_MOST)])
