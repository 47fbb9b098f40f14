"""How well and how fast the main content of web pages is found, beside trafilatura, on pages whose content is known.

    python benchmarks/data_extract.py [--pages 60]

Scenes of Shakespeare and chapters of 三国演义 are put as articles into pages of eight kinds, built as such sites are: with menus, teasers,
consent banners, comments, tables of contents, footers. The rules of qianyi were written looking at the first six; the last two, wiki and
forum, came after. Precision, recall and F1 are of words and Han characters, as multisets (boilerplate that comes along lowers precision,
text that is lost recall); rates are MB of HTML per second of one core.
"""

import argparse
import html
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable

import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from qianyi.corpus.collect.html import main_text
from qianyi.data import builtin

WORDS = {
    "en": """Home World Business Opinion Science Sports Arts Video Podcasts Weather Subscribe Login Search About Contact Careers
        Privacy Terms Cookies Newsletter Archive Shop Jobs Events Help Feedback Sitemap Advertise Accessibility""",
    "zh": """首页 新闻 财经 评论 科技 体育 文化 视频 播客 天气 订阅 登录 搜索 关于我们 联系 招聘 隐私 条款 归档 商城 活动 帮助 反馈
        网站地图 广告 无障碍""",
}
SENTENCES = {
    "en": [
        "Ten things you did not know about the new budget",
        "Why the river froze twice this winter",
        "Readers choose their favourite walks",
        "The minister answers questions on housing",
        "A guide to growing tomatoes on a balcony",
        "Last night's results at a glance",
    ],
    "zh": [
        "关于新预算你不知道的十件事",
        "今年冬天河水为何两次封冻",
        "读者评选最喜爱的步道",
        "部长就住房问题答记者问",
        "阳台种番茄指南",
        "昨夜赛果一览",
    ],
}
PHRASES = {
    "en": {
        "cookies": "We use cookies to improve your experience. By continuing you accept our policy.",
        "by": "By our correspondent",
        "related": "Related articles",
        "comments": "Comments",
        "reply": "Reply",
        "copyright": "Copyright 2026. All rights reserved.",
        "comment": "I could not agree more, this is what I have always said.",
        "share": "Share on social media",
        "prev": "Previous chapter",
        "next": "Next chapter",
        "contents": "Table of contents",
        "tags": "Tags",
        "posted": "Posted on 3 May 2026 in Literature",
    },
    "zh": {
        "cookies": "本站使用缓存文件以改善您的体验，继续浏览即表示同意。",
        "by": "本报记者",
        "related": "相关阅读",
        "comments": "网友评论",
        "reply": "回复",
        "copyright": "版权所有，未经许可不得转载。京备00000号",
        "comment": "说得太对了，我一直都是这么想的。",
        "share": "分享到朋友圈",
        "prev": "上一章",
        "next": "下一章",
        "contents": "目录",
        "tags": "标签",
        "posted": "发表于二〇二六年五月三日 文学",
    },
}


class Writer:
    """Makes the parts of a page in one language."""

    def __init__(self, language: str, seed: int):
        self.language, self.random, self.say = language, random.Random(seed), PHRASES[language]

    def links(self, n: int, item: str = "li") -> str:
        return self._linked(WORDS[self.language].split(), n, item)

    def _linked(self, texts: list[str], n: int, item: str) -> str:
        chosen = self.random.choices(texts, k=n)
        return "".join(f'<{item}><a href="/{self.random.randrange(10**6)}">{text}</a></{item}>' for text in chosen)

    def teasers(self, n: int) -> str:
        return self._linked(SENTENCES[self.language], n, "h3")

    def paragraphs(self, article: str) -> str:
        return "\n".join(f"<p>{html.escape(line)}</p>" for line in article.split("\n") if line.strip())


def news(w: Writer, article: str) -> str:
    s = w.say
    return (
        f'<div id="cookie-banner" class="cookie-consent">{s["cookies"]}<button>OK</button></div>'
        f'<header class="site-header"><nav class="main-nav">'
        f'<ul>{w.links(14)}</ul></nav></header><main id="content"><article class="story"><h1>{{title}}</h1>'
        f'<p class="byline">{s["by"]}</p>'
        f'<div class="share-buttons"><a href="#">{s["share"]}</a></div>'
        f'<div class="article-body">{w.paragraphs(article)}</div></article>'
        f'<aside class="sidebar related"><h2>{s["related"]}</h2>{w.teasers(6)}</aside></main>'
        f'<footer class="site-footer"><ul>{w.links(16)}</ul><p>{s["copyright"]}</p></footer>'
    )


def blog(w: Writer, article: str) -> str:
    s = w.say
    comments = "".join(f'<li class="comment"><p>{s["comment"]}</p><a href="#">{s["reply"]}</a></li>' for _ in range(8))
    return (
        f'<div class="wrapper"><div class="header"><a href="/">{w.links(1, item="b")}</a></div>'
        f'<div class="navbar">{w.links(8, item="span")}</div>'
        f'<div class="post hentry"><h2 class="entry-title">{{title}}</h2><div class="post-meta">{s["posted"]}</div>'
        f'<div class="entry-content">{w.paragraphs(article)}</div>'
        f'<div class="tags">{s["tags"]}: {w.links(4, item="span")}</div></div>'
        f'<div id="comments" class="comments"><h3>{s["comments"]}</h3><ol>{comments}</ol></div>'
        f'<div class="widget-area sidebar"><ul>{w.links(20)}</ul></div><div class="footer">{s["copyright"]}</div></div>'
    )


def docs(w: Writer, article: str) -> str:
    s = w.say
    return (
        f'<div class="related" role="navigation"><ul>{w.links(6)}</ul></div>'
        f'<div class="sphinxsidebar" role="navigation"><h3>{s["contents"]}</h3>'
        f'<ul>{w.links(25)}</ul></div><div class="document"><div class="body" role="main"><section><h1>{{title}}'
        f"</h1>{w.paragraphs(article)}"
        f'</section></div></div><div class="footer" role="contentinfo">{s["copyright"]}</div>'
    )


def portal(w: Writer, article: str) -> str:
    """Old tables, nothing named."""
    s = w.say
    return (
        f'<table width="100%"><tr><td colspan="3">{w.links(18, item="font")}</td></tr><tr>'
        f'<td width="150">{w.links(15, item="div")}</td>'
        f'<td><center><b>{{title}}</b></center><br>{w.paragraphs(article)}</td><td width="150">{w.teasers(5)}</td></tr>'
        f'<tr><td colspan="3"><center>{s["copyright"]}</center></td></tr></table>'
    )


def novel(w: Writer, article: str) -> str:
    """Lines with breaks in one element."""
    s = w.say
    lines = "<br><br>\n".join(html.escape(line) for line in article.split("\n") if line.strip())
    return (
        f'<div class="nav"><ul>{w.links(9)}</ul></div><div class="con_top"><a href="/">{{title}}</a></div>'
        f'<div class="bookname"><h1>{{title}}</h1>'
        f'<div class="bottem1"><a href="1">{s["prev"]}</a> <a href="0">{s["contents"]}</a> <a href="2">{s["next"]}'
        f"</a></div></div>"
        f'<div id="content">{lines}</div><div class="bottem2"><a href="1">{s["prev"]}</a> <a href="2">{s["next"]}</a></div>'
        f'<div class="footer"><p>{s["copyright"]}</p></div>'
    )


def modern(w: Writer, article: str) -> str:
    """Names of classes made by machines, markup by meaning."""
    s = w.say
    return (
        f'<div id="__next"><header class="css-1x2y3z"><nav class="css-9ab">{w.links(10, item="div")}</nav>'
        f'</header><main class="css-77ab">'
        f'<div class="css-3k"><h1 class="css-h1">{{title}}</h1><div class="css-q1">{w.paragraphs(article)}</div></div>'
        f'<section class="css-rel"><h2>{s["related"]}</h2>{w.teasers(8)}</section></main>'
        f'<div role="dialog" class="css-m1">{s["cookies"]}</div>'
        f'<footer class="css-f1">{w.links(12, item="div")}<small>{s["copyright"]}</small></footer></div>'
    )


def wiki(w: Writer, article: str) -> str:
    """An encyclopedia: links in the text, contents, references, categories."""
    s = w.say
    linked = re.sub(r"(?<=[\w，。 ])(\w{2,4})(?=[ ，])", r'<a href="/wiki/\1">\1</a>', w.paragraphs(article), count=15)
    return (
        f'<div id="mw-page-base"></div><div id="content" class="mw-body"><h1 id="firstHeading">{{title}}</h1>'
        f'<div id="mw-content-text">'
        f'<div id="toc" class="toc"><h2>{s["contents"]}</h2><ul>{w.links(7)}</ul></div>{linked}</div>'
        f'<div id="catlinks">{s["tags"]}: {w.links(5, item="span")}</div></div><div id="mw-panel">{w.links(18)}</div>'
        f'<div id="footer"><ul><li>{s["copyright"]}</li>{w.links(5)}</ul></div>'
    )


def forum(w: Writer, article: str) -> str:
    """A thread: the first post is the article, the answers are not."""
    s = w.say
    answers = "".join(
        f'<div class="post reply"><div class="user"><a href="/u">{s["by"]}</a></div>'
        f'<div class="message">{s["comment"]}</div></div>'
        for _ in range(5)
    )
    return (
        f'<div id="top"><div id="menu">{w.links(9, item="span")}</div></div><div class="crumbs"><a href="/">A'
        f'</a> » <a href="/b">B</a></div>'
        f'<h1>{{title}}</h1><div class="post"><div class="user"><a href="/u">{s["by"]}</a></div>'
        f'<div class="message">{w.paragraphs(article)}'
        f'</div></div>{answers}<div id="bottom">{w.links(12, item="span")}{s["copyright"]}</div>'
    )


KINDS = {
    "news": news,
    "blog": blog,
    "docs": docs,
    "portal": portal,
    "novel": novel,
    "modern": modern,
    "wiki": wiki,
    "forum": forum,
}


def pages(language: str, n: int) -> list[tuple[str, str, str]]:
    """(kind, page, article) of n pages."""
    articles = [text for _, text in builtin.documents("builtin:shakespeare" if language == "en" else "builtin:sanguo")]
    chosen = random.Random(7).sample([a for a in articles if len(a) > 400], n)
    made: list[tuple[str, str, str]] = []
    for i, article in enumerate(chosen):
        kind = list(KINDS)[i % len(KINDS)]
        title = article.split("\n")[0][:40]
        body = KINDS[kind](Writer(language, i), article).replace("{title}", html.escape(title))
        head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>p {{ margin: 0 }}</style><script>var a = {{}};</script>'
        made.append(
            (kind, f'<!DOCTYPE html><html lang="{language}"><head>{head}</head><body>{body}</body></html>', f"{title}\n{article}")
        )
    return made


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W\u4e00-\u9fff]+|[\u4e00-\u9fff]", text))


def scores(found: str, article: str) -> tuple[float, float, float]:
    a, b = words(found), words(article)
    common = (a & b).total()
    return common / max(1, a.total()), common / b.total(), 2 * common / max(1, a.total() + b.total())


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "qianyi (resiliparse main content)": lambda page: main_text(HTMLTree.parse(page)),
    "resiliparse, all text": lambda page: extract_plain_text(page, preserve_formatting=True),
    "trafilatura": lambda page: trafilatura.extract(page, include_comments=False),
    "trafilatura, fast": lambda page: trafilatura.extract(page, include_comments=False, fast=True),
    "trafilatura, favor_recall": lambda page: trafilatura.extract(page, include_comments=False, favor_recall=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=80)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for language in ("en", "zh"):
        made = pages(language, args.pages)
        size_mb = sum(len(page.encode()) for _, page, _ in made) / 1e6
        for name, extract in EXTRACTORS.items():
            extract(made[0][1])
            seconds: list[float] = []
            found: list[str] = []
            for _ in range(3):
                began = time.process_time()
                found = [extract(page) or "" for _, page, _ in made]
                seconds.append(time.process_time() - began)
            result = [scores(text, article) for text, (_, _, article) in zip(found, made, strict=True)]
            by_kind = {
                kind: round(statistics.mean(s[2] for s, (k, _, _) in zip(result, made, strict=True) if k == kind), 3)
                for kind in KINDS
            }
            mean = [round(statistics.mean(column), 3) for column in zip(*result, strict=True)]
            row = {"language": language, "extractor": name, "precision": mean[0], "recall": mean[1], "f1": mean[2], **by_kind}
            rows.append({**row, "mb_per_second": round(size_mb / statistics.median(seconds), 2)})
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
