"""Which queries a refresh has to look at: those whose rows changed since the last complete refresh of the table.

Belongs here: the note that a complete refresh leaves behind for the next, what follows from it, and
narrowing a SELECT to some queries. Does not belong here: what changed (storage/changes.py) or what is to be done
(storage/plan.py).

Whoever asks for a scope by query promises that what is made for a query depends on that query's rows alone, in each of
the tables that are read. Without the promise it is all or nothing: nothing where no table changed that is read.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from storage.changes import Commit, changed_rows, commits_after
from storage.lake import Lake, Transaction, parsed_nodes
from storage.notes import read_note, write_note
from storage.recipe import Recipe
from storage.tables import LAKE, Table, quoted

_KIND = "refresh"
_QUERY = "query_id"
NARROW = 0.2
"""Where a larger share of a table's rows changed, looking at all of them costs less."""


@dataclass(frozen=True)
class Scope:
    """The queries to be looked at: an Arrow table with the column query_id; None stands for all queries."""

    queries: pa.Table | None

    @property
    def everything(self) -> bool:
        return self.queries is None

    @property
    def nothing(self) -> bool:
        return self.queries is not None and self.queries.num_rows == 0

    def narrowed(self, sql: str, tables: Iterable[str]) -> str:
        """The same SELECT, reading of these tables (qualified names) the rows of these queries only. The relation
        `scope` must be there when it is run: `queries` above."""
        if self.everything:
            return sql
        for name in tables:
            sql = sql.replace(name, self.rows_of(name))
        return sql

    def rows_of(self, name: str) -> str:
        """The rows of one table (qualified name) that belong to these queries, in parentheses."""
        return name if self.everything else f"(FROM {name} SEMI JOIN scope USING ({quoted(_QUERY)}))"


def read_narrowed(lake: Lake, sql: str, tables: Iterable[Table], scope: Scope) -> pa.Table:
    """The answer of a SELECT that reads these tables, for the queries of the scope."""
    relations = {} if scope.queries is None else {"scope": scope.queries}
    return lake.query(scope.narrowed(sql, [table.qualified for table in tables]), **relations)


EVERYTHING = Scope(None)
NOTHING = Scope(pa.table({_QUERY: pa.array([], pa.string())}))


def tables_read(reader: Transaction, sql: str) -> frozenset[str]:
    """Qualified names of the tables that a SELECT reads; none for a statement that is no SELECT."""
    (parsed,) = reader.query("SELECT json_serialize_sql(?::VARCHAR) AS tree", [sql])["tree"].to_pylist()
    names = [
        (node["catalog_name"] or LAKE, node["schema_name"] or "main", node["table_name"])
        for node in parsed_nodes(json.loads(parsed))
        if node.get("type") == "BASE_TABLE"
    ]
    return frozenset(".".join(quoted(part) for part in name) for name in names)


def scope_of(
    reader: Transaction, table: Table, reads: Iterable[str], recipe: Recipe, asked: str, *, by_query: bool
) -> Scope:
    """What has to be looked at, to bring a table up to date that is made from the tables `reads` (qualified names).

    `asked`: content id of whatever else the inputs were asked for with, such as the text of a SELECT.
    """
    last = read_note(reader, _KIND, table.label)
    if last is None or (last["recipe"], last["inputs"]) != (recipe.id, asked):
        return EVERYTHING
    commits = commits_after(reader, min(last["saw"], last["left_at"]))
    if commits is None or _wrote(commits, table.qualified, last["left_at"]):
        return EVERYTHING
    changed = {name for name in reads if _wrote(commits, name, last["saw"])}
    if not changed:
        return NOTHING
    since = [commit for commit in commits if commit.snapshot > last["saw"]]
    return _queries_changed(reader, table, changed, since) if by_query else EVERYTHING


def note_refresh(lake: Lake, table: Table, recipe: Recipe, asked: str, *, saw: int, mark: str) -> None:
    """Leave behind that the table is complete for the inputs as they were at the snapshot `saw`; unless some commit
    since then has written to the table without our `mark` in its message."""
    with lake.reading() as cursor:
        reader = Transaction(cursor)
        commits, left_at = commits_after(reader, saw), reader.snapshot()
    if commits is None or any(
        table.qualified in commit.tables and commit.message.get("refresh") != mark for commit in commits
    ):
        return
    write_note(lake, _KIND, table.label, {"recipe": recipe.id, "inputs": asked, "saw": saw, "left_at": left_at})


def _wrote(commits: Iterable[Commit], name: str, after: int) -> bool:
    return any(name in commit.tables for commit in commits if commit.snapshot > after)


def _queries_changed(reader: Transaction, table: Table, names: Iterable[str], commits: Sequence[Commit]) -> Scope:
    """The queries of all rows that came or went in the tables."""
    if any(_QUERY not in reader.columns(name) for name in (*names, table.qualified)):
        return EVERYTHING
    changed = [changed_rows(name, quoted(_QUERY), commits) for name in names]
    if None in changed:
        return EVERYTHING
    queries = reader.query(" UNION ".join(sql for pair in changed if pair for sql in pair))
    rows = reader.query(f"SELECT count(*) AS n FROM {table.qualified}")["n"][0].as_py()
    return EVERYTHING if queries.num_rows > NARROW * rows else Scope(queries)
