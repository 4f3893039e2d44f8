"""A Hugging Face hub that keeps what it is sent in memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

TOKEN = "hf_a-very-secret-token"


class StandInHub:
    """Stands for `HfApi`: called with a token it is the client."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, Any]] = {}
        self.token: str | None = None
        self.fails: Exception | None = None

    def __call__(self, *, token: str) -> "StandInHub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        if self.fails:
            raise self.fails
        assert exist_ok
        self.repositories.setdefault((repo_type, repo_id), {"private": private, "files": []})

    def repo_info(self, repo_id: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.repositories[repo_type, repo_id]["private"])

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, repo_type: str, commit_message: str, delete_patterns: list[str]
    ) -> SimpleNamespace:
        assert commit_message
        assert delete_patterns == ["*"]
        files = sorted(f.relative_to(folder_path).as_posix() for f in Path(folder_path).rglob("*") if f.is_file())
        self.repositories[repo_type, repo_id]["files"] = files
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")
