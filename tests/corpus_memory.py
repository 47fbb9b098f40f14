"""Clean a corpus in a process that may hold less than it: `python tests/corpus_memory.py IN OUT BYTES`; prints what reading it at once
does."""

import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from corpus_works import clean

from qianyi.corpus.document import side_files

if __name__ == "__main__":
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    held = (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")).split()[1])
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]),) * 2)
    clean(corpus, out)
    try:
        pa.concat_tables([pq.read_table(part) for part in side_files(corpus, "parts")])
    except MemoryError:
        print("does not fit")
