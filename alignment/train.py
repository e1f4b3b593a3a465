"""The launcher's door: `accelerate launch -m alignment.train CONFIG` and torchrun start processes here."""

from __future__ import annotations

import sys

from alignment.cli import main as cli

if __name__ == "__main__":
    sys.exit(cli.run(["train", *sys.argv[1:]]))
