"""Pages that no corpus should hold, made from fixed seeds: thirty of each kind, English and Chinese."""

import base64
import random
from collections.abc import Callable

_WORDS_EN = (
    *(
        "cheap",
        "shoes",
        "nike",
        "discount",
        "viagra",
        "pills",
        "casino",
        "bonus",
        "poker",
        "online",
        "loans",
        "credit",
        "insurance",
    ),
    *("replica", "watches", "handbags", "free", "download", "mp3", "movies", "torrent", "seo", "backlinks", "traffic", "hosting"),
    *("dating", "singles", "hotel", "flights", "weight", "loss", "diet", "crypto", "forex", "broker"),
)
_WORDS_ZH = (
    *("减肥", "瘦身", "美容", "代办", "发票", "贷款", "信用卡", "套现", "彩票", "博彩", "棋牌", "游戏币", "私服", "外挂", "代练"),
    *(
        "手机",
        "批发",
        "厂家",
        "直销",
        "加盟",
        "招商",
        "优惠",
        "折扣",
        "团购",
        "包邮",
        "正品",
        "代购",
        "奢侈品",
        "高仿",
        "手表",
        "包包",
    ),
    *("整形", "医院", "男科", "妇科", "不孕", "癌症", "偏方", "秘方", "祖传", "风水", "算命"),
)
_MENU_EN = (
    *(
        "Home",
        "About us",
        "Products",
        "Services",
        "News",
        "Blog",
        "Contact",
        "Login",
        "Sign up",
        "Cart",
        "Checkout",
        "Terms of use",
    ),
    *("Privacy policy", "Cookie policy", "Sitemap", "FAQ", "Help", "Careers"),
)
_MENU_ZH = (
    *(
        "首页",
        "关于我们",
        "产品中心",
        "新闻动态",
        "成功案例",
        "联系我们",
        "在线留言",
        "友情链接",
        "网站地图",
        "设为首页",
        "加入收藏",
    ),
    *("用户登录", "免费注册", "购物车", "帮助中心", "版权所有", "返回首页", "下一篇", "上一篇"),
)
_SPAM_EN = (
    "Buy {} online now! Best {} at lowest price! ",
    "Click here for {} >>> ",
    "{} {} {} 100% FREE!!! ",
    "Order {} today $$$ http://{}.example.com ",
)
_SPAM_ZH = (
    "{}哪家好？{}多少钱？",
    "专业{}，加微信xx88888！！！",
    "【{}】{}特价优惠，点击查看→http://{}.example.com ",
    "{}请联系QQ123456789，{}24小时服务！",
)


def _keywords_en(r: random.Random) -> str:
    return ", ".join(r.choices(_WORDS_EN, k=r.randrange(120, 400)))


def _keywords_zh(r: random.Random) -> str:
    return r.choice(" 、|,").join(r.choices(_WORDS_ZH, k=r.randrange(60, 300)))


def _lines_en(r: random.Random) -> str:
    lines = [" ".join(r.choices(_WORDS_EN, k=8)) + "." for _ in range(3)]
    return "\n".join(r.choices(lines, k=60))


def _lines_zh(r: random.Random) -> str:
    lines = [f"我们的{''.join(r.choices(_WORDS_ZH, k=5))}是最好的，欢迎您来选购。" for _ in range(3)]
    return "\n".join(r.choices(lines, k=40))


def _menu_en(r: random.Random) -> str:
    return "\n".join(r.choices(_MENU_EN, k=60)) + "\nCopyright 2024 All rights reserved."


def _menu_zh(r: random.Random) -> str:
    return r.choice("\n |").join(r.choices(_MENU_ZH, k=60)) + "\nCopyright 2024 版权所有"


def _spam(r: random.Random, forms: tuple[str, ...], words: tuple[str, ...]) -> str:
    lines = (r.choice(forms).format(*r.choices(words, k=3)) for _ in range(60))
    return "".join(line + r.choice(("", "\n")) for line in lines)


def _mojibake_zh(r: random.Random) -> str:
    """UTF-8 read as GBK, characters lost throughout: beyond repair."""
    text = "".join(r.choices("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会", k=400))
    broken = text.encode().decode("gbk", "replace")
    return "".join(c for c in broken if r.random() > 0.15)


def _mojibake_en(r: random.Random) -> str:
    """Binary data read as Latin-1."""
    return " ".join(bytes(r.randrange(160, 256) for _ in range(r.randrange(3, 12))).decode("latin-1") for _ in range(150))


def _base64(r: random.Random) -> str:
    return "Attachment data follows. " + base64.encodebytes(r.randbytes(3000)).decode()


def _numbers(r: random.Random) -> str:
    return "\n".join("\t".join(f"{r.uniform(0, 1000):.2f}" for _ in range(8)) for _ in range(60))


def _lorem(r: random.Random) -> str:
    words = (
        "dolor",
        "sit",
        "amet",
        "consectetur",
        "adipiscing",
        "elit",
        "sed",
        "do",
        "eiusmod",
        "tempor",
        "incididunt",
        "ut",
        "labore",
    )
    return "Lorem ipsum dolor sit amet. " + " ".join(r.choices(words, k=200)) + "."


def _symbols(r: random.Random) -> str:
    return "\n".join("".join(r.choices("#*=-_|/\\<>~^ +@", k=70)) for _ in range(30))


def _random_han(r: random.Random) -> str:
    return "".join(chr(r.randrange(0x4E00, 0x9FA5)) for _ in range(500))


def _tags_zh(r: random.Random) -> str:
    return "\n".join(f"{r.choice(_WORDS_ZH)}（{r.randrange(1, 999)}）" for _ in range(80))


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "keywords-en": _keywords_en,
    "keywords-zh": _keywords_zh,
    "repeated-lines-en": _lines_en,
    "repeated-lines-zh": _lines_zh,
    "menu-en": _menu_en,
    "menu-zh": _menu_zh,
    "spam-en": lambda r: _spam(r, _SPAM_EN, _WORDS_EN),
    "spam-zh": lambda r: _spam(r, _SPAM_ZH, _WORDS_ZH),
    "mojibake-en": _mojibake_en,
    "mojibake-zh": _mojibake_zh,
    "base64": _base64,
    "numbers": _numbers,
    "lorem-ipsum": _lorem,
    "symbols": _symbols,
    "random-han": _random_han,
    "tag-cloud-zh": _tags_zh,
}


def junk(name: str) -> list[str]:
    return [_MAKERS[name](random.Random(f"{name}{i}")) for i in range(30)]


JUNK = tuple(_MAKERS)
