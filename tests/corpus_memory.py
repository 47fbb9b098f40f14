"""Clean and deduplicate a corpus in a process that may hold less than it: `python tests/corpus_memory.py IN OUT BYTES`; prints what
reading it at once does. Buckets of keys are made smaller in the measure of the corpus."""

import resource
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from corpus_works import clean
from dedup_corpora import DOCUMENTS

from qianyi.corpus.buckets import buckets_for
from qianyi.corpus.dedup import stage
from qianyi.corpus.document import side_files

if __name__ == "__main__":
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    held = (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")).split()[1])
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]),) * 2)
    clean(corpus, out / "clean")
    stage.buckets_for = partial(buckets_for, bucket_bytes=4_000_000)
    stage.dedup([corpus], out / "dedup", DOCUMENTS)
    try:
        pa.concat_tables([pq.read_table(part) for part in side_files(corpus, "parts")])
    except MemoryError:
        print("does not fit")
