"""Held-out evaluation: the pipeline as a user calls it, its own sampler, the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment.config.run import Evaluation
from alignment.context import Context
from alignment.data.prompts import Prompts
from alignment.reports.run_folder import Evaluated
from alignment.sources.credited import join, score
from alignment.training.sights import Sights
from reward_models.base import Media, RewardModel


@dataclass(frozen=True)
class Evaluator:
    """Measures a policy on prompts it never trained on.

    Attributes:
        settings: How.
        prompts: On what.
        reward: By what.
        sights: What else is measured; None for nothing.
    """

    settings: Evaluation
    prompts: Prompts
    reward: RewardModel
    sights: Sights | None = None

    def __call__(self, ctx: Context, images_per_prompt: int, weights: str) -> Evaluated:
        """Return the scores of `images_per_prompt` pictures of every prompt, made with `weights`.

        Pictures are ordered image by image, prompt by prompt, and keyed by (prompt, image): every evaluation of a run
        starts from the same noise, and so does one with fewer pictures.
        """
        ctx.world.settle()  # scorers are asked by one thread at a time
        count = len(self.prompts.texts)
        pairs = [(p, i) for i in range(images_per_prompt) for p in range(count)]
        texts = tuple(self.prompts.texts[p] for p, _ in pairs)
        seeds = torch.tensor([ctx.draw.key("evaluation", p, i) for p, i in pairs])
        short = -len(pairs) % ctx.world.size
        order = torch.cat([torch.arange(len(pairs)), torch.zeros(short, dtype=torch.int64)])
        mine = order[ctx.world.share(len(order))].split(self.settings.batch_size)
        if ctx.world.in_step:  # then every process makes as many pipeline calls
            named = [(rows, [texts[row] for row in rows.tolist()]) for rows in mine]
            mine = [rows[call] for rows, prompts in named for call in ctx.policy.form.calls(prompts)]
        shown, rewards, seen = [], [], []
        with ctx.policy.using(weights), ctx.policy.sampling():
            for number in range(ctx.world.together(len(mine))):
                rows = mine[min(number, len(mine) - 1)]
                prompts = tuple(texts[row] for row in rows.tolist())
                media = ctx.policy.generate(prompts, seeds[rows], self.settings.call)
                if number >= len(mine):
                    continue
                rewards.append(score(ctx, self.reward, media, prompts))
                if self.sights is not None:
                    seen.append(self.sights.see(media.pixels))
                if sum(map(len, shown)) < self.settings.grid:
                    shown.append(media)
        found = join(rewards)
        named = {"reward": found.value, **found.parts}
        scores = {name: ctx.world.gather(value)[: len(pairs)] for name, value in named.items()}
        features = None
        if self.sights is not None:
            first = self.sights.base is None
            scores |= self.sights.scores(ctx.world.gather(torch.cat(seen))[: len(pairs)])
            features = self.sights.base if first else None
        pixels = torch.cat([media.pixels for media in shown])[: min(self.settings.grid, len(pairs))]
        return Evaluated(texts, seeds, scores, Media(pixels, shown[0].fps), features)
