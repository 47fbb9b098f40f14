"""Token shards in the formats of other trainers: Megatron-LM's indexed datasets, and ArrayRecord."""

import shutil
from collections.abc import Callable
from pathlib import Path

from qianyi.data.megatron import write_dataset
from qianyi.data.shards import FORMAT, TokenStream, token_dtype
from qianyi.data.stage import Json, read_manifest, run_stage
from qianyi.data.tokenize import SPLITS
from qianyi.data.tokenized import write_array_records
from qianyi.errors import DataError

FORMATS = ("megatron", "arrayrecord")
Progress = Callable[[str, int, int], None]


def export_shards(directory: Path, tokenizer: Path, out: Path, form: str, progress: Progress) -> Json:
    """Write OUT/SPLIT/SOURCE.bin and .idx (megatron) or OUT/SPLIT/SOURCE/00000.array_record and so on, with the tokenizer beside them.

    Args:
        directory: what a recipe calls data.dir.
        tokenizer: the one that its shards were made with.
        out: is made; if it is there of the same shards, nothing is done.
        form: one of FORMATS.
        progress: told what is being done.

    Raises:
        DataError: there are no shards, they are damaged, or `out` holds something else.
    """
    if form not in FORMATS:
        raise DataError(f"--format {form}: known are {', '.join(FORMATS)}")
    shards = directory / "shards"
    manifest = read_manifest(shards)
    if manifest["settings"].get("format") != FORMAT:
        raise DataError(f"{shards}: made by another version of Qianyi; delete it and run `qianyi data prepare RECIPE`")
    if out.exists() and not (out / "manifest.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there and is no earlier export; name another directory")

    def build(made: Path) -> Json:
        files: list[Path] = []
        for split in SPLITS:
            (made / split).mkdir()
            for name, source in manifest["sources"].items():
                progress(f"writing {split}/{name}", source[split]["documents"], source[split]["bytes"])
                stream = TokenStream(
                    shards / split / name, token_dtype(manifest["vocab_size"]), source[split]["shards"], source[split]["index"]
                )
                files += _write(form, made / split, name, stream, manifest["vocab_size"])
        shutil.copy(tokenizer, made / "tokenizer.json")
        return {"files": [str(file.relative_to(made)) for file in files], "vocab_size": manifest["vocab_size"]}

    return run_stage(
        out, {"inputs": [], "format": form, "shards": manifest["settings"], "sources": manifest["sources"]}, {}, build
    )


def _write(form: str, directory: Path, name: str, stream: TokenStream, vocab_size: int) -> list[Path]:
    if form == "arrayrecord":
        return write_array_records(directory / name, stream)
    write_dataset(directory / name, stream, vocab_size)
    return [directory / f"{name}{suffix}" for suffix in (".bin", ".idx")]
