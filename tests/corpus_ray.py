"""Stages on the Ray cluster that RAY_ADDRESS names, all in one process: `python tests/corpus_ray.py DIRECTORY`.

Makes DIRECTORY/ray of units that do nothing much and DIRECTORY/dedup of the corpus DIRECTORY/in; prints the error of a unit that refuses.
"""

import sys
from pathlib import Path

from corpus_works import misbehave
from dedup_corpora import DOCUMENTS

from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.parts import Options, run_parts
from qianyi.errors import DataError

if __name__ == "__main__":
    root, two = Path(sys.argv[1]), Options(workers=2)
    run_parts(root / "ray", "misbehave", {}, [{"number": i} for i in range(9)], misbehave, [], two)
    dedup([root / "in"], root / "dedup", DOCUMENTS, options=two)
    try:
        run_parts(root / "refused", "misbehave", {}, [{"number": 0}, {"number": 1, "do": "refuse"}], misbehave, [], two)
    except DataError as error:
        print(error)
