"""A pipeline runs its stages once; any document can be followed through it; two of them can be compared."""

from pathlib import Path

import pytest
from corpus_works import STAGES, clean, collect, content

from qianyi.cli import data_diff, data_run, data_why
from qianyi.corpus import diff as comparing
from qianyi.corpus.diff import diff
from qianyi.corpus.document import document_batch, read_dropped, read_parts
from qianyi.corpus.parts import Json, Options, Writer, part_units, read_batches, run_parts
from qianyi.corpus.pipeline import read_pipeline, run_pipeline, stage_directories
from qianyi.corpus.why import why
from qianyi.errors import ConfigError, DataError

PIPELINE = """\
stages:
  - collect
  - clean: {bytes: 700}
  - clean: {bytes: 900, rules: [short]}
"""


def written(root: Path, text: str) -> Path:
    file = root / "pipeline.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline")
    run_pipeline(read_pipeline(written(root, PIPELINE), STAGES), root / "out", Options())
    return root / "out"


def test_stages_run_in_order_and_once(made: Path, tmp_path: Path) -> None:
    assert [d.name for d in stage_directories(made)] == ["1-collect", "2-clean", "3-clean"]
    collect(tmp_path / "a")
    clean(tmp_path / "a", tmp_path / "b", 700)
    clean(tmp_path / "b", tmp_path / "c", 900)
    lasts = [
        {n: c for n, c in content(out).items() if n.startswith(("parts", "dropped"))}
        for out in (tmp_path / "c", made / "3-clean")
    ]
    assert lasts[0] == lasts[1] and lasts[0]
    times = {p: p.stat().st_mtime_ns for p in made.rglob("*.parquet")}
    run_pipeline(read_pipeline(written(tmp_path, PIPELINE), STAGES), made, Options())
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*.parquet")} == times


def test_a_stage_changed_is_made_again_with_those_after_it(tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "out"
    for size in (900, 800):
        pipeline = read_pipeline(written(tmp_path, PIPELINE.replace("900", str(size))), STAGES)
        run_pipeline(pipeline, out, Options(), lambda step, directory: told.append(directory.name))
    assert told == ["1-collect", "2-clean", "3-clean"] * 2
    assert all(row["stat_bytes"] >= 800 for b in read_parts(out / "3-clean") for row in b.to_pylist())
    assert any(row["stat_bytes"] < 900 for b in read_parts(out / "3-clean") for row in b.to_pylist())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages:\n  - collect\n  - claen: {bytes: 3}",
            r"pipeline.yaml:3: no stage `claen`; did you mean `clean`\?; there are collect, clean",
        ),
        ("stages:\n  - collect\n  - clean:\n      byts: 3", r"pipeline.yaml:4: unknown key `clean.byts`; did you mean `bytes`\?"),
        (
            "stages:\n  - collect\n  - clean: {bytes: many}",
            r"pipeline.yaml:3: clean.bytes: expected a valid integer.*found `many`",
        ),
        ("stages:\n  - collect\n  - clean", r"pipeline.yaml:3: `clean.bytes` is missing"),
        ("stages:\n  - clean: {bytes: 3}", r"pipeline.yaml:2: `clean` reads a corpus: `collect` comes first"),
        ("stages:\n  - collect\n  - collect", r"pipeline.yaml:3: `collect` must be the first stage"),
        ("stags:\n  - collect", r"pipeline.yaml:1: unknown key `stags`; did you mean `stages`\?"),
        ("stages: collect", r"expected a list `stages:`"),
        ("stages: [3]", r"pipeline.yaml:1: expected the name of a stage, or `name: settings`, found `3`"),
        ("allow: 3\nstages: [collect]", r"pipeline.yaml:1: allow: expected a list of names of rules, found `3`"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_pipeline(written(tmp_path, text), STAGES)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        read_pipeline(written(tmp_path, "stages:\n  - collect: {off: 3}\n  - clean: {byts: 3}"), STAGES)
    assert [line.split(" ")[0] for line in str(told.value).splitlines()] == [
        "pipeline.yaml:2:",
        "pipeline.yaml:3:",
        "pipeline.yaml:3:",
    ]


def test_allow_of_the_file(tmp_path: Path) -> None:
    text = "allow: [short]\nstages:\n  - collect\n  - clean: {bytes: 1000000000}"
    manifests = run_pipeline(read_pipeline(written(tmp_path, text), STAGES), tmp_path / "out", Options())
    assert manifests[-1]["documents"] == 0


def test_why(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = next(read_parts(made / "3-clean")).to_pylist()[0]
    lost = next(read_dropped(made / "3-clean")).to_pylist()[0]
    story = why(made, kept["id"][:12])
    assert [(f.stage, f.is_kept) for f in story.stages] == [("collect", True), ("clean", True), ("clean", True)]
    assert story.stages[1].columns["stat_bytes"] == len(kept["text"].encode())
    story = why(made, lost["origin"])
    assert (story.id, story.source) == (lost["id"], lost["source"])
    assert [(f.directory.name, f.is_kept, f.reason) for f in story.stages[1:]] == [
        ("2-clean", True, ""),
        ("3-clean", False, "short"),
    ]
    data_why.run(made, lost["id"])
    said = capsys.readouterr().out
    assert f"3-clean: dropped: short ({lost['detail']})" in said and "stat_bytes" in said and lost["origin"] in said
    with pytest.raises(DataError, match=r"no document `nowhere\.txt`"):
        why(made, "nowhere.txt")
    with pytest.raises(
        DataError, match=r"`#3` is more than one document; give more.*\n[0-9a-f]{32}  builtin:shakespeare/\S+#3\n"
    ):
        why(made, "#3")
    with pytest.raises(DataError, match="neither a corpus directory nor what `qianyi data run` makes"):
        why(made.parent, "#3")


def shout(unit: Json, settings: Json, writer: Writer) -> None:
    """Change every third text of the settings' source."""
    for batch in read_batches(Path(unit["part"])):
        rows = batch.to_pylist()
        for i, row in enumerate(rows):
            if row["source"] == "sanguo" and i % 3 == 0:
                row["text"] = row["text"][:50] + "！" + row["text"][50:]
        writer.keep(
            document_batch(
                "sanguo",
                [r["origin"] for r in rows if r["source"] == "sanguo"],
                [r["text"] for r in rows if r["source"] == "sanguo"],
            )
        )


@pytest.mark.parametrize("at_a_time", [10**9, 100])
def test_diff_of_corpora(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(comparing, "DOCUMENTS_AT_A_TIME", at_a_time)
    a, b = made / "2-clean", tmp_path / "b"
    run_parts(b, "shout", {}, part_units(a), shout, [a])
    before = {r["id"]: r["text"] for batch in read_parts(a) for r in batch.to_pylist()}
    after = {r["id"]: r["text"] for batch in read_parts(b) for r in batch.to_pylist()}
    (found,) = diff(a, b)
    changed = sorted(i for i, text in after.items() if before[i] != text)
    only = sorted(before.keys() - after.keys())
    assert (found.n_only_a, found.n_only_b, found.n_changed) == (len(only), 0, len(changed)) and changed and only
    assert [o.id for o in found.only_a] == only[:5] and [c.id for c in found.changed] == changed[:5]
    assert all("！" in c.after and c.before.replace("！", "") in before[c.id].replace("！", "") for c in found.changed)
    assert found.documents == (len(before), len(after))
    assert not diff(a, a)[0].n_changed and diff(a, a)[0].is_empty


def test_diff_of_pipelines(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_run.run(written(tmp_path, PIPELINE.replace("900", "2000")), tmp_path / "out", STAGES, Options())
    said = capsys.readouterr().out
    assert "3-clean" in said and "short" in said
    found = diff(made, tmp_path / "out")
    assert [d.is_empty for d in found] == [True, True, False]
    assert found[2].reasons["short"][1] - found[2].reasons["short"][0] == found[2].n_only_a > 0
    data_diff.run(made, tmp_path / "out", 2)
    said = capsys.readouterr().out
    assert said.count("only in the first") == 2 and "dropped by short" in said
