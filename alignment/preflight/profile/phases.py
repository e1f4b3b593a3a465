"""Which operators took the time of which phase, from the spans that a profiler saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from alignment.sources.credited import PHASE


@dataclass(frozen=True)
class Span:
    """A call of an operator, or a phase.

    Attributes:
        name: Its name; that of a phase begins with `PHASE`.
        start: Seconds from when the profiler began.
        end: The same.
        own: Seconds that were its own and not those of operators it called: of the accelerator where there is one.
        thread: On which thread of the process.
    """

    name: str
    start: float
    end: float
    own: float
    thread: int

    @property
    def phase(self) -> str | None:
        """The name of the phase that it is; None for an operator."""
        return self.name.removeprefix(PHASE) if self.name.startswith(PHASE) else None


@dataclass
class Spent:
    """What an operator took in a phase.

    Attributes:
        calls: How often it was called.
        seconds: Its own time.
    """

    calls: int = 0
    seconds: float = 0.0


@dataclass
class Phase:
    """Where the time of a phase went.

    Attributes:
        seconds: From beginning to end, without phases within it.
        operators: By name.
    """

    seconds: float = 0.0
    operators: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))

    def largest(self, count: int) -> list[tuple[str, Spent]]:
        """Return the operators that took most, most first."""
        return sorted(self.operators.items(), key=lambda item: -item[1].seconds)[:count]


def by_phase(spans: Iterable[Span]) -> Mapping[str, Phase]:
    """Return each phase that was met, with its operators; the one that took most comes first.

    An operator belongs to the innermost phase it began in on its own thread, or, on a thread without phases (those of
    backward passes), to the one that was open on the thread with most. What no phase held is left out.
    """
    of_thread: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        of_thread[span.thread].append(span)
    phases = {thread: [i for i in found if i.phase is not None] for thread, found in of_thread.items()}
    main = max(phases, key=lambda thread: len(phases[thread]), default=None)
    found: dict[str, Phase] = defaultdict(Phase)
    for thread, mine in of_thread.items():
        operators = [span for span in mine if span.phase is None]
        for span, stack in _stacks([*(phases[thread] or phases.get(main or 0, [])), *operators]):
            if span.phase is not None:
                if phases[thread]:  # else it is counted on its own thread
                    found[span.phase].seconds += span.end - span.start
                    if stack:
                        found[stack[-1].phase or ""].seconds -= span.end - span.start
            elif stack:
                spent = found[stack[-1].phase or ""].operators[span.name]
                spent.calls += 1
                spent.seconds += span.own
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def _stacks(spans: Sequence[Span]) -> Iterator[tuple[Span, list[Span]]]:
    """Yield each span with the phases that were open when it began, outermost first."""
    stack: list[Span] = []
    for span in sorted(spans, key=lambda i: (i.start, i.phase is None, -i.end)):
        while stack and stack[-1].end <= span.start:
            stack.pop()
        yield span, stack
        if span.phase is not None:
            stack.append(span)
