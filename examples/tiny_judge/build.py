"""Make `assets/tiny_vlm`: a vision-language model that can name a picture and check words against it.

It is not a judge: it was never asked whether a picture is good for a text. That is what `visalign rewards train`
teaches it from pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evals.drawing import draw, sample_scene
from examples.tiny_judge.parts import CHECK_IT, NAME_IT, network, processor
from reward_models.verifiers.scenes import COLOURS, COUNTS, SHAPES, single_captions, split_of
from reward_models.vlms.base import NO, YES, Question
from reward_models.vlms.local import Local, LocalReader

FOLDER = Path("assets/tiny_vlm")
ROWS = 48
NAMED = 12  # rows of a step that name their picture; the others check words
WRONG_WORDS = 4
RATE, WARM_STEPS, COOLING = 2e-3, 30, 0.3
_ALL_WORDS = (*COUNTS, *COLOURS, *SHAPES)


def main() -> None:
    """Build, learn, save, and say how well it sees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--seconds", type=float, default=150, help="CPU time to learn for")
    parser.add_argument("--pictures", type=int, default=8000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    made = processor()
    reader = LocalReader(Local(str(asked.output), batch_size=ROWS), network(made.tokenizer).train(), made)
    captions, pictures = scenes(rng, asked.pictures)
    steps = learn(reader, captions, pictures, rng, asked.seconds)
    reader.model.eval().to(torch.float16).save_pretrained(asked.output)
    made.save_pretrained(asked.output)
    seen = accuracy(Local(str(asked.output)).load(device=torch.device("cpu")), *scenes(rng, 200))
    print(f"{steps} steps; pictures named right, word by word (count, colour, shape): {seen}")


def scenes(rng: np.random.Generator, count: int) -> tuple[list[str], Tensor]:
    """Return captions with one group, of any split, and their pictures `[N, 1, 3, 32, 32]` in [0, 1]."""
    share = {split: len(single_captions(split)) for split in ("train", "dev", "test")}
    splits = rng.choice(list(share), size=count, p=np.array(list(share.values())) / sum(share.values()))
    drawn = [sample_scene(rng, "single", str(split)) for split in splits]
    assert all(split_of(scene) in share for scene in drawn)
    pixels = torch.from_numpy(np.stack([draw(scene, rng) for scene in drawn]))
    return [scene.caption for scene in drawn], pixels.permute(0, 3, 1, 2)[:, None].float() / 255


def learn(
    reader: LocalReader, captions: Sequence[str], pictures: Tensor, rng: np.random.Generator, seconds: float
) -> int:
    """Learn to name pictures and to check words for so much CPU time, and return the number of steps."""
    matrices = {n for n, p in reader.model.named_parameters() if p.ndim == 2 and "embed" not in n}
    named = dict(reader.model.named_parameters())
    optimizers = [
        torch.optim.Muon([named[n] for n in matrices], lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for n, p in named.items() if n not in matrices], lr=RATE),
    ]
    started, step, passed = time.process_time(), 0, 0.0
    while passed < 1:
        loss = _loss(reader, captions, pictures, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARM_STEPS) * min(1, (1 - passed) / COOLING + 0.02)
            optimizer.step()
            optimizer.zero_grad()
        step, passed = step + 1, (time.process_time() - started) / seconds
        if step % 100 == 0:
            print(f"step {step}, {passed:.0%}, loss {loss.item():.3f}", flush=True)
    return step


def _loss(reader: LocalReader, captions: Sequence[str], pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the next-word loss on some pictures to name and others to check words against."""
    rows = rng.integers(0, len(captions), ROWS)
    questions = [
        Question((pictures[row], NAME_IT if place < NAMED else CHECK_IT), 1.0) for place, row in enumerate(rows)
    ]
    end = reader.processor.tokenizer.eos_token
    answers = [
        (captions[row] if place < NAMED else checked(captions[row], rng)) + end for place, row in enumerate(rows)
    ]
    told = reader.log_likelihood(questions, answers)
    lengths = torch.tensor([1 + len(answer.split()) for answer in answers])
    return -(told / lengths).mean()


def checked(caption: str, rng: np.random.Generator) -> str:
    """Return words in any order, each with yes or no behind it: the caption's own, and others."""
    count, colour, shape = caption.split()
    own = [count, colour, shape.removesuffix("s")]
    others = rng.choice([word for word in _ALL_WORDS if word not in own], WRONG_WORDS, replace=False)
    told = [*((word, YES) for word in own), *((str(word), NO) for word in others)]
    return "".join(f" {told[i][0]} {told[i][1]}" for i in rng.permutation(len(told)))


def accuracy(reader: LocalReader, captions: Sequence[str], pictures: Tensor) -> list[float]:
    """Return how often the first, second and third word of what it calls a picture are right."""
    named = reader.write([Question((picture, NAME_IT), 1.0) for picture in pictures], tokens=5)
    words = [(text.split() + [""] * 3)[:3] for text in named]
    right = [
        [got == want for got, want in zip(w, c.split(), strict=True)] for w, c in zip(words, captions, strict=True)
    ]
    return np.mean(right, axis=0).round(3).tolist()


if __name__ == "__main__":
    main()
