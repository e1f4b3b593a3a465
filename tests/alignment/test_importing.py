"""While libraries are imported nothing looks for garbage, and a command warns of none that it did not ask for."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from alignment.importing import importing

ROOT = Path(__file__).parents[2]
SCRIPT = """
import gc, logging, warnings
from alignment.importing import importing
from alignment.cli.warned import warned_plainly
said = logging.getLogger("torch.utils._pytree")
with warned_plainly():
    with importing():
        said.warning("unasked")
        said.error("told")
        import json.tool
        print(gc.isenabled(), gc.get_freeze_count())
    print(gc.isenabled(), gc.get_freeze_count() > 0)
said.warning("afterwards")
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
