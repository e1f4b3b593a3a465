"""What a scout is, and how scouts are sampled: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class Cheaply:
    """What makes a scout cheaper than the sample it stands for: call or tail, a cache, or one of the two and a cache.

    Attributes:
        call: Arguments that differ from `policy.call`: fewer `num_inference_steps`, no guidance. The pipeline's own
            scheduler then samples from the same initial noise; a picture of another size has other noise.
        tail: For source `on_policy_steps`: denoiser calls for the steps after the window, as in its own `tail`. Up to
            there a scout is the very sample it stands for, because it draws the same noise.
        cache: A feature cache for scouts alone, whatever the objective; null takes `policy.cache`.
    """

    call: dict[str, object] = field(default_factory=dict)
    tail: int | float | None = None
    cache: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.call and self.tail is not None:
            raise FieldError("call", "scouts with a tail are called as samples are; give call or tail")
        if not self.call and self.tail is None and self.cache is None:
            raise FieldError("call", "a scout has to be cheaper than a sample; give call, tail or cache")
        for name in ("height", "width", "num_frames"):
            if name in self.call:
                raise FieldError(
                    f"call.{name}",
                    "initial noise of another size is other noise, so that a scout would say nothing of its sample; "
                    "use fewer num_inference_steps",
                )
        if self.tail is not None and (self.tail <= 0 or (isinstance(self.tail, float) and self.tail > 1)):
            raise FieldError("tail", f"a number of denoiser calls, or a share above 0 and up to 1.0, got {self.tail}")


@dataclass(frozen=True)
class Scout:
    """Sample many candidates cheaply, and make those anew, exactly, that score best and worst in their group.

    Attributes:
        candidates: Scouts per prompt.
        how: What makes them cheap.
        keep: Samples of each prompt that are made anew, half of them the best scouts and half the worst; the source's
            `group_size`, which null takes.
        correct: Give the chosen the credit that they would have had among all candidates. Extremes lie further apart
            than samples do, and each pulls harder; false learns from them as from any group.

    Source: Sol-RL (arXiv 2604.06916), whose scouts compute in four bits. The correction is that of selective genotyping
    (Darvasi and Soller, Theor. Appl. Genet. 85, 1992); no peer has it.
    """

    candidates: int
    how: Cheaply
    keep: int | None = None
    correct: bool = True

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise FieldError("candidates", f"got {self.candidates}: one scout is not compared with any; use at least 4")

    def check(self, group_size: int) -> None:
        """Refuse what does not go with so many samples per prompt.

        Raises:
            FieldError: Naming the field.
        """
        if self.keep is not None and self.keep != group_size:
            raise FieldError(
                "scout.keep",
                f"got {self.keep}, and group_size is {group_size}: the samples that are made anew are the group; use "
                "the same number, or leave keep out",
            )
        if group_size >= self.candidates:
            raise FieldError(
                "scout.candidates",
                f"got {self.candidates}, and {group_size} of them are made anew (keep, group_size), so that there is "
                "nothing to choose; use more candidates, or a smaller group_size",
            )
        if group_size % 2:
            raise FieldError(
                "scout.keep", f"half of a group are the best scouts and half the worst: group_size {group_size} is odd"
            )


def check_scout(scout: Scout | None, group_size: int, keep: int | None) -> None:
    """Refuse scouts that do not go with the other fields of a source.

    Raises:
        FieldError: Naming the field.
    """
    if scout is None:
        return
    scout.check(group_size)
    if keep is not None:
        raise FieldError("keep", "scouts choose the best and the worst before they are made; leave keep out")
