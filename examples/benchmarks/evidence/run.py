"""Run the evidence tasks and write docs/evidence.md: `python -m examples.benchmarks.evidence.run [--only local ...]`.

A run that is finished is not run again; a task's rows may be run alone. The verdicts follow from the rows of the page.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from examples.benchmarks import recipes
from examples.benchmarks.evidence import tasks
from examples.benchmarks.evidence.claims import read_claims, write_claims

HERE = Path(__file__).parent.relative_to(Path(__file__).parents[3])
PAGE = Path("docs/evidence.md")
SIDE_BY_SIDE = Path("docs/algorithms_bench.md")
FOLDER = Path("runs/evidence")


@dataclass(frozen=True)
class Task:
    """One task, and who is compared on it.

    Attributes:
        recipes: Names of configs in this folder.
        metric: What is gained.
    """

    recipes: tuple[str, ...]
    metric: str


TASKS = {
    "local": Task(("local_scalar", "local_vipo", "local_vipo_saliency"), "reward"),
    "whole": Task(("whole_scalar", "whole_vipo", "whole_vipo_prompt"), "strict"),
    "winners": Task(("winners_sft", "winners_dpo", "winners_seppo"), "reward"),
    "noisy": Task((*(f"noisy_{m}_{n}" for n in ("00", "20", "40") for m in ("dpo", "adpo")), "noisy_ipo_40"), "reward"),
    "dance": Task(("dance_true", "dance_equal", "dance_early", "dance_noise"), "strict"),
    "inner": Task(("inner_clip", "inner_spo"), "strict"),
    "sparse": Task(("sparse_branch", "sparse_dancegrpo", "sparse_bestofn", "sparse_nft"), "strict"),
    "conflict": Task(("conflict_sum", "conflict_gdpo", "conflict_chain"), "shapes"),
    "tied": Task(("tied_batch", "tied_group"), "strict"),
    "video": Task(("video_nft", "video_scalar", "video_vipo"), "direction"),
    "few": Task(("few_branch", "few_nft"), "strict"),
}
ONLINE = "online"
"""The task whose rows stand on the other page."""


def main() -> None:
    """Make the data, run what is not finished, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--recipes", nargs="+", default=[], help="of these tasks only these")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, a thread each")
    given = parser.parse_args()
    tasks.write(FOLDER / "data")
    for name in given.only:
        task = TASKS[name]
        files = [str(HERE / f"{recipe}.yaml") for recipe in task.recipes if recipe in (given.recipes or task.recipes)]
        if files:
            words = ["--own-steps", "--seeds", *"01234", "--threads", "1", "--parallel", str(given.parallel)]
            words += ["--metrics", task.metric, "--folder", str(FOLDER), "--table", str(PAGE), "--section", name]
            recipes.main([*files, *words])
    write_claims(
        PAGE, "claims", read_claims(HERE / "claims.yaml"), {**dict.fromkeys(TASKS, PAGE), ONLINE: SIDE_BY_SIDE}
    )


if __name__ == "__main__":
    main()
