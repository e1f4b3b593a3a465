"""The launcher's door: `accelerate launch -m alignment.train CONFIG` and torchrun start processes here."""

from __future__ import annotations

import sys

from alignment.cli import main as cli

if __name__ == "__main__":
    sys.exit(cli.run(["train", *sys.argv[1:]]))
if __name__ == "alignment.train":  # imported: `alignment.train` stays the function of that name
    from alignment.api import train

    sys.modules[__name__] = train  # pyright: ignore[reportArgumentType]  # import takes what stands here
