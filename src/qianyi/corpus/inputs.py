"""What a stage reads, by content."""

import hashlib
from pathlib import Path

from qianyi.corpus.document import corpus_manifest
from qianyi.data.stage import MANIFEST, Json, describe_files
from qianyi.errors import DataError


def describe_inputs(inputs: list[Path], before: Json | None) -> tuple[list[Json], dict[str, int]]:
    """Each input by its hash, and the times of files; a corpus directory is known by its manifest, which holds the hashes of its parts.

    Args:
        inputs: files and finished corpus directories.
        before: `inputs` and `input_times` of the last run: files of the same size and time are not read again.

    Raises:
        DataError: one is missing or not finished.
    """
    files = [path for path in inputs if not path.is_dir()]
    known = before and {
        "settings": {"inputs": [entry for entry in before["inputs"] if "file" in entry]},
        "input_times": before["input_times"],
    }
    described, times = describe_files(files, known)
    by_name = {entry["file"]: entry for entry in described}
    return [_corpus(path) if path.is_dir() else by_name[str(path)] for path in inputs], times


def _corpus(path: Path) -> Json:
    corpus_manifest(path)
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(f"{path / MANIFEST}: cannot be read: {error.strerror or error}") from None
    return {"corpus": str(path), "sha256": hashlib.sha256(content).hexdigest()}
