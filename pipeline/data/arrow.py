"""The rows of an Arrow table whose files are memory-mapped: any row is read without the others."""

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

STATE = "state.json"
"""File in which Hugging Face `datasets` lists the files of a table."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A table of encoded images, which a process that receives it opens from its files."""

    table: pa.Table
    """The column `image` has structures whose `bytes` are an image file."""
    files: tuple[Path, ...] = ()
    """The files that are mapped; none if the table is in memory."""

    def __len__(self) -> int:
        return self.table.num_rows

    def __reduce__(self) -> tuple[Callable[..., "Rows"], tuple[Any, ...]]:
        return (_open, (self.files,)) if self.files else (Rows, (self.table,))

    def has(self, column: str) -> bool:
        """Whether there is a column of this name."""
        return column in self.table.column_names

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return self.table[name].to_pylist()

    def value(self, name: str, row: int) -> Any:
        """The value of a column in one row."""
        return self.table[name][row].as_py()

    def encoded(self, row: int) -> bytes:
        """The image file of one row."""
        starts, parts = self._encoded
        row = range(len(self))[row]
        part = bisect_right(starts, row) - 1
        return parts[part][row - starts[part]].as_py()

    @cached_property
    def _encoded(self) -> tuple[list[int], list[pa.BinaryArray]]:
        """The first row of each part of the table, and the image files of the part."""
        parts = [part.field("bytes") for part in self.table["image"].chunks if len(part)]
        return [0, *accumulate(map(len, parts))][:-1], parts

    def select(self, rows: Sequence[int] | Int64[np.ndarray, " some"]) -> "Rows":
        """Some rows, as a table in memory."""
        # One by one: together, Arrow would first join all parts of the table, in at most 2 GiB.
        first = pa.array([0])
        chosen = (self.table.slice(int(row), 1).take(first) for row in rows)
        return Rows(pa.concat_tables([self.table.slice(0, 0), *chosen]))

    def followed_by(self, others: "Rows") -> "Rows":
        """These rows, followed by others with the same columns."""
        files = (*self.files, *others.files) if self.files and others.files else ()
        return Rows(pa.concat_tables([self.table, others.table]), files)


def read(folder: Path) -> Rows:
    """Open a table that Hugging Face `datasets` has written to a folder."""
    state = json.loads((folder / STATE).read_text())
    return _open(tuple(folder / file["filename"] for file in state["_data_files"]))


def _open(files: Sequence[Path]) -> Rows:
    tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
    return Rows(pa.concat_tables(tables), tuple(files))
