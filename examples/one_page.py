"""A whole method on one page: SDE-GRPO with one branching step, on any diffusers pipeline, without the library's loop.

    python examples/one_page.py [STEPS]

Each step: run the ODE to one early state a prompt, draw G actions there, finish each by ODE, score the pictures, and
push the denoiser's output towards the actions that did better than their group. `quickstart` is this
method with averaging, evaluation, checkpoints and a report around it.
"""

from __future__ import annotations

import sys

import torch

from alignment.credit.advantages.batch_norm import BatchNorm
from alignment.data.prompts import read_prompts
from alignment.data.random_streams import Draw
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from reward_models.base import Media
from reward_models.verifiers.shapes import Shapes
from samplers import Conductor, Native, Skip, Step, observe_prefix
from samplers.dynamics.flow_sde import FlowSDE

PROMPTS, ACTIONS, BRANCH = 8, 16, 1
CALL = {"height": 32, "width": 32, "num_inference_steps": 6, "max_sequence_length": 12}


def main(steps: int) -> None:
    """Train for `steps` steps and print the mean reward of each."""
    spec = PolicySpec("assets/tiny_flux", call=CALL, lora=Lora(rank=32, merge=True), autocast="bfloat16")
    prompts, draw = read_prompts("assets/prompts/shapes_train.txt"), Draw(seed=0)
    policy = load_policy(spec, device=torch.device("cpu"), seed=0)
    prepare(policy, prompts.texts)
    scorer, advantage = Shapes().load(device=policy.device), BatchNorm()
    optimizer = torch.optim.AdamW(policy.trainable.values(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)

    for step in range(steps):
        groups = prompts.at(step, PROMPTS, draw)
        texts = tuple(text for text in groups.prompts for _ in range(ACTIONS))
        seeds = draw.keys("initial noise", groups.ids)
        ids = (groups.ids[:, None] * ACTIONS + torch.arange(ACTIONS)).flatten()

        # One state a prompt, G actions from it: x' = a x + b v + std z.
        x, v, grid = observe_prefix(policy.call, groups.prompts, seeds, BRANCH, policy.rounds)
        rule: Step = FlowSDE(a=0.7).step(grid, BRANCH, BRANCH + 1)
        z = draw.normal("action", ids, BRANCH, x.shape[1:]).unflatten(0, (PROMPTS, ACTIONS))
        x_next = rule.sample(x[:, None], v[:, None], z).flatten(0, 1)

        # The rest of the way is the pipeline's own; rounds before the branch only hand over the state.
        finish = Conductor([*[Skip()] * BRANCH, Skip(x_next), *[Native()] * (policy.rounds - BRANCH - 1)])
        pixels = policy.call(finish, texts, seeds.repeat_interleave(ACTIONS), pixels=True)
        assert pixels is not None
        rewards = scorer(media=Media(pixels.float()), prompts=texts)
        credit = advantage(rewards, groups.ids.repeat_interleave(ACTIONS)).view(PROMPTS, ACTIONS, 1, 1)

        # d(-A log p)/dv = -A z b / std for each action; all share v, so the group is one backward pass. Dividing by
        # |b| / std (b < 0) leaves A z.
        pull = (credit * z).mean(dim=1)
        visit(policy, groups.prompts, seeds, x, pull / pull[0].numel() / PROMPTS)
        torch.nn.utils.clip_grad_norm_(policy.trainable.values(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: reward {rewards.value.mean():.3f}, strict {rewards.parts['strict'].mean():.3f}")


def visit(policy: Policy, prompts: tuple[str, ...], seeds: torch.Tensor, x: torch.Tensor, pull: torch.Tensor) -> None:
    """Run the denoiser at the branching states with gradient and send `pull` back through it."""
    from alignment.data.batches import Batch

    ids = torch.arange(len(prompts))
    batch = Batch(prompts, seeds, ids, torch.zeros_like(ids))
    t = torch.full((len(prompts),), 1 - BRANCH / CALL["num_inference_steps"])
    policy.visit(batch, [(x.float(), t)], lambda k, v: (v.float() * pull).sum().backward(), grad=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
