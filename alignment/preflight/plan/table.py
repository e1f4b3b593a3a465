"""A plan on the screen: three tables and a verdict."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from alignment.preflight.plan.plan import Plan
from alignment.reports.console import Console

BAR = 32
"""Characters of the longest bar."""

ROOM = 0.9
"""Share of a GPU's memory up to which a plan calls it comfortable: the driver, workspaces and gaps take some."""


def show(plan: Plan, console: Console) -> None:
    """Print `plan`."""
    setup = plan.setup
    path, kind = plan.pipeline
    among = f", networks in {plan.division.shard} parts" if plan.division.shard > 1 else ""
    among += f", {plan.division.context} share the tokens of a sample" if plan.division.context > 1 else ""
    console.print(
        f"[bold]{plan.name}[/]: {kind} {escape(path)}, {plan.rounds} denoising steps, latents "
        f"{' x '.join(map(str, plan.latent))}; one of {setup.gpus} {setup.gpu.name}{among}"
    )
    console.print(_networks(plan))
    console.print(_step(plan))
    if setup.gpus > 1:
        console.print(_traffic(plan))
    console.print(_memory(plan))
    console.print(_verdict(plan))
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _table(title: str, *headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 or not heading else "right", no_wrap=True)
    return table


def _networks(plan: Plan) -> Table:
    table = _table("\nparameters", "network", "class", "all", "trained", "weights")
    for n in plan.networks:
        trained = number(n.trained) if n.trained else ""
        table.add_row(n.name, n.kind, number(n.parameters), trained, size(n.bytes))
    return table


def _step(plan: Plan) -> Table:
    title = f"\none step, at {plan.setup.peak_fraction:.0%} of peak"
    table = _table(title, "part", "FLOPs", "seconds", "")
    most = max(plan.flops.values())
    for name, flops in plan.flops.items():
        table.add_row(name, number(flops), f"{plan.seconds[name]:.3g}", bar(flops, most))
    table.add_row("[bold]together", number(sum(plan.flops.values())), f"{sum(plan.seconds.values()):.3g}", "")
    return table


def _traffic(plan: Plan) -> Table:
    link = plan.setup.link
    table = _table(f"\nreceived from other GPUs, at {size(link)}/s, if none of it is hidden", "per", "bytes", "seconds")
    for name, taken in (
        ("network call, sampling", plan.traffic.sampling),
        ("network call, learning", plan.traffic.learning),
        ("row and round, its tokens, sampling", plan.traffic.row_sampling),
        ("row and round, its tokens, learning", plan.traffic.row_learning),
        ("step", plan.traffic.step),
    ):
        if taken:
            table.add_row(name, size(taken), f"{taken / link:.3g}")
    return table


def _memory(plan: Plan) -> Table:
    parts = plan.memory[plan.peak_phase]
    table = _table(f"\nmemory at its peak, {plan.peak_phase}", "part", "bytes", "")
    for name, taken in sorted(parts.items(), key=lambda pair: -pair[1]):
        table.add_row(name, size(taken), bar(taken, max(parts.values())))
    table.add_row("[bold]together", size(plan.peak_bytes), "")
    return table


def _verdict(plan: Plan) -> str:
    there, share = plan.setup.gpu.memory, plan.peak_bytes / plan.setup.gpu.memory
    phases = ", ".join(f"{phase} {size(sum(parts.values()))}" for phase, parts in _ordered(plan.memory))
    fits = "[green]fits[/]" if share < ROOM else "[yellow]fits barely[/]"
    word = fits if share <= 1 else "[bold red]does not fit[/]"
    return f"\n{word}: {size(plan.peak_bytes)} of {size(there)} ({share:.0%}). By phase: {phases}"


def _ordered(memory: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    order = ("loading", "encode", "rollout", "decode", "update", "optimizer step")
    return [(phase, memory[phase]) for phase in order if phase in memory]


def bar(value: float, most: float) -> str:
    """Return a bar as long as `value` is of `most`."""
    eighths = round(8 * BAR * value / most) if most else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def size(taken: float) -> str:
    """Return bytes for people, in powers of 1000 as data sheets have them."""
    return f"{number(taken)}B".replace(" B", " B") if taken >= 1000 else f"{taken:.0f} B"


def number(value: float) -> str:
    """Return a number with three digits and a letter for its power of 1000."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {letter}"
    return f"{value:.3g}"
