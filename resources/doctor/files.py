"""Are the files there that the profile names?

Belongs here: queries, examples, templates, checklists. Does not belong here: weights (weights.py).
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ml import templates
from ml.drafting import UnusableExamples, load_examples
from resources.backend_settings import ChecklistFiles, OwnCodeSettings
from resources.checklist_files import load_checklist
from resources.doctor.findings import Finding, fault, ok, warning
from resources.outcome import Unavailable
from resources.settings import BUNDLED, Profile
from storage.query_files import SCORES, ColumnNames, GoodRow, UnreadableFile, read_query_file
from storage.take_down import load_take_down

ROWS_TRIED = 100


def check_files(profile: Profile) -> Iterator[Finding]:
    """A line for each file that decides what is made."""
    yield from _queries(profile)
    yield from _column_mapping(profile)
    if profile.queries.take_down:
        yield _take_down(profile.queries.take_down)
    if profile.drafts.examples != BUNDLED:
        yield _examples(Path(profile.drafts.examples))
    if profile.templates is not None:
        yield _templates(profile.templates)
    for name, target in profile.targets.items():
        source = getattr(target.video_reward, "checklist", None)
        if source is not None:
            yield _checklist(f"targets.{name}.video_reward.checklist", source)

    yield from _own_code(profile)


def _own_code(profile: Profile) -> Iterator[Finding]:
    """Files of the user's own backends: whether they are there; they are not run."""
    chosen: list[tuple[str, object]] = [("judge", profile.judge)]
    for name, target in profile.targets.items():
        chosen.append((f"targets.{name}.video_generator", target.video_generator))
        chosen.append((f"targets.{name}.video_reward", target.video_reward))
    for key, settings in chosen:
        if isinstance(settings, OwnCodeSettings):
            file = Path(settings.make.rpartition(":")[0]).expanduser().absolute()
            if file.is_file():
                yield ok(f"{key}.make", str(file))
            else:
                yield fault(f"{key}.make", f"there is no file {file}", "name it from the folder that vpo runs in")


def _queries(profile: Profile) -> Iterator[Finding]:
    names = profile.queries.files
    if not names:
        yield warning("queries.files", "none named: there is only what `vpo ingest` brought", "name your query files")
    for name in names:
        if name != BUNDLED:
            yield _query_file(Path(name), _names(profile))
        elif "shapes" in profile.targets:
            yield ok("queries.files", "bundled: the shapes world's queries")
        else:
            yield warning(
                "queries.files", "the bundled queries are of the shapes world", "name your own files in queries.files"
            )


def _names(profile: Profile) -> ColumnNames:
    return ColumnNames(mapped=profile.queries.columns)


def _query_file(file: Path, names: ColumnNames) -> Finding:
    remedy = "put your queries there, one a line, or name other files in queries.files (VPO_QUERIES__FILES='[\"...\"]')"
    try:
        rows = list(islice(read_query_file(file, names=names), ROWS_TRIED))
    except (UnreadableFile, OSError) as error:
        return fault("queries.files", " ".join(str(error).split()), remedy)
    good = sum(isinstance(row, GoodRow) for row in rows)
    if not good:
        return fault("queries.files", f"{file}: not one of its first {len(rows)} rows is a query", remedy)
    return ok("queries.files", f"{file}: readable")


def _column_mapping(profile: Profile) -> Iterator[Finding]:
    """A column that no named file has is a slip of the pen, or waits for a file of the inbox."""
    files = [Path(name) for name in profile.queries.files if name != BUNDLED]
    for what, column in profile.queries.columns.items() if files else ():
        key = f"queries.columns.{what}"
        if any(_has_column(file, what, column) for file in files):
            yield ok(key, f"column {column!r}")
        else:
            yield warning(key, f"no file of queries.files has a column {column!r}", "check its name")


def _has_column(file: Path, what: str, column: str) -> bool:
    """Whether the first rows of a readable file have a value in this column."""
    text = ColumnNames(text=column) if what == "text" else ColumnNames(mapped={what: column})
    try:
        rows = list(islice(read_query_file(file, names=text), ROWS_TRIED))
    except (UnreadableFile, OSError):
        return False
    if what == "text":
        return file.suffix.lower() != ".txt" and any(isinstance(row, GoodRow) for row in rows)
    usual = ColumnNames(mapped={what: "\x00"})  # the score's usual column is not the one that is named
    plain = list(islice(read_query_file(file, names=usual), ROWS_TRIED)) if column != what else []
    at = SCORES.index(what)
    found = [row.scores[at] for row in rows if isinstance(row, GoodRow)]
    before = [row.scores[at] for row in plain if isinstance(row, GoodRow)]
    return found != before and any(score is not None for score in found)


def _take_down(files: list[str]) -> Finding:
    try:
        listed = load_take_down([Path(file) for file in files])
    except (UnreadableFile, OSError) as error:
        return fault("queries.take_down", " ".join(str(error).split()), "a run stops at this: put the file there")
    return ok("queries.take_down", f"{len(listed.wordings)} queries in {len(files)} files")


def _examples(file: Path) -> Finding:
    try:
        return ok("drafts.examples", f"{file}: {len(load_examples(file))} examples")
    except (UnusableExamples, OSError) as error:
        return fault("drafts.examples", " ".join(str(error).split()), "correct the file, or set it to bundled")


def _templates(folder: Path) -> Finding:
    own = sorted(file.name for file in folder.glob("*.txt")) if folder.is_dir() else []
    if not own:
        return fault("templates", f"{folder}: no folder with *.txt files", "correct the folder, or leave templates out")
    shipped = {file.name for file in Path(templates.__file__).parent.glob("*.txt")}
    unknown = [name for name in own if name not in shipped]
    if unknown:
        return warning("templates", f"{unknown[0]} replaces none of {', '.join(sorted(shipped))}", "check its name")
    return ok("templates", f"{folder}: {', '.join(own)}")


def _checklist(key: str, source: ChecklistFiles | Path) -> Finding:
    try:
        checklist = load_checklist(source)
    except Unavailable as error:
        return fault(
            key, " ".join(str(error).split()), "VisionReward's files are at https://github.com/THUDM/VisionReward"
        )
    return ok(key, f"{checklist.name}: {len(checklist)} questions")


def writable(folder: Path) -> bool:
    """Whether files can be written into a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
