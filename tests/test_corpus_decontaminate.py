"""What is in an evaluation set is found in training text, and only that."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import make_corpus, real_texts
from test_corpus_dedup_kernels import folded, plain_tokens

from qianyi.corpus.decontaminate import DecontaminateSettings, cut_around, decontaminate, decontamination_report
from qianyi.corpus.document import read_dropped, read_parts, side_files
from qianyi.corpus.evalsets import build_index, read_items
from qianyi.errors import DataError


def evalset(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def question(text: str, first: int, length: int = 300) -> dict[str, Any]:
    return {"id": "x", "question": {"stem": text[first : first + length].upper(), "choices": ["yes", "no"]}, "answer": 1}


def plain_grams(text: str, words: int) -> set[tuple[str, ...]]:
    """Shortest runs of tokens that weigh as much as so many words, a character two thirds of one."""
    tokens = [folded(token) for token in plain_tokens(text)]
    weight = [2 if len(token) == 1 and token > "\u3000" else 3 for token in tokens]
    found: set[tuple[str, ...]] = set()
    for i in range(len(tokens)):
        end = i
        while end < len(tokens) and sum(weight[i:end]) < 3 * words:
            end += 1
        if sum(weight[i:end]) >= 3 * words:
            found.add(tuple(tokens[i:end]))
    return found


def test_documents_with_an_ngram_of_an_item_are_dropped(tmp_path: Path) -> None:
    texts = [text[:2500] for text in real_texts()]
    items = [question(texts[i], 150) for i in (3, 17, 50, 71)] + [question("千万不要相信任何人说的任何话" * 9, 0)]
    against = evalset(tmp_path / "quiz.jsonl", items)
    manifest = decontaminate([make_corpus(tmp_path / "in", texts)], tmp_path / "out", [against])
    wanted = plain_grams("", 13).union(*(plain_grams(item["question"]["stem"], 13) for item in items))
    bad = [f"{i:05d}" for i, text in enumerate(texts) if plain_grams(text, 13) & wanted]
    assert {"00003", "00017", "00050", "00071"} <= set(bad)
    dropped = [row for batch in read_dropped(tmp_path / "out") for row in batch.to_pylist()]
    assert [row["origin"] for row in dropped] == bad
    assert manifest["reasons"] == {"contaminated": len(bad)}
    assert next(row["detail"] for row in dropped if row["origin"] == "00017").endswith("quiz.jsonl:2")
    kept = [row["text"] for batch in read_parts(tmp_path / "out") for row in batch.to_pylist()]
    assert kept == [text for i, text in enumerate(texts) if f"{i:05d}" not in bad]
    report = decontamination_report(tmp_path / "out")["evalsets"][str(against)]
    assert (report["items"], report["found"], report["too_short"], report["ngram"]) == (5, 4, 0, 13)
    matches = pa.concat_tables([pq.read_table(path) for path in side_files(tmp_path / "out", "matches")]).to_pylist()
    assert {row["item"] for row in matches} == {f"{against}:{n}" for n in (1, 2, 3, 4)}
    assert all(
        row["share"] > 0.9 for row in matches if row["id"] in {d["id"] for d in dropped if d["origin"] in {"00003", "00050"}}
    )


def test_overlap_asks_for_a_share_of_the_item(tmp_path: Path) -> None:
    texts = [text[:2500] for text in real_texts()]
    items = [question(texts[5], 100), {"q": texts[9][100:300] + texts[70][:900]}, {"q": texts[60][50:250]}]
    corpus = make_corpus(tmp_path / "in", texts)
    against = evalset(tmp_path / "quiz.jsonl", items)
    settings = DecontaminateSettings(rule="overlap", overlap=0.7)
    decontaminate([corpus], tmp_path / "out", [against], settings)
    dropped = [row["origin"] for batch in read_dropped(tmp_path / "out") for row in batch.to_pylist()]
    assert dropped == ["00005", "00060", "00070"]  # of the second item 9 has too little
    about = pq.read_table(side_files(tmp_path / "out" / "items", "about")[0]).to_pylist()
    assert [row["documents"] for row in about] == [1, 2, 1]
    assert all(row["share"] > 0.9 for row in about)


def test_what_is_found_is_cut_with_a_margin(tmp_path: Path) -> None:
    texts = [text[:2500] for text in real_texts()]
    texts[60] = "".join(texts[60:64]).replace("\n", "")
    corpus = make_corpus(tmp_path / "in", texts[:61])
    against = evalset(tmp_path / "quiz.jsonl", [question(texts[60], 900, 60), question(texts[4], 1000)])
    manifest = decontaminate([corpus], tmp_path / "out", [against], DecontaminateSettings(action="cut"))
    kept = {row["origin"]: row for batch in read_parts(tmp_path / "out") for row in batch.to_pylist()}
    assert manifest["counts"]["documents_cut"] == 2
    assert len(kept) == 61
    for number, first, length in ((60, 900, 60), (4, 1000, 300)):
        row = kept[f"{number:05d}"]
        before, after = texts[number][: first - 200], texts[number][first + length + 200 :]
        assert row["text"].startswith(before[:500])
        assert row["text"].endswith(after[-500:].strip())
        assert len(row["text"]) <= len(before) + len(after) + 50
        assert not plain_grams(row["text"], 13) & plain_grams(texts[number][first : first + length], 13)
        assert row["stat_decontaminated_bytes"] == len(texts[number].encode()) - len(row["text"].encode()) > 0


def test_too_many_pieces_or_too_short_ones_leave_nothing() -> None:
    settings = {"margin_characters": 2, "piece_characters": 5, "most_pieces": 3}
    text = "甲乙丙丁戊己庚辛壬癸" * 10
    assert cut_around(text.encode(), [(90, 96)], settings) == text[:28] + "\n\n" + text[34:]
    assert cut_around(text.encode(), [(90, 96), (93, 99)], settings) == text[:28] + "\n\n" + text[35:]
    assert cut_around(text.encode(), [(60, 63), (120, 123), (180, 183)], settings) is None
    assert cut_around(text.encode(), [(12, 291)], settings) is None


def test_common_phrases_can_be_left(tmp_path: Path) -> None:
    phrase = "this page and all that is in it may be copied freely by anyone who wants to"
    texts = [f"{text[:800]}\n{phrase}" for text in real_texts()[:12]]
    texts[5] = real_texts()[30][:900]
    texts.append(real_texts()[60])
    against = evalset(tmp_path / "quiz.jsonl", [{"q": phrase}, {"q": texts[5][:400]}])
    corpus = make_corpus(tmp_path / "in", texts)
    assert decontaminate([corpus], tmp_path / "all", [against])["dropped"] == 12
    manifest = decontaminate([corpus], tmp_path / "rare", [against], DecontaminateSettings(common_documents=10))
    assert [row["origin"] for batch in read_dropped(tmp_path / "rare") for row in batch.to_pylist()] == ["00005"]
    assert manifest["dropped"] == 1


def test_kinds_of_files_and_fields(tmp_path: Path) -> None:
    items = [{"q": {"text": f"question number {i}", "options": ["a b c", "d"]}, "n": i, "note": "n/a"} for i in range(3)]
    plain = evalset(tmp_path / "x.jsonl", items)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.parquet"):
        found = [(item.number, item.texts) for item in read_items(tmp_path / name, ["q.text", "q.options"])]
        assert found == [(i + 1, (f"question number {i}", "a b c", "d")) for i in range(3)], name
    assert next(read_items(plain, [])).texts == ("question number 0", "a b c", "d", "n/a")
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    assert [item.texts for item in read_items(tmp_path / "x.txt", [])] == [("one\ntwo\n",)]


@pytest.mark.parametrize(
    ("name", "content", "fields", "parts"),
    [
        ("x.jsonl", b'{"q": "a"}\n{"q": \n', [], ["x.jsonl:2", "broken JSON"]),
        ("x.jsonl", b'["q"]\n', [], ["x.jsonl:1", "expected an object, found list"]),
        ("x.jsonl", b'{"q": {"a": "b"}}\n', ["q.text"], ["x.jsonl:1", "no field `q.text`", "there is a", "--field"]),
        ("x.jsonl", b"", [], ["x.jsonl", "without items"]),
        ("x.jsonl", b'{"q": "short"}\n', [], ["x.jsonl", "no item is long enough"]),
        ("x.jsonl", b'{"q": "\xff"}\n', [], ["x.jsonl:1", "UTF-8"]),
        ("x.jsonl.gz", gzip.compress(b'{"q": "a"}\n' * 999)[:-9], [], ["x.jsonl.gz", "damaged"]),
        ("x.parquet", b"PAR1", [], ["x.parquet", "not a readable Parquet file"]),
        ("x.csv", b"q", [], ["x.csv", "unknown kind of file"]),
    ],
)
def test_a_wrong_evaluation_set_is_named(tmp_path: Path, name: str, content: bytes, fields: list[str], parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        build_index([tmp_path / name], fields, None)
    assert all(part in str(caught.value) for part in parts), caught.value
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read: No such file"):
        build_index([tmp_path / "missing.jsonl"], [], None)


def test_words_of_an_ngram_follow_the_items(tmp_path: Path) -> None:
    short = evalset(tmp_path / "short.jsonl", [{"q": " ".join(f"w{i}x{j}" for j in range(10))} for i in range(50)])
    long = evalset(tmp_path / "long.jsonl", [{"q": " ".join(f"v{i}x{j}" for j in range(40))} for i in range(5)])
    tiny = evalset(tmp_path / "tiny.jsonl", [{"q": "two words"}, {"q": " ".join(f"t{j}" for j in range(30))}])
    index = build_index([short, long, tiny], [], None)
    assert index.file_lengths == (10, 13, 8)
    assert index.lengths.tolist() == [8, 10, 13]
    assert index.too_short().sum() == 1
    assert len(index.grams) == 50 + 5 * 28 + 23
