"""Object stores, Hugging Face datasets and packages of registries."""

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import collected, texts
from corpora import corpus, jsonl
from test_corpus_collect import tar_of

from qianyi.corpus.collect import packages
from qianyi.corpus.collect.remote import HubDataset, hub_dataset
from qianyi.corpus.document import corpus_manifest
from qianyi.errors import DataError

TEXTS = corpus(30, 5)


def test_object_stores_are_read_as_files_are(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    jsonl(tmp_path / "in" / "a.jsonl", TEXTS)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in" / "sub" / "b.parquet")
    with zipfile.ZipFile(tmp_path / "in" / "c.zip", "w") as archive:
        archive.writestr("x.txt", TEXTS[0])
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "in") + "/", "/bucket/", recursive=True)
    try:
        local, _ = collected(tmp_path / "local", f"s={tmp_path / 'in'}")
        assert collected(tmp_path / "memory", "s=memory://bucket")[0] == local
        assert collected(tmp_path / "file", f"s=file://{tmp_path / 'in'}")[0] == local
        one, _ = collected(tmp_path / "one", "s=memory://bucket/a.jsonl")
        assert texts(one) == TEXTS
        assert corpus_manifest(tmp_path / "one")["settings"]["remote"][0]["size_bytes"] > 0
        with pytest.raises(DataError, match="nothing is there"):
            collected(tmp_path / "none", "memory://bucket/nothing")
    finally:
        store.rm("/bucket", recursive=True)


def test_hugging_face_datasets_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_dict({"text": TEXTS, "title": [str(i) for i in range(len(TEXTS))]})
    made.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "files").mkdir()
    made.to_json(str(tmp_path / "files" / "train.jsonl"), force_ascii=False)
    for place in ("saved", "splits", "files"):
        kept, dropped = collected(tmp_path / "out" / place, f"hf:{tmp_path / place}")
        assert texts(kept) == TEXTS, place
        assert not dropped
    assert texts(collected(tmp_path / "out" / "test", f"t=hf:{tmp_path / 'splits'}#test")[0]) == TEXTS[:3]
    with pytest.raises(DataError, match="hf:"):
        collected(tmp_path / "out" / "none", f"hf:{tmp_path / 'splits'}#nothing")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("owner/name", HubDataset("owner/name", None, "train")),
        ("owner/name/config#test", HubDataset("owner/name", "config", "test")),
        ("name#validation", HubDataset("name", None, "validation")),
    ],
)
def test_names_of_datasets(spec: str, expected: HubDataset) -> None:
    assert hub_dataset(spec) == expected


def program(place: Path, name: str, lines: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{lines}\n")
    (place / name).chmod(0o755)


def test_packages_are_fetched_once_and_read_without_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x-1.tgz").write_bytes(tar_of({f"package/{i}.txt": t.encode() for i, t in enumerate(TEXTS)}, "w:gz"))
    program(tmp_path / "bin", "npm", f'echo "$@" >> {tmp_path}/asked; cp {tmp_path}/x-1.tgz .')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for _ in range(2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        kept, _ = collected(tmp_path / "out", "npm:x@1:package/{1,2}.txt", cache=tmp_path / "cache")
    assert texts(kept) == TEXTS[1:3]
    assert next(iter(kept.values()))["source"] == "npm:x@1"
    assert (tmp_path / "asked").read_text().splitlines() == ["pack --silent --ignore-scripts x@1"]
    (entry,) = corpus_manifest(tmp_path / "out")["inputs"]
    assert len(entry["sha256"]) == 64
    with pytest.raises(DataError, match="nothing came out of it"):
        collected(tmp_path / "none", "npm:x@1:nothing/*", cache=tmp_path / "cache")


def test_what_a_client_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "apt-get", 'echo "E: Unable to locate package nosuch" >&2; exit 100')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(DataError, match="debian:nosuch: E: Unable to locate package nosuch; `apt-get update`"):
        packages.fetch("debian", "nosuch", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "debian").iterdir())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs `npm`, which is not on this machine"):
        packages.fetch("npm", "x", tmp_path / "cache")


def test_a_source_distribution_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index on the disk, with a package whose setup.py would leave a trace."""
    sdist = tar_of(
        {"evil-1/setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(), "evil-1/x.txt": TEXTS[0].encode()}, "w:gz"
    )
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "evil-1.tar.gz").write_bytes(sdist)

    def opened(request: object, timeout: float) -> io.BytesIO:
        if isinstance(request, str):
            return io.BytesIO(sdist)
        file = {"filename": "evil-1.tar.gz", "url": "evil-1.tar.gz", "hashes": {"sha256": hashlib.sha256(sdist).hexdigest()}}
        return io.BytesIO(json.dumps({"files": [file]}).encode())

    monkeypatch.setattr(packages.urllib.request, "urlopen", opened)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "links")}.items():
        monkeypatch.setenv(name, value)
    kept, _ = collected(tmp_path / "out", "pypi:evil==1:**/*.txt", cache=tmp_path / "cache")
    assert texts(kept) == [TEXTS[0]]
    assert not (tmp_path / "ran").exists()
