"""Loading DuckDB's extensions without surprises: from the machine, from the PyPI package, or by installing.

Only how extension files are found and loaded; what they are for is in `storage.lake`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb


class ExtensionMissing(Exception):
    """A DuckDB extension could not be loaded from anywhere; says what to do."""


def load_extensions(connection: duckdb.DuckDBPyConnection, names: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Load each extension: from `folders`, else as DuckDB finds it, else from PyPI's package, else install.

    Raises ExtensionMissing.
    """
    for name in names:
        _load(connection, name, folders)


def _load(connection: duckdb.DuckDBPyConnection, name: str, folders: Sequence[Path]) -> None:
    tried: list[str] = []
    given = [f"LOAD '{_escaped(file)}'" for folder in folders for file in _files(folder, name)]
    packaged = [f"LOAD '{_escaped(file)}'" for file in _packaged_files(name)]
    for statement in (*given, f"LOAD {name}", *packaged, f"INSTALL {name}; LOAD {name}"):
        try:
            connection.execute(statement)
            return
        except duckdb.Error as error:
            tried.append(f"{statement}: {str(error).splitlines()[0]}")
    raise ExtensionMissing(
        f"DuckDB {duckdb.__version__} cannot load its extension {name}. Run `pip install "
        f"duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}`. Tried: " + "; ".join(tried)
    )


def _packaged_files(name: str) -> Iterator[Path]:
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    for location in (found.submodule_search_locations or ()) if found else ():
        yield from _files(Path(location), name)


def _files(folder: Path, name: str) -> Iterator[Path]:
    """Files of this DuckDB version only: another version refuses them."""
    for file in sorted(folder.rglob(f"{name}.duckdb_extension")):
        if f"v{duckdb.__version__}" in file.parts or file.parent == folder:
            yield file


def _escaped(file: Path) -> str:
    return str(file).replace("'", "''")
