"""Train once per line of arguments, in the processes that a launcher started; test_sharded_runs.py uses it.

Usage: torchrun --nproc_per_node N sharded_runs.py "CONFIG KEY=VALUE ... [--resume latest]" ...
"""

from __future__ import annotations

import sys

from alignment.config.load import checked
from alignment.training import session
from alignment.training.runtime.runtime import Runtime
from alignment.training.stopping import StopSignal

if __name__ == "__main__":
    for line in sys.argv[1:]:
        words, _, resume = line.partition(" --resume ")
        config, *overrides = words.split()
        run = checked(config, overrides)
        with StopSignal() as stop:  # the processes stay together from run to run
            runtime = Runtime(run, stop)
            with runtime.world.united():
                session.begin(run, runtime, stop, resume or None)
    runtime.close()
