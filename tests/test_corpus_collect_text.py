"""Manual pages, reStructuredText, mail, dictionaries and pages of the web give the text that people read."""

import gzip
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from collecting import collected, texts

from qianyi.corpus.collect.found import Reading
from qianyi.corpus.collect.html import page
from qianyi.corpus.collect.roff import roff_to_text
from qianyi.corpus.collect.rst import rst_to_text
from qianyi.data import builtin


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-zA-Z0-9]+|[\u4e00-\u9fff]", text))


def overlap(ours: str, reference: str) -> float:
    """F1 of the words and Han characters of two texts."""
    a, b = words(ours), words(reference)
    return 2 * (a & b).total() / max(1, a.total() + b.total())


MAN = r""".\" a comment
.TH LS 1 2022 "GNU coreutils" "用户命令"
.SH 名称
ls \- 列出目录内容
.SH "SEE ALSO"
\fBls\fP [\fI\,选项\/\fP]... see
.BR dir (1) \" why
and
.IR "two words" .
.TP
\fB\-a\fP, \fB\-\-all\fP
不要忽略以点号
（“.”）起始的条目
.nf
  int main(void) { return 0; \(aq\en\(aq }
.fi
.de XX
never shown
..
.so man1/other.1
"""
MDOC = """.Dd June 1, 2020
.Dt CAT 1
.Os
.Sh NAME
.Nm cat
.Nd concatenate files
.Sh SYNOPSIS
.Nm
.Op Fl n
.Op Ar
.Sh DESCRIPTION
The
.Nm
utility reads
.Ar files ,
see
.Xr head 1 .
"""


def test_a_manual_page_reads_as_it_is_shown() -> None:
    text, title = roff_to_text(MAN)
    assert title == "ls(1)"
    assert text == (
        "名称\nls - 列出目录内容\n\nSEE ALSO\nls [选项]... see dir(1) and two words.\n-a, --all\n不要忽略以点号（“.”）起始的条目\n"
        "  int main(void) { return 0; '\\n' }"
    )


def test_a_manual_page_in_mdoc() -> None:
    text, title = roff_to_text(MDOC)
    assert title == "cat(1)"
    assert "cat – concatenate files" in text
    assert "cat [-n]" in text
    assert "The cat utility reads files, see head(1)." in text


def test_manual_pages_are_as_man_shows_them(tmp_path: Path) -> None:
    """Against groff, on the pages of this machine."""
    pages = sorted(Path("/usr/share/man/man1").glob("*.1.gz"))[::45][:10] if shutil.which("man") and shutil.which("groff") else []
    if not pages:
        pytest.skip("needs man, groff and some pages")
    scores: list[float] = []
    for file in pages:
        source = gzip.decompress(file.read_bytes())
        if source.startswith(b".so"):
            continue
        (tmp_path / "page.1").write_bytes(source)
        shown = subprocess.run(
            [
                "groff",
                "-mandoc",
                "-Tutf8",
                "-t",
                "-K",
                "utf8",
                "-rHY=0",
                "-P-c",
                "-P-b",
                "-P-o",
                "-P-u",
                str(tmp_path / "page.1"),
            ],
            capture_output=True,
            check=True,
            env={"PATH": "/usr/bin:/bin", "MANWIDTH": "1000", "LC_ALL": "C.UTF-8"},
        ).stdout.decode()
        scores.append(overlap(roff_to_text(source.decode("utf-8", "replace"))[0], re.sub(r"[\u2010-]\n\s+", "", shown)))
    assert min(scores) > 0.8
    assert sum(scores) / len(scores) > 0.95


RST = """\
.. SPDX-License-Identifier: GPL-2.0

=====
标题 Title
=====

:Author: nobody

See :ref:`the guide <guide>` and ``code``, *really* **now**.

.. note:: 注意 this
   and that

.. code-block:: c
   :linenos:

   int x;

.. toctree::
   :maxdepth: 2

   hidden

Text::

   literal

.. _anchor:

`Link <http://x>`_ end
"""


def test_restructured_text_reads_as_it_is_shown() -> None:
    text, title = rst_to_text(RST)
    assert title == "标题 Title"
    for shown in ("See the guide and code, really now.", "注意 this", "and that", "int x;", "Text:", "literal", "Link end"):
        assert shown in text
    for hidden in ("SPDX", "hidden", "toctree", "linenos", "`", "=====", "**", "anchor"):
        assert hidden not in text


def test_mail_gives_its_plain_part(tmp_path: Path) -> None:
    (tmp_path / "x.eml").write_bytes(
        b"From: a@b\r\nSubject: =?utf-8?b?5L2g5aW9?=\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n"
        b"--x\r\nContent-Type: text/html\r\n\r\n<p>html</p>\r\n--x\r\nContent-Type: text/plain; charset=gb2312\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"xOO6w6OsysC95w==\r\n--x--\r\n"
    )
    kept, _ = collected(tmp_path / "out", str(tmp_path / "x.eml"))
    assert kept["x.eml"]["text"].strip() == "你好，世界"
    assert json.loads(kept["x.eml"]["meta"])["title"] == "你好"


def test_dictionaries_fortunes_and_tagged_text(tmp_path: Path) -> None:
    entries = "".join(f"Word{i}\n   It means {'much ' * 100}{i}.\n\n" for i in range(40))
    (tmp_path / "x.dict.dz").write_bytes(gzip.compress(entries.encode()))
    kept, _ = collected(tmp_path / "a", str(tmp_path / "x.dict.dz"), format="dictionary")
    assert 3 < len(kept) < 10
    assert "\n\n".join(texts(kept)) == entries.strip()
    assert all(text.startswith("Word") for text in texts(kept))
    (tmp_path / "f").write_text("\x1b[32m《感遇》\x1b[m\n兰叶春葳蕤\n%\ntwo\nlines\n%\n", encoding="utf-8")
    assert texts(collected(tmp_path / "b", str(tmp_path / "f"), format="fortunes")[0]) == ["《感遇》\n兰叶春葳蕤", "two\nlines"]
    (tmp_path / "t").write_text("\n\tThe/at jury/nn said/vbd ,/, ``/`` no/rb ''/'' ./.\n", encoding="utf-8")
    assert texts(collected(tmp_path / "c", str(tmp_path / "t"), format="tagged_file")[0]) == ["The jury said, ``no''."]
    (tmp_path / "p").write_text("世纪/n  的/u  [中国/ns  政府/n]nt  讲话/n\n迈向/v  未来/n  。/w\n", encoding="utf-8")
    assert texts(collected(tmp_path / "d", str(tmp_path / "p"), format="tagged")[0]) == ["世纪的中国政府讲话\n迈向未来。"]


def test_plays_and_chapters_are_those_of_the_training_recipes(tmp_path: Path) -> None:
    for name, reader in (("shakespeare", "scenes"), ("sanguo", "chapters")):
        files = builtin.files(f"builtin:{name}")[:3]
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(file, tmp_path / name)
        kept, dropped = collected(tmp_path / "out" / name, str(tmp_path / name), format=reader)
        expected = [text for origin, text in builtin.documents(f"builtin:{name}") if any(f"/{f.stem}#" in origin for f in files)]
        assert texts(kept) == expected
        assert not dropped


ARTICLE = {
    "en": "The whale swam past the ship at dawn, and no one on deck said a word until it was gone. " * 12,
    "zh": "却说曹操引军追赶，见前面尘头大起，心中疑惑，便令三军扎住。众将皆曰：敌军已退，何故不追？" * 12,
}


@pytest.mark.parametrize("language", ARTICLE)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_pages_give_their_article_title_and_address(language: str, encoding: str) -> None:
    article = ARTICLE[language]
    html = (
        f'<html lang="{language}"><head><meta charset="{encoding}"><title> A \n title 题</title>'
        '<link rel="canonical" href="https://x.org/a"><style>p {}</style></head><body>'
        '<nav class="menu"><ul><li><a href="/">Home 首页</a></li><li><a href="/b">About 关于</a></li></ul></nav>'
        f'<div class="sidebar"><a href="/c">Sidebar 侧栏</a></div><main><article><p>{article}</p></article></main>'
        '<footer class="footer">Copyright 版权所有</footer><script>var x;</script></body></html>'
    )
    found = page(html.encode(encoding), "o", Reading())
    assert overlap(found.text, article) > 0.98
    assert found.meta["title"] == "A title 题"
    assert found.meta["url"] == "https://x.org/a"
    assert found.meta["lang"] == language
    everything = page(html.encode(encoding), "o", Reading(html="all"))
    for part in ("Home", "侧栏", "版权所有"):
        assert part in everything.text
        assert part not in found.text
