"""Clean or deduplicate a corpus in a process that may hold less than it: `python tests/corpus_memory.py clean|dedup IN OUT BYTES`; prints
what reading it at once does."""

import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from corpus_works import clean
from dedup_corpora import DOCUMENTS

from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.document import side_files

if __name__ == "__main__":
    corpus, out = Path(sys.argv[2]), Path(sys.argv[3])
    held = (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")).split()[1])
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[4]),) * 2)
    if sys.argv[1] == "clean":
        clean(corpus, out, 20_000)
    else:
        dedup([corpus], out, DOCUMENTS.model_copy(update={"sample_documents": 50}))
    try:
        pa.concat_tables([pq.read_table(part) for part in side_files(corpus, "parts")])
    except MemoryError:
        print("does not fit")
