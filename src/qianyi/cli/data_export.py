"""`qianyi data export`: shards for other trainers."""

from pathlib import Path

from qianyi.cli.data import data_progress
from qianyi.data.export import export_shards
from qianyi.data.tokenizer import load_tokenizer


def run(directory: Path, form: str, out: Path, tokenizer: Path | None) -> None:
    tokenizer = tokenizer or directory / "tokenizer" / "tokenizer.json"
    load_tokenizer(tokenizer)
    with data_progress() as progress:
        manifest = export_shards(directory, tokenizer, out, form, progress)
    for file in manifest["files"]:
        print(out / file)
