"""Other runs at work on the same table at the same time: noticing them, and sharing the work with them.

Here: what a refresh has to know of others. What it does about it is in `storage.refresh`. No run waits for another:
each looks into the commits since its last look, which costs the same however large the table is, and asks for the rows
themselves only if another run was at work.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import uuid
from collections.abc import Collection

import pyarrow as pa

from storage.lake import Lake, Transaction
from storage.recipe import Recipe
from storage.tables import Table


class OtherRuns:
    """What other runs have committed to a table since this object was made.

    `mark` goes into the message of each of our own commits as ``refresh``, so that they are told from others'.
    """

    def __init__(self, lake: Lake, table: Table, recipe: Recipe) -> None:
        self._lake = lake
        self._table = table
        self._recipe = recipe
        self.mark = uuid.uuid4().hex
        self.since = lake.snapshot()
        self._seen = self.since
        self.met = False

    def look(self, reader: Transaction | Lake) -> bool:
        """Whether any other run has committed to the table by now. Once met, always met."""
        commits = self._lake.commits_since(self._seen, reader)
        for snapshot, message in commits:
            self._seen = max(self._seen, snapshot)
            if message.get("asset") == self._table.label and message.get("refresh") != self.mark:
                self.met = True
        return self.met

    def done(self, reader: Transaction | Lake, input_ids: Collection[str]) -> set[str]:
        """Those of the inputs that have a row of our recipe now."""
        return self._with_row(reader, input_ids, self._table.qualified)

    def there_before(self, reader: Transaction | Lake, input_ids: Collection[str]) -> set[str]:
        """Those of the inputs that had a row of our recipe when we began."""
        return self._with_row(reader, input_ids, f"{self._table.qualified} AT (VERSION => {self.since})")

    def _with_row(self, reader: Transaction | Lake, input_ids: Collection[str], rows: str) -> set[str]:
        found = reader.query(
            f"SELECT input_id FROM {rows} WHERE recipe = ? AND input_id IN (SELECT input_id FROM asked)",
            [self._recipe.id],
            asked=pa.table({"input_id": pa.array(list(input_ids), pa.string())}),
        )
        return set(found["input_id"].to_pylist())
