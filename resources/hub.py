"""The Hugging Face hub: sending a folder there, when somebody asks for it.

Belongs here: the token, the repository, the upload, and what is said when one of them fails. Does not belong here:
what a folder holds (vpo_assets/publishing).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["model", "dataset"]
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 (the name of a variable)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


class HubError(RuntimeError):
    """A folder that could not be sent; says why, and never holds the token."""


def checked_repository(name: str) -> str:
    """A repository as owner/name. Raises HubError."""
    if not _REPOSITORY.fullmatch(name):
        raise HubError(f"--repo {name[:100]!r}: name a repository as owner/name, of letters, digits, - _ .")
    return name


def token() -> str:
    """The token of the environment. Raises HubError if there is none."""
    found = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not found:
        raise HubError(f"{TOKEN_VARIABLE} is not set: a token that may write is needed to push")
    return found


def push(folder: Path, repository: str, kind: Kind, *, message: str, public: bool = False) -> str:
    """Send a folder to a repository, which is made if it is not there, private unless `public`. The address of the
    commit. A repository that others can see is not written to unless `public`. Raises HubError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    secret = token()
    api = HfApi(token=secret)
    try:
        api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository, repo_type=kind).private:
            raise HubError(f"the {kind} repository {repository} is public: push with --public, or name another")
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, repo_type=kind, commit_message=message, delete_patterns=["*"]
        )
    except HubError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(secret, "***")
        raise HubError(f"the {kind} {repository} could not be pushed: {said}") from None
    return str(commit.commit_url)


def uploaded(files: Mapping[str, int]) -> list[dict[str, Any]]:
    """What a push would send, for people: file and size."""
    return [{"file": name, "size": _size(size)} for name, size in files.items()] + [
        {"file": f"{len(files)} files", "size": _size(sum(files.values()))}
    ]


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
