"""Uploading an exported folder to the hub, where that was asked for."""

from __future__ import annotations

from pathlib import Path

from alignment.errors import ConfigError, EnvironmentProblem
from reward_models.foreign import first_line


def require_token(repository: str) -> None:
    """Refuse to begin where nothing can be uploaded.

    Args:
        repository: Its name on the hub.

    Raises:
        ConfigError: If no repository can be called so.
        EnvironmentProblem: If there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push: {str(error).rstrip('. ')}; expected OWNER/NAME") from error
    if get_token() is None:
        raise EnvironmentProblem("--push: there is no token for the hub; run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder into a repository, made private where there is none, and return its address.

    Raises:
        EnvironmentProblem: If the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        address = HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise EnvironmentProblem(f"--push: {repository} did not take {folder}, which is whole: {reason}") from error
    return str(address)
