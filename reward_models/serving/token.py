"""The secret that a reward server and its clients share: from a file or the environment, never from a command line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from reward_models.base import RewardError
from reward_models.loading.whole_files import read_whole

TOKEN = "VISALIGN_REWARD_TOKEN"
"""Environment variable that holds the token where no file is named."""
SHORTEST = 16
"""Characters; shorter ones can be guessed."""


def token_of(file: str | None) -> str | None:
    """Return the token of a file, or of the environment where there is none.

    Raises:
        RewardError: If the file cannot be read, others may read it, or it holds no token.
    """
    if file is None:
        token, where = os.environ.get(TOKEN), TOKEN
    else:
        try:
            if stat.S_IMODE(Path(file).stat().st_mode) & 0o077:
                raise RewardError(f"others may read the token in {file}; chmod 600 {file}")
            token, where = read_whole(file).decode("utf-8").strip(), file
        except (OSError, UnicodeDecodeError) as error:
            raise RewardError(f"the token file {file} cannot be read: {error}") from error
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise RewardError(
            f"{where} holds no token: expected at least {SHORTEST} printable ASCII characters without spaces"
        )
    return token
