"""Every pipeline of the zoo through the same checks, those of `visalign doctor --pipeline`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from alignment.preflight.doctor import examine
from alignment.preflight.doctor.laws_of_the_pipeline import CHECKS
from alignment.preflight.doctor.subject import Subject
from tests.pipelines import table
from tests.pipelines.zoo import ZOO, Member

pytestmark = pytest.mark.slow  # five minutes on two processes

ENOUGH = 28
"""Pipelines that pass every check, at least."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_pipeline_conforms(
    member: Member, subject: Subject, check: examine.Law, record_property: Callable[[str, object], None]
) -> None:
    before = examine.fingerprint(subject.trainer)
    finding = examine.look(check, subject)
    reason = member.cannot.get(check.__name__)
    mark = table.PASSED if reason is None else table.REFUSED
    record_property("cell", [member.name, type(member.pipe).__name__, finding.law, mark, reason or ""])
    assert (finding.outcome == "pass") == (reason is None), finding
    assert reason is None or reason in (finding.cause or finding.says), finding
    assert examine.fingerprint(subject.trainer) == before
    assert "WRITE_TABLE" in os.environ or table.read()[member.name, finding.law] == mark


@pytest.mark.skipif("WRITE_TABLE" in os.environ, reason="the table is being written")
def test_the_table_has_a_row_a_pipeline_and_a_column_a_check() -> None:
    assert table.read().keys() == {(name, column) for name in ZOO for column in table.COLUMNS}


def test_enough_pipelines_pass_every_check() -> None:
    refused = {name for (name, _), mark in table.read().items() if mark != table.PASSED}
    assert len(ZOO.keys() - refused) >= ENOUGH


@pytest.mark.parametrize("member", ["motif_i2v"], indirect=True)
def test_a_text_encoder_that_also_sees_stays(member: Member, subject: Subject) -> None:
    """Without it this pipeline would work on, and its network would never see the picture."""
    prepared = subject.trainer.policy.prepared
    assert prepared is not None
    assert prepared.released == ()
    assert member.pipe.text_encoder is not None
