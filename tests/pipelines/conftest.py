"""Each pipeline of the zoo is built and loaded once a process; the table of findings is written where asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:  # what takes seconds to import is imported where it is used, as in the folder above
    from alignment.preflight.doctor.subject import Subject
    from tests.pipelines.zoo import Member


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each pipeline of the zoo in turn to tests of a member that name none; those of one are in one process."""
    named = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "member" in metafunc.fixturenames and "member" not in named:
        from tests.pipelines.zoo import ZOO

        members = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ZOO]
        metafunc.parametrize("member", members, indirect=True, scope="session")


@pytest.fixture(scope="session")
def member(request: pytest.FixtureRequest) -> Member:
    """Return a pipeline of the zoo."""
    from tests.pipelines.zoo import built

    return built(request.param)


@pytest.fixture(scope="session")
def subject(member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Return what `visalign doctor --pipeline` examines, for a saved member of the zoo."""
    from alignment.config import build
    from alignment.preflight.doctor import examine
    from alignment.preflight.doctor.plain_run import plain_run
    from alignment.preflight.doctor.subject import Subject

    folder = tmp_path_factory.mktemp(member.name)
    member.pipe.save_pretrained(folder / "pipeline")
    (folder / "call.yaml").write_text(yaml.safe_dump(dict(member.call)))
    run = plain_run(str(folder / "pipeline"), [str(folder / "call.yaml")], [], folder)
    trainer, close = examine.load(run)
    yield Subject(trainer, build.resolved(run))
    close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the tables of docs/ where `WRITE_TABLE=1` asks for it; the make target gives this folder as an argument."""
    if "WRITE_TABLE" in os.environ:
        from tests.pipelines import format_table, table

        reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
        found = [dict(report.user_properties) for report in reports]
        table.write([table.Cell(*told["cell"]) for told in found if "cell" in told])
        format_table.write([told["formats"] for told in found if "formats" in told])
