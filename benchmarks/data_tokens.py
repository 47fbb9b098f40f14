"""How fast text becomes tokens beside Hugging Face `tokenizers`, and how full sequences get, on the built-in English and Chinese texts.

    python benchmarks/data_tokens.py [--vocab 32000] [--repeats 3] [--seq-len 2048]

Prints one JSON line for each language: MB of UTF-8 per CPU second of one core (`tokenizers` is kept to one thread), whether all ids are
equal; shares of empty places and of cut documents, packed by best fit and concatenated, and documents packed per second. A last line has
tokens per second of the loader on one core, concatenated and packed.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from qianyi.config.schema import DataConfig, SourceConfig, TrainConfig
from qianyi.data.encode import FastEncoder, SlowEncoder
from qianyi.data.load import TrainingData
from qianyi.data.packing import concatenated_shares, pack
from qianyi.data.prepare import prepare
from qianyi.data.read import read_documents
from qianyi.data.tokenizer import train_tokenizer

LANGUAGES = {"English": "builtin:shakespeare", "Chinese": "builtin:sanguo"}


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return median(taken)


def loader_rate(data: DataConfig, train: TrainConfig, repeats: int) -> int:
    """Tokens per CPU second, checksums verified before."""
    reader = TrainingData(data, train)

    def read() -> None:
        for step in range(100):
            reader.rows(step, range(train.batch_size))

    read()
    return round(100 * train.batch_size * train.seq_len / cpu_seconds(read, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--vocab", 32_000), ("--repeats", 3), ("--seq-len", 2048)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    texts = {language: [d.text for d in read_documents(path, "text")] for language, path in LANGUAGES.items()}
    tokenizer = train_tokenizer([text for group in texts.values() for text in group], args.vocab)
    tokenizer.encode_special_tokens = True
    fast, slow = FastEncoder(tokenizer), SlowEncoder(tokenizer)
    for language, group in texts.items():
        megabytes = sum(len(text.encode()) for text in group) / 1e6
        seconds = {encoder.name: cpu_seconds(partial(encoder, group), args.repeats) for encoder in (slow, fast)}
        ids = fast(group)
        lengths = [np.array([len(tokens) + 1 for tokens in ids], np.uint32)]
        pack(lengths, args.seq_len)  # compiled here
        packed, plain = pack(lengths, args.seq_len)[1], concatenated_shares(lengths, args.seq_len)
        result = {
            "language": language,
            "mb": round(megabytes, 1),
            **{f"{name}_mb_per_cpu_second": round(megabytes / taken, 2) for name, taken in seconds.items()},
            "times_faster": round(seconds["tokenizers"] / seconds["tiktoken"], 1),
            "equal_ids": all(np.array_equal(a, b) for a, b in zip(ids, slow(group), strict=True)),
            "bytes_per_token": round(megabytes * 1e6 / sum(map(len, ids)), 2),
            "packed_empty": round(packed.padding, 4),
            "packed_cut_documents": round(packed.cut_documents, 4),
            "concatenated_cut_documents": round(plain.cut_documents, 4),
        }
        print(json.dumps(result))
    print(json.dumps(packing_and_loading(args.seq_len, args.repeats)))


def packing_and_loading(seq_len: int, repeats: int) -> dict[str, float]:
    """A million documents of log-normal lengths in units of 20,000; the loader on the built-in texts."""
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.uint32) + 2
    units = np.array_split(lengths, 50)
    shares = pack(units, seq_len)[1]
    seconds = cpu_seconds(lambda: pack(units, seq_len), repeats)
    concatenation = cpu_seconds(lambda: concatenated_shares(units, seq_len), repeats)
    with tempfile.TemporaryDirectory() as root:
        sources = tuple(SourceConfig(name=name, path=path) for name, path in LANGUAGES.items())
        data = DataConfig(dir=root, sources=sources, validation_fraction=0.05)
        prepare(data, 8192, lambda *_: None)
        train = TrainConfig(seq_len=seq_len, batch_size=8, document_mask=True)
        rates = {
            f"{packing}_loader_tokens_per_cpu_second": loader_rate(data.model_copy(update={"packing": packing}), train, repeats)
            for packing in ("concat", "best_fit")
        }
    return {
        "documents_packed_per_cpu_second": round(len(lengths) / seconds),
        "tokens_packed_per_cpu_second": round(int(lengths.sum()) / seconds),
        "concatenation_documents_per_cpu_second": round(len(lengths) / concatenation),
        "random_empty": round(shares.padding, 4),
        "random_cut_documents": round(shares.cut_documents, 4),
        **rates,
    }


if __name__ == "__main__":
    main()
