"""Ray Data: `ray.data.read_datasource(MilvusOffline("/mnt/milvus", collection="faces"))`. Needs `milvus-offline[ray]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from ..arrow import arrow_schema
from ..errors import pip_install
from .table import Part, open_table

try:
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask
except ImportError as e:
    raise ImportError(f"this module needs the package ray: {pip_install('ray')} ({e})") from e


class MilvusOffline(Datasource):  # type: ignore[misc]
    """The live rows of one collection, wherever they lie; every machine of the cluster must see the store's files.

    `collection` may be left out where there is only one; `partition` is a name or a glob; `store` are keyword arguments of
    open_store (`catalog`, `wal`, …). Columns: `id`, `vector`, the attributes, `partition` (`milvus_offline.arrow`).
    `findings` is what was found when it was opened; what is lost or in doubt is logged as a warning, too.
    """

    def __init__(
        self, path: str | os.PathLike[str], collection: str | None = None, partition: str | None = None, **store: Any
    ) -> None:
        super().__init__()
        self._table = open_table(path, collection, partition, store)
        self.findings = self._table.findings
        self._table.warn()

    def get_name(self) -> str:
        return "Milvus1"

    def estimate_inmemory_data_size(self) -> int:
        return self._table.bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """A task for each part."""
        schema = arrow_schema(self._table.schema, partition=True)
        return [
            ReadTask(
                _reading(part),
                BlockMetadata(num_rows=part.rows, size_bytes=part.bytes, exec_stats=None, input_files=None),
                schema=schema,
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._table.parts(parallelism)
        ]


def _reading(part: Part) -> Callable[[], Iterator[Any]]:
    def read() -> Iterator[Any]:
        import pyarrow as pa

        schema = arrow_schema(part.schema, partition=True)
        found = False
        for batch in part.batches():
            found = True
            yield pa.Table.from_batches([batch], schema)
        if not found:
            yield schema.empty_table()

    return read
