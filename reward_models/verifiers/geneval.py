"""GenEval: are the objects in the picture that the prompt asks for, as many, of that colour, in that place?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards
from reward_models.clip_family.towers import Towers, load_towers
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip
from reward_models.loading.weights import Dtype, Provenance
from reward_models.verifiers.geneval_rules import COLOURS, PictureGrade, Wish, judge, parse
from reward_models.verifiers.instances import Detector, Instance, load_detector

_NAME = "geneval"
_DETECTOR = "facebook/mask2former-swin-small-coco-instance"

_SURE, _SURE_TO_COUNT = 0.3, 0.9
"""How sure the detector has to be of an object, and where the number of objects matters."""
_MOST = 16
"""Objects of a kind that are looked at."""

_BACKGROUND = 0x99 / 255
_TEMPLATES = ("a photo of a {colour} {kind}", "a photo of a {colour}-colored {kind}", "a photo of a {colour} object")
"""What a crop is compared with; the words are GenEval's."""


@dataclass(frozen=True)
class GenEval(RewardModel):
    """Score compositional prompts such as "a photo of a green car right of a purple bench" with a detector.

    Prompts are GenEval's six kinds, of COCO's 80 objects; others are refused. A clip gets the mean over its frames. The
    parts are all three verdicts: "dense" (partial credit), "strict" and "correct" (0 or 1).

    Attributes:
        verdict: Which of them is the score. "correct" is the benchmark's; "strict" also wants no object more than asked
            for; "dense" is what Flow-GRPO trains on.
        detector: A Mask2Former of COCO's instances: a folder, or "owner/name" on the hub.
        revision: Of that repository.
        clip: The model that recognises colours: as `weights` of the CLIP score.
        architecture: As there.
        dtype: What the networks compute in.

    Source: GenEval (arXiv 2310.11513). Its detector is mmdet's Mask2Former with Swin-S; ours has the same architecture
        and another training run, because mmdet no longer installs. So the numbers are not those of the leaderboard.
    """

    verdict: Literal["dense", "strict", "correct"] = "dense"
    detector: str = _DETECTOR
    revision: str | None = None
    clip: str = "openai/clip-vit-large-patch14"
    architecture: str | None = None
    dtype: Dtype = "float32"

    differentiable: ClassVar[bool] = False

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are not GenEval's."""
        check_prompts(_NAME, prompts)
        for prompt in prompts:
            _wish(prompt)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return a grey picture, which shows nothing, for the default detector alone."""
        media = Media(torch.full((1, 1, 3, 64, 64), 0.5))
        answer = KnownAnswer("there is no dog on a grey picture", media, ("a photo of a dog",), ((0.0, 0.0),))
        return (answer,) if self.detector == _DETECTOR else ()

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return the verdicts that give no partial credit."""
        return ("strict", "correct", *(() if self.verdict == "dense" else ("",)))

    def load(self, *, device: torch.device) -> _GenEvalScorer:
        """Return the scorer.

        Raises:
            RewardError: If a checkpoint is missing, damaged or of another kind.
        """
        detector = load_detector(_NAME, self.detector, revision=self.revision, device=device, dtype=self.dtype)
        towers = load_towers(
            _NAME, self.clip, revision=None, architecture=self.architecture, device=device, dtype=self.dtype
        )
        return _GenEvalScorer(self.verdict, detector, towers)


def _wish(prompt: str) -> Wish:
    try:
        return parse(prompt)
    except ValueError as error:
        raise RewardError(f"{_NAME} can only judge prompts of GenEval's kinds: {error}") from error


@dataclass(frozen=True)
class _GenEvalScorer:
    verdict: str
    detector: Detector
    towers: Towers

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        objects, colours = self.detector.provenance, self.towers.provenance
        return Provenance((*objects.files, *colours.files), f"{objects.preprocessing}; {colours.preprocessing}")

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`.

        Raises:
            RewardError: If a prompt is not one of GenEval's.
        """
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        wishes = [wish for wish in map(_wish, prompts) for _ in range(media.pixels.shape[1])]
        with torch.no_grad():
            verdicts = [self._judge(*pair) for pair in zip(wishes, frames(media), strict=True)]
        parts = {
            "dense": [verdict.dense for verdict in verdicts],
            "strict": [float(verdict.strict) for verdict in verdicts],
            "correct": [float(verdict.correct) for verdict in verdicts],
        }
        scores = {name: per_clip(torch.tensor(numbers), media) for name, numbers in parts.items()}
        return Rewards(scores[self.verdict], scores)

    def _judge(self, wish: Wish, picture: Tensor) -> PictureGrade:
        found = self.detector(picture, least=_SURE_TO_COUNT if wish.counting else _SURE)
        found = {kind: objects[:_MOST] for kind, objects in found.items()}
        boxes = {kind: [one.box for one in objects] for kind, objects in found.items()}
        return judge(wish, boxes, lambda kind, count: self._colours(picture, kind, found[kind][:count]))

    def _colours(self, picture: Tensor, kind: str, objects: Sequence[Instance]) -> list[str]:
        """Return the colour whose descriptions each object is nearest to, cut out on grey."""
        texts = [line.format(colour=colour, kind=kind) for colour in COLOURS for line in _TEMPLATES]
        meant = normalize(self.towers.texts(texts).view(len(COLOURS), len(_TEMPLATES), -1).mean(1), dim=-1)
        crops = [_cut_out(picture, one) for one in objects]
        vectors = torch.cat([self.towers.pictures(crop[None]) for crop in crops])
        return [COLOURS[i] for i in (vectors @ meant.T).argmax(1).tolist()]


def _cut_out(picture: Tensor, one: Instance) -> Tensor:
    left, top, right, bottom = one.box
    alone = torch.where(one.mask.to(picture.device), picture, _BACKGROUND)
    return alone[:, top:bottom, left:right]
