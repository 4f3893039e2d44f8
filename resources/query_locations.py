"""Where query files lie: paths, patterns of paths, and files of datasets on the Hugging Face hub.

Belongs here: finding the files that a profile names, and fetching them. Does not belong here: reading them
(storage/query_files.py).
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path

HUB = "hf://datasets/"
HUB_FORM = f"{HUB}OWNER/NAME[@REVISION]/PATH"


class NoQueryFile(OSError):
    """A profile names query files that are not there, or cannot be fetched."""


def located(names: Sequence[str]) -> list[Path]:
    """The files that these names stand for, each once, in the order of the names.

    A name is a path, a pattern with `*`, `?` or `**` for paths, or `hf://datasets/OWNER/NAME[@REVISION]/PATH`, whose
    PATH may be a pattern, too; such files are fetched into the hub's cache, and again when they have changed there.
    Raises NoQueryFile if a pattern matches nothing or a file cannot be fetched. That a plain path is there is not
    looked at.
    """
    return list(dict.fromkeys(file for name in names for file in _files(name)))


def _files(name: str) -> Iterator[Path]:
    if name.startswith(HUB):
        yield from _from_hub(name)
    elif has_magic(name):
        found = sorted(file for file in map(Path, glob(name, recursive=True)) if file.is_file())  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise NoQueryFile(f"queries.files: no file matches {name!r}")
        yield from found
    else:
        yield Path(name)


def _from_hub(name: str) -> Iterator[Path]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    owner, _, rest = name.removeprefix(HUB).partition("/")
    dataset, _, path = rest.partition("/")
    dataset, _, revision = dataset.partition("@")
    if not (owner and dataset and path):
        raise NoQueryFile(f"queries.files: {name!r} does not say which file: write {HUB_FORM}")
    repository, at = f"{owner}/{dataset}", revision or None
    try:
        paths = [path]
        if has_magic(path):
            listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=at)
            paths = sorted(file for file in listed if fnmatchcase(file, path))
            if not paths:
                raise NoQueryFile(f"queries.files: no file of the dataset {repository} matches {path!r}")
        for file in paths:
            yield Path(hf_hub_download(repository, file, repo_type="dataset", revision=at))
    except NoQueryFile:
        raise
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoQueryFile(f"queries.files: {name!r} cannot be fetched: {first}") from error
