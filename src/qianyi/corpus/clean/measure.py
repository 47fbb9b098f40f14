"""A batch of documents made clean and measured: text repaired, secrets masked, all columns added; nothing is dropped."""

import numpy as np
import pyarrow as pa

from qianyi.corpus.clean.language import languages
from qianyi.corpus.clean.pii import mask
from qianyi.corpus.clean.repair import repair
from qianyi.corpus.clean.variants import script_variant, variants
from qianyi.corpus.kernels.statistics import statistics


def measure(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Repair and measure.

    Returns:
        The batch with `stat_*` and `label_*` columns after its own (in place of columns of the same names), and counts: documents repaired,
        documents masked, and what was masked by kind.
    """
    texts, repaired = repair(batch.column("text"))
    texts, found = mask(texts)
    measured = statistics(texts, *variants())
    added = [measured, found, languages(texts, measured)]
    columns = {name: batch.column(name) for name in batch.schema.names} | {"text": texts}
    columns |= {name: piece.column(name) for piece in added for name in piece.schema.names}
    columns["label_script_variant"] = script_variant(measured)
    sums = {name.removeprefix("stat_"): int(found.column(name).to_numpy().sum()) for name in found.schema.names}
    masked = sum(found.column(name).to_numpy() for name in found.schema.names)
    counts = {"repaired": int(repaired.sum()), "masked": int(np.count_nonzero(masked)), **sums}
    return pa.RecordBatch.from_pydict(columns), counts
