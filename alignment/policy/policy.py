"""The policy: a diffusers pipeline whose denoiser is trained, reached through the pipeline alone.

There is no denoising code here. Three ways lead through the pipeline's own `__call__`, conducted by the scheduler
stand-in: `call` samples, `replay` visits recorded states again, `visit` visits states of the caller's making.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alignment.data.batches import Batch, Transitions, made_from, one_of_each_state
from alignment.data.frame_rate import frame_rate
from alignment.data.pixels import Shown
from alignment.errors import ForwardProcessError, PipelineError
from alignment.policy.between import Between, Receive, replaying
from alignment.policy.call_arguments import checked_arguments
from alignment.policy.call_forms import Form, arrange
from alignment.policy.door import Door, call_natively, fresh_routes
from alignment.policy.embeddings import Embeddings
from alignment.policy.encodings import Encodings
from alignment.policy.latents import Ends, Latents
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.networks.weights import Weights
from alignment.policy.pipeline_call import accepted_arguments
from alignment.policy.prepared import Prepared
from alignment.policy.visits import how_visits_go, visiting
from reward_models.base import Media
from samplers import Conductor, LoopLayout, Skip, Visit, by_row, read_path
from samplers.errors import SchedulerError
from samplers.paths.path import Path as ForwardPath

ONE_ROW = torch.zeros(1, dtype=torch.int64)
"""Seeds of a call that asks one row a question."""


class Policy:
    """A pipeline, the weights of it that are trained, and named frozen copies of those.

    Attributes:
        door: Leads through the pipeline's own `__call__`.
        weights: What is trained, and frozen copies of it.
        spec: The description it was loaded from.
        pipe: The diffusers pipeline, with its own scheduler in place whenever the door is shut.
        component: Name of the trained component in the pipeline.
        denoiser: That component.
        experts: All trained components by name: `denoiser`, and those that take over from it at some time.
        trainable: Trained parameters by name, float32; a further expert's begin with its component's name.
        arguments: Arguments of every pipeline call, without those of the rows.
        shown: How it is asked for samples.
        layout: Its loop; found out by `prepare`, as what follows.
        rounds: Denoising steps of a call.
        form: How rows that bring pictures are passed to the pipeline.
        probed: The prompt that was run to learn the loop, and the state `[1, *latent]` it ended with.
        prepared: What was found out.
        embeddings: Memory of the pipeline's text encoders.
        encodings: Memory of what its VAE encodes within calls.
        ends: What the pipeline makes of states.
        latents: The states that samples of files are.
        share_states: Whether `replay` runs a state that several rows share once; false is there for measurements.
        device: Where everything runs.
    """

    def __init__(self, door: Door, weights: Weights) -> None:
        self.door, self.weights, self.spec = door, weights, weights.spec
        self.pipe, self.device = door.pipe, door.device
        self.experts, self.trainable = weights.experts, weights.trainable
        self.component, self.denoiser = next(iter(self.experts.items()))
        self.arguments = checked_arguments(type(self.pipe), self.spec.call, "policy.call")
        cache = None if self.spec.embedding_cache is None else Path(self.spec.embedding_cache)
        self.embeddings, self.encodings = Embeddings(self.pipe, cache), Encodings(self.pipe)
        self.ends = Ends(self._state_shape, self._show)
        self.latents = Latents(self.pipe, self.device, self.ends, cache, check=self.spec.check_latents)
        self.layout: LoopLayout | None = None
        self._one_visit, self.shown = False, Shown()
        self._cache: FeatureCache | None = None
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
            return read_path(self.door.scheduler)
        except SchedulerError as error:
            raise ForwardProcessError(str(error)) from error

    @property
    def times(self) -> Tensor:
        """The times in [0, 1] of the steps of a call, in order, `[R]` float32 on the CPU."""
        first = 0 if self.layout is None else self.layout.before
        offered = torch.as_tensor(self.door.scheduler.timesteps)[first : first + self.rounds]
        return self.path.time(offered).float().cpu()

    @property
    def storage(self) -> torch.device:
        """Where sampled states wait for their update."""
        return torch.device("cpu") if self.spec.trajectories == "cpu" else self.device

    @property
    def between(self) -> Between:
        """What happens in rounds that are not trained; decided by `prepare`."""
        return self._between

    @between.setter
    def between(self, value: Between) -> None:
        self._between, self.door.stubs = value, value is Between.SKIPPED

    @property
    def stubs(self) -> bool:
        """Whether rounds that are not trained skip the denoiser."""
        return self._between is Between.SKIPPED

    @property
    def snapshots(self) -> dict[str, dict[str, Tensor]]:
        """Named frozen copies of `trainable`."""
        return self.weights.snapshots

    def using(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a frozen copy of the trained weights is in place; see `Weights.using`."""
        return self.weights.using(name)

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the weights are as they sample; see `Weights.sampling`."""
        return self.weights.sampling()

    @contextlib.contextmanager
    def caching(self, cache: FeatureCache | None) -> Iterator[None]:
        """Let the denoiser of calls within the block use a feature cache, each call its own; None lets it have none."""
        before, self._cache = self._cache, cache
        try:
            yield
        finally:
            self._cache = before

    # ---- the three ways ----------------------------------------------------------------------------------------

    def call(
        self,
        conductor: Conductor,
        prompts: tuple[str, ...],
        seeds: Tensor,
        *,
        pixels: bool,
        grad: bool = False,
        arguments: Mapping[str, object] | None = None,
    ) -> Tensor | None:
        """Run the pipeline once, or once per row if it takes one row per call; see `samplers.Call`.

        With `grad` a graph leads from the pixels through the decoder to every round in which networks run. With
        `arguments` that differ from the policy's own nothing is known of the loop, so that no round may be left out.
        """
        with torch.set_grad_enabled(grad), contextlib.nullcontext() if grad else self.sampling():
            return self._run(conductor, prompts, seeds, pixels=pixels, arguments=arguments)

    def replay(self, batch: Transitions, receive: Receive, *, grad: bool) -> None:
        """Visit the recorded states of `batch` again, in order; the denoiser runs in those rounds only.

        Rows that leave their first trained step from one state, as samples of a group do that part there, go through
        the denoiser as one row, forward and backward.

        Args:
            batch: Rows of one chunk.
            receive: Called inside the pipeline's step, so that a backward pass in it frees its graph at once.
            grad: Whether the model output carries a graph.

        Raises:
            PipelineError: If the pipeline does not reach the recorded states again.
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
        """Visit the recorded states in one call with one graph over all rounds: what other ways are compared with."""
        columns = list(range(batch.index.shape[1]))
        script = replaying(batch, columns, receive, self.rounds, Between.WHOLE)
        self._differentiable(Conductor(script), batch.prompts, batch.seeds, grad=True)

    def visit(self, batch: Batch, points: Sequence[tuple[Tensor, Tensor]], receive: Receive, *, grad: bool) -> None:
        """Visit states of the caller's making: `points` holds (x `[n, *latent]`, t `[n]` in [0, 1]) pairs.

        The first round is a stub that gives the pipeline the first state. The rest is as in `replay`. If `row_times` is
        false, the rows of a point must share their time.
        """
        assert self.layout is not None
        name = type(self.pipe).__name__
        if not self.layout.in_step:
            raise ForwardProcessError(f"{name} denoises its streams one after the other in this call")
        if not self.stubs:
            raise ForwardProcessError(
                f"{name} keeps something from round to round, so its answer to a state depends on others"
            )
        # What a pipeline leaves out at the start may depend on how many times there are: there are as many as ever.
        most = self.rounds - 1 if self.layout.before else len(points)
        most = min(most, 1) if self._one_visit else most
        if most == 0:
            raise PipelineError(f"{name} takes one step here: no state can be handed to it")
        for first in range(0, len(points), most):
            part = [(x, t.to(self.device)) for x, t in points[first : first + most]]
            observe_decoder: Receive = lambda k, v, first=first: receive(first + k, v)  # noqa: E731
            conductor = visiting(self.path, part, observe_decoder, self.rounds, self.layout)
            self._differentiable(conductor, batch.prompts, batch.seeds, grad)

    def generate(self, prompts: Sequence[str], seeds: Tensor, arguments: dict[str, object]) -> Media:
        """Make pictures as a user would: with the pipeline's own `__call__` and scheduler.

        Args:
            prompts: One text a row.
            seeds: `[n]` keys of the initial noise.
            arguments: What differs from the policy's own arguments.
        """
        other = checked_arguments(self.pipe, arguments, "evaluation.call")
        made: list[Tensor | None] = [None] * len(prompts)
        for rows in self.form.calls(prompts):
            given = self.given([prompts[row] for row in rows], seeds[rows], self.shown.seen, other)
            routes = fresh_routes(self.pipe, self.spec, self.device)
            with torch.no_grad(), self.sampling():
                clips = self.shown.clips(call_natively(self.pipe, routes, given, seeds[rows]))
            for row, clip in zip(rows, clips.float().cpu(), strict=True):
                made[row] = clip
        return self.media(prompts, torch.stack([clip for clip in made if clip is not None]), other)

    def media(self, prompts: Sequence[str], pixels: Tensor, call: Mapping[str, object] | None = None) -> Media:
        """Return samples `[n, F, 3, H, W]` as rewards see them: with what each was made from, and a clip's rate."""
        return made_from(prompts, pixels, frame_rate(self.pipe, self.spec.fps, {**self.arguments, **(call or {})}))

    @functools.cached_property
    def row_times(self) -> bool:
        """Whether the pipeline takes a time for each row; found out on the first call, after `probe`."""
        assert self.probed is not None
        prompt, state = self.probed
        rows = torch.arange(2)
        visit = functools.partial(self.visit, Batch((prompt, prompt), rows, rows, rows), grad=False)
        row_times, self._one_visit = how_visits_go(visit, torch.cat([state, state]))
        return row_times

    def _state_shape(self) -> torch.Size:
        assert self.probed is not None
        return self.probed[1].shape[1:]

    def _show(self, state: Tensor) -> Tensor:
        """Return what the pipeline makes of a last state `[*latent]` without its networks: `[F, 3, H, W]`."""
        assert self.probed is not None
        script = [Skip()] * (self.rounds - 1) + [Skip(state[None].to(self.device))]
        made = self.call(Conductor(script), (self.probed[0],), ONE_ROW, pixels=True)
        assert made is not None
        return made[0].float().cpu()

    # ---- the pipeline ------------------------------------------------------------------------------------------

    def given(
        self, prompts: Sequence[str], seeds: Tensor, output_type: str, arguments: dict[str, object] | None = None
    ) -> dict[str, object]:
        """Return the arguments of one call with one row per prompt."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        bare = self.form is Form.BARE
        own = {"generator": generators[0] if bare else generators, "output_type": output_type, "return_dict": False}
        rows = arrange(self.form, self.pipe, prompts, self.arguments | (arguments or {}))
        return accepted_arguments(self.pipe, rows | own)

    def _run(
        self,
        conductor: Conductor,
        prompts: Sequence[str],
        seeds: Tensor,
        *,
        pixels: bool,
        arguments: Mapping[str, object] | None = None,
    ) -> Tensor | None:
        other = None if arguments is None else checked_arguments(type(self.pipe), arguments, "call")
        door, conductor.layout = (self.door, self.layout) if other is None else (self.door.aside(), None)

        def run(rows: slice, conductor: Conductor) -> Tensor | None:
            given = self.given(prompts[rows], seeds[rows], self.shown.seen if pixels else self.shown.unseen, other)
            with door.cached(self._cache, self._rounds(other)):
                images = door.conduct(conductor, given, seeds[rows])
            return self.shown.clips(images) if pixels else None

        if not self.form.single or len(seeds) == 1:
            return run(slice(None), conductor)
        clips = [clip for clip in by_row(conductor, len(seeds), run) if clip is not None]
        return torch.cat(clips) if clips else None

    def _rounds(self, arguments: Mapping[str, object] | None) -> int:
        asked = (arguments or {}).get("num_inference_steps")
        return asked if isinstance(asked, int) else self.rounds

    def _differentiable(self, conductor: Conductor, prompts: tuple[str, ...], seeds: Tensor, grad: bool) -> None:
        expected = sum(isinstance(action, Visit) for action in conductor.script)
        with torch.set_grad_enabled(grad):
            self._run(conductor, prompts, seeds, pixels=False)
        if conductor.round != len(conductor.script):
            raise PipelineError(
                f"{type(self.pipe).__name__} ran {conductor.round} rounds where {len(conductor.script)} were conducted "
                f"({expected} of them to be learned from)"
            )
