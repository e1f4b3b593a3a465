"""While libraries are imported nothing looks for garbage, and nobody is warned of a library that was not asked for."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from alignment.cli.importing import importing

ROOT = Path(__file__).parents[3]
SCRIPT = """
import gc, logging
from alignment.cli.importing import importing
said = logging.getLogger("torch.utils._pytree")
with importing():
    said.warning("unasked")
    said.error("told")
    import json.tool
    print(gc.isenabled(), gc.get_freeze_count())
said.warning("afterwards")
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


def test_libraries_are_imported_without_the_collector_and_stay_out_of_its_sight() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0", "True", "True"]
    assert done.stderr.split() == ["told", "afterwards"]


def test_a_program_that_has_imported_them_keeps_its_collector_as_it_is() -> None:
    assert "torch" in sys.modules  # as in every process of the suite
    before = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
