"""The encode door: pictures and clips as the states that a pipeline's loop ends with.

Between the last state x of the loop and what the VAE decodes, pipelines move numbers and scale them: they unpack
tokens, separate frames, multiply, shift. Each number z_j that is decoded is scale_j x_index(j) + shift_j, and a few
calls without the denoiser tell all three: with states of zeros, of ones, and of the digits of each element's number.
Inverted, that makes a state of what the VAE encodes, with no code about any model. A pipeline that does anything
else to its last state is refused, and the first sample has to come back through the pipeline's own decoder.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from alignment.data import tensor_files
from alignment.data.media import Clip, Picture
from alignment.errors import ConfigError, DataError, PipelineError
from alignment.policy.embeddings import add_network

Sample = Picture | Clip

BASE = 8
"""Digits of an element's number are told apart in steps of 1 / 8, which bfloat16 keeps through any scale and shift."""
LINEAR = 2e-2
"""Of the largest number: what rounding in bfloat16 leaves of a relation that is exact."""
RETURNS = 0.1, 0.5
"""Root mean square by which a sample may come back otherwise, in pixel values and in spreads of its own pixels: VAEs
miss by 0.01 to 0.05; pixels of another range, or a VAE that cannot see, by their whole spread."""
_IN_MEMORY = 1024
"""Latents kept where they are on disk, too."""


@dataclass(frozen=True)
class Ends:
    """The states that a pipeline's loop ends with.

    Attributes:
        shape: Returns the shape of one, known once the pipeline was probed.
        show: Returns what the pipeline makes of one `[*latent]` without its networks: `[F, 3, H, W]`, on the CPU.
    """

    shape: Callable[[], torch.Size]
    show: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecodedLayout:
    """How a state of the loop lies in what is decoded.

    Attributes:
        shape: Of a state.
        where: `[d]` int64, the decoded number that each element of a state becomes.
        scale: `[d]` float64, times which.
        shift: `[d]` float64, plus which.
    """

    shape: torch.Size
    where: Tensor
    scale: Tensor
    shift: Tensor

    def state(self, decoded: Tensor) -> Tensor:
        """Return the state `[*shape]` float32 whose decoded numbers are these, flat."""
        return ((decoded.double()[self.where] - self.shift) / self.scale).float().reshape(self.shape)


def read_layout(decoded: Callable[[Tensor], Tensor], shape: torch.Size) -> DecodedLayout:
    """Find out how the elements of a state become what is decoded.

    Args:
        decoded: Returns what is decoded of a state `[*shape]`, flat, float64.
        shape: Of a state.

    Raises:
        ValueError: If it is not a permutation with scales and shifts.
    """
    count = shape.numel()
    shift = decoded(torch.zeros(shape))
    scale = decoded(torch.ones(shape)) - shift
    moved = (scale != 0).nonzero().flatten()
    number, unit = torch.zeros(len(moved), dtype=torch.int64), 1
    while unit < count:
        digit = (torch.arange(count) // unit % BASE).double() / BASE
        found = (decoded(digit.float().reshape(shape)) - shift)[moved] / scale[moved] * BASE
        number += found.round().long().clamp(0, BASE - 1) * unit
        unit *= BASE
    if bool((number >= count).any()) or len(number.unique()) < count:
        raise ValueError(f"{len(number[number < count].unique())} of the {count} numbers of a state are decoded")
    where = torch.empty(count, dtype=torch.int64)
    where[number] = moved
    layout = DecodedLayout(shape, where, scale[where], shift[where])
    state = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    apart = (layout.state(decoded(state)) - state).abs().max().item()
    if not apart <= LINEAR * max(1.0, (layout.shift / layout.scale).abs().max().item()):
        raise ValueError(f"a state is changed by more than places, scales and shifts ({apart:.2g} of 1)")
    return layout


class Latents:
    """The latents of samples, each encoded once.

    Attributes:
        misses: Samples that were encoded.
    """

    def __init__(self, pipe: Any, device: torch.device, ends: Ends, folder: Path | None, *, check: bool = True) -> None:
        """Encode with the VAE of `pipe`; `folder` keeps latents on disk, `check` has one sample decoded again first."""
        self._pipe, self._device, self._ends, self._folder, self._checked = pipe, device, ends, folder, check
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._layout: DecodedLayout | None = None
        self._size = (0, 0, 0)
        self._pieces: list[torch.Size] = []
        self.misses = 0

    @functools.cached_property
    def _vae(self) -> Any:
        return autoencoder(self._pipe)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return the states that samples are, `[n, *latent]` float32, on the CPU.

        Raises:
            PipelineError: If this pipeline's states cannot be made from pixels.
            DataError: If a sample has another number of frames than the pipeline makes.
        """
        return torch.stack([self._state(sample) for sample in samples])

    def check(self, samples: Sequence[Sample]) -> None:
        """Refuse samples with another number of frames than the pipeline makes.

        Raises:
            DataError: Naming the first of them.
        """
        self._look()
        wanted = self._size[0]
        for sample in samples:
            frames = sample.frames if isinstance(sample, Clip) else 1
            if frames != wanted:
                kind = "pictures" if wanted == 1 else f"clips of {wanted} frames"
                raise DataError(
                    f"data.prompts: {sample.path} has {frames} frame{'s' if frames > 1 else ''}, and "
                    f"{type(self._pipe).__name__} makes {kind}, which is what it can learn from"
                )

    def pixels(self, sample: Sample) -> Tensor:
        """Return a sample at the size that the pipeline makes, scaled to cover it and cut: `[F, 3, H, W]` in [0, 1]."""
        self.check([sample])
        _, height, width = self._size
        found = sample.open() if isinstance(sample, Clip) else [sample.open()]
        fitted = [np.array(ImageOps.fit(frame, (width, height), Image.Resampling.LANCZOS)) for frame in found]
        return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).float() / 255

    # ---- a sample --------------------------------------------------------------------------------------------------

    def _state(self, sample: Sample) -> Tensor:
        key = sample.digest
        state = self._known.get(key)
        if state is None:
            state = self._from_disk(key)
        if state is None:
            state = self._fresh(sample)
            tensor_files.write(self._folder, key, {"x": state}, "latents")
        self._known[key] = state
        self._known.move_to_end(key)
        if self._folder is not None and len(self._known) > _IN_MEMORY:
            self._known.popitem(last=False)
        return state

    def _fresh(self, sample: Sample) -> Tensor:
        layout, pixels = self._look(), self.pixels(sample)
        state = layout.state(pixels.flatten() if self._vae is None else self._encoded(pixels))
        if not bool(state.isfinite().all()):
            raise PipelineError(
                f"policy.pipeline: the VAE of {type(self._pipe).__name__} encodes {sample.path} to numbers that "
                "are not finite; store it in float32 (policy.dtype: float32)"
            )
        if not self.misses:
            self._check(sample, pixels, state)
        self.misses += 1
        return state

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Return the numbers that the VAE makes of `[F, 3, H, W]`, flat: the mean where it makes a distribution."""
        x = (2 * pixels - 1).to(self._device, next(self._vae.parameters()).dtype)
        with torch.no_grad():
            out = self._vae.encode(x.transpose(0, 1)[None] if len(self._pieces[0]) == 5 else x)
        if hasattr(out, "latent_dist"):
            z = out.latent_dist.mode()
        else:
            z = out.latents if hasattr(out, "latents") else out.latent
        wanted = sum(shape.numel() for shape in self._pieces)
        if z.numel() != wanted:
            raise self._refusal(f"the VAE decodes {wanted} numbers a sample and encodes it to {z.numel()}")
        return z.flatten().cpu()

    def _check(self, sample: Sample, pixels: Tensor, state: Tensor) -> None:
        """Check that a sample comes back through the pipeline's own decoder."""
        back = self._shown(state).flatten().double()
        pixels = pixels.flatten().double()
        apart, limit = (back - pixels).square().mean().sqrt().item(), max(RETURNS[0], RETURNS[1] * pixels.std().item())
        if apart <= limit:
            return
        found = f"{sample.path} comes back from the VAE {apart:.2g} off a pixel, where at most {limit:.2g} was expected"
        if self._checked:
            raise self._refusal(f"{found} (policy.check_latents: false lets a VAE of random weights pass)")
        warnings.warn(
            f"policy.check_latents is off, and {found}: what is learned from these latents says nothing of the samples",
            stacklevel=2,
        )

    # ---- the pipeline ----------------------------------------------------------------------------------------------

    def _look(self) -> DecodedLayout:
        """Return how states lie in what is decoded; found out on the first call."""
        if self._layout is None:
            shape = self._ends.shape()
            made = self._shown(torch.zeros(shape))
            self._size = (made.shape[0], *made.shape[2:])
            if self._vae is not None:
                self._check_pieces()
            try:
                self._layout = read_layout(self._decoded, shape)
            except ValueError as error:
                raise self._refusal(str(error)) from error
            if self._folder is not None:
                self._folder = self._folder / self._fingerprint(self._layout)
        return self._layout

    def _check_pieces(self) -> None:
        frames, pieces = self._size[0], self._pieces
        whole = len(pieces) == 1 and len(pieces[0]) == 5
        by_frame = bool(pieces) and all(len(p) == 4 for p in pieces) and sum(p[0] for p in pieces) == frames
        if not (whole or by_frame):
            shapes = ", ".join(str(tuple(shape)) for shape in pieces) or "nothing"
            raise self._refusal(f"its VAE decodes {shapes} for a sample of {frames} frames")

    def _shown(self, state: Tensor) -> Tensor:
        """Return what the pipeline makes of a last state, `[F, 3, H, W]`, and note which pieces it decodes."""
        pieces: list[torch.Size] = []
        with observe_decoder(self._vae, lambda z: pieces.append(z.shape)):
            made = self._ends.show(state)
        self._pieces = pieces
        return made

    def _decoded(self, state: Tensor) -> Tensor:
        """Return what is decoded of a last state, flat: the input of the VAE, or the pixels if there is none."""
        if self._vae is None:
            return self._ends.show(state).double().flatten()
        found: list[Tensor] = []

        def listen(z: Tensor) -> None:
            found.append(z.detach().double().flatten().cpu())
            if len(found) == len(self._pieces):
                raise _DecoderSeen

        dtype = next(self._vae.parameters()).dtype
        try:
            with observe_decoder(self._vae, listen):
                self._ends.show(state)
        except _DecoderSeen:
            if next(self._vae.parameters()).dtype != dtype:  # some decode in float32, and were left before the way back
                self._vae.to(dtype)
        return torch.cat(found)

    def _refusal(self, reason: str) -> PipelineError:
        return PipelineError(
            f"policy.pipeline: {type(self._pipe).__name__} cannot learn from pictures or clips of a file, which "
            f"have to become states of its loop: {reason}. Sources that sample (on_policy, on_policy_pairs) can"
        )

    # ---- the disk --------------------------------------------------------------------------------------------------

    def _fingerprint(self, layout: DecodedLayout) -> str:
        digest = hashlib.sha256(f"{type(self._pipe).__name__} {self._size} {tuple(layout.shape)}".encode())
        for part in (layout.where, layout.scale, layout.shift):
            digest.update(part.numpy().tobytes())
        if self._vae is not None:
            add_network(digest, "vae", self._vae)
        return f"latents-{digest.hexdigest()[:16]}"

    def _from_disk(self, key: str) -> Tensor | None:
        self._look()
        kept = tensor_files.read(self._folder, key)
        return None if kept is None else kept.get("x")


class _DecoderSeen(Exception):
    """Leaves a pipeline as soon as everything it decodes was observed."""


def autoencoder(pipe: Any) -> Any:
    """Return the network that makes pixels of a pipeline's states, or None where its states are pixels.

    Raises:
        ConfigError: If there are several, and none of them is called `vae`.
    """
    found = {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and hasattr(part, "encode") and hasattr(part, "decode")
    }
    if len(found) > 1 and "vae" not in found:
        raise ConfigError(f"{type(pipe).__name__} has several autoencoders ({', '.join(found)}), and none called vae")
    return found.get("vae", next(iter(found.values()), None))


@contextmanager
def observe_decoder(vae: Any, listen: Callable[[Tensor], None]) -> Iterator[None]:
    """Pass what the VAE is given to decode to `listen`; without a VAE there is nothing."""
    if vae is None:
        yield
        return
    ear, before = nn.Module(), dict(vars(vae))

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        listen(given[0] if given else next(iter(named.values())))

    ear.forward = vae.decode
    ear.register_forward_pre_hook(hook, with_kwargs=True)
    vars(vae)["decode"] = ear
    try:
        yield
    finally:
        del vars(vae)["decode"]
        vars(vae).update({name: value for name, value in before.items() if name == "decode"})
