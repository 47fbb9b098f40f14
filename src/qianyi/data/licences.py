"""What may not be used for everything: documents that their corpus marks `research_only`."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.data import builtin
from qianyi.data.read import source_files
from qianyi.errors import DataError

_COLUMN = "research_only"


def research_only_documents(path: str) -> int:
    """How many documents of a source are marked; only Parquet files with the column `research_only` (bool) have marks."""
    if path.startswith(builtin.PREFIX):
        return 0
    return sum(_marked(file) for file in source_files(path) if file.name.endswith(".parquet"))


def require_usable(research_only: Mapping[str, int], commercial: bool) -> None:
    """Refuse a recipe that says `data.commercial: true` and has documents that are for research alone.

    Raises:
        DataError: a source, and how many of its documents.
    """
    if not commercial:
        return
    for name, count in research_only.items():
        if count:
            raise DataError(
                f"data.sources.{name}: {count:,} documents are marked {_COLUMN}, and data.commercial is true; leave the source out, "
                f"or make a corpus without them (`{_COLUMN}` is a column of its parts)"
            )


def _marked(file: Path) -> int:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if _COLUMN not in names or not pa.types.is_boolean(table.schema_arrow.field(_COLUMN).type):
                return 0
            return sum(batch.column(0).to_pylist().count(True) for batch in table.iter_batches(columns=[_COLUMN]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
