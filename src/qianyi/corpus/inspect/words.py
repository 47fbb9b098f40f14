"""The page in two languages: English is written where it is used, Chinese is here."""

import re
from collections.abc import Callable

from markupsafe import Markup, escape

CHINESE = {
    "Of {into} documents that came in, {kept} are kept: {share}, with {size} of text.": (
        "收入 {into} 篇文档，保留 {kept} 篇（{share}），文本共 {size}。"
    ),
    "{n} of them are for research only.": "其中 {n} 篇仅限研究使用。",
    "came in": "收入",
    "kept": "保留",
    "dropped": "剔除",
    "of text": "文本",
    "characters": "字符数",
    "tokens": "词元",
    "sources": "来源",
    "for research only": "仅限研究",
    "research only": "仅限研究",
    "Stages": "各步骤",
    "stage": "步骤",
    "documents": "文档",
    "share kept": "保留比例",
    "text": "文本",
    "time": "用时",
    "What came in": "收入的内容",
    "source": "来源",
    "licence": "许可",
    "not stated": "未注明",
    "and {n} more": "另有 {n} 项",
    "What was dropped, and why": "剔除了什么，为什么",
    "A sample of each rule, chosen by hash. What a rule found stands above the text.": (
        "每条规则的样例按散列值选取；规则所测得的值写在正文之上。"
    ),
    "{stage}: {n} of {total} documents": "{stage}：{total} 篇中的 {n} 篇",
    "Nothing was dropped.": "没有剔除任何文档。",
    "Distributions": "分布",
    "Filled: what is kept at the end. Outline: before any document was dropped by what is measured.": (
        "实心：最终保留的；轮廓：依据测量值剔除之前的。"
    ),
    "Number of documents; the outermost bars hold what lies beyond.": "纵轴为文档数；最外侧的柱子包含超出范围的值。",
    "median": "中位数",
    "All other statistics": "其余统计量",
    "Values of columns": "各列取值",
    "Duplicates": "重复",
    "{n} clusters; {dropped} documents were dropped for one that stays.": "{n} 个重复簇；{dropped} 篇因与保留者重复而被剔除。",
    "Beside exact Jaccard similarity on a sample of {n} documents ({pairs} pairs of {least} and more):": (
        "在 {n} 篇文档的样本上与精确 Jaccard 相似度（不低于 {least} 的有 {pairs} 对）对照："
    ),
    "recall {value}": "召回率 {value}",
    ", precision {value}": "，精确率 {value}",
    "(alone {n})": "（单独 {n}）",
    "text after {stage}": "{stage} 之后的文本",
    "documents in a cluster": "簇的大小",
    "clusters": "簇数",
    "{n} documents": "{n} 篇文档",
    "stays": "保留",
    "not in this corpus": "不在本语料中",
    "Topics": "主题",
    "{n} documents, placed by the words they use.": "{n} 篇文档，按用词排布。",
    "Unlike all others": "与众不同的文档",
    "Personal data": "个人信息",
    "kind": "种类",
    "found and masked": "发现并遮盖",
    "Tokens": "词元",
    "bytes per token": "字节/词元",
    "What is kept": "保留的内容",
    "A sample of each source, chosen by hash.": "每个来源的样例，按散列值选取。",
    "Settings": "设置",
    "Counted on the way": "过程计数",
    "Written by Qianyi {version}. This page loads nothing from the network.": "由千亿 {version} 生成。本页不从网络加载任何内容。",
}

_WORDS = re.compile(r"\{(\w+)\}")


def bilingual(words: str, **values: object) -> Markup:
    """Words in both languages, of which the page shows one; values are escaped."""
    shown = {name: escape(value) for name, value in values.items()}
    english, chinese = (_WORDS.sub(lambda m: str(shown[m[1]]), str(escape(text))) for text in (words, CHINESE[words]))
    if english == chinese:
        return Markup(english)
    return Markup(f'<span class="en">{english}</span><span class="zh" lang="zh">{chinese}</span>')


Translate = Callable[..., Markup]
