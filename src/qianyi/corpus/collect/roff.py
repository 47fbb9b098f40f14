"""Manual pages (man(7), mdoc(7)) to plain text, without running groff: it takes tens of milliseconds a page, this takes one or two.

Every macro that man-pages use is known; of tables the cells stay, of equations and pictures nothing.
"""

import re
import unicodedata

_SPECIAL = {
    "aq": "'", "dq": "\"", "rs": "\\", "em": "—", "en": "–", "hy": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™",
    "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "ha": "^", "ti": "~", "ga": "`", "Fo": "«", "Fc": "»", "->": "→", "<-": "←",
    ">=": "≥", "<=": "≤", "!=": "≠", "mu": "×", "+-": "±", "pl": "+", "mi": "-", "eq": "=", "sl": "/", "at": "@", "sh": "#",
    "Do": "$", "de": "°", "ss": "ß", "la": "⟨", "ra": "⟩", "ba": "|", "or": "|", "lB": "[", "rB": "]", "lC": "{", "rC": "}",
    "if": "∞", "->>": "⇒", "mc": "µ", "12": "½", "14": "¼", "34": "¾", "sc": "§", "**": "*",
}  # fmt: skip
_ACCENT = {"'": "\u0301", "`": "\u0300", ":": "\u0308", "^": "\u0302", "~": "\u0303", ",": "\u0327"}
_ESCAPE = re.compile(
    r"""\\(?:
    \((?P<two>..) | \[(?P<long>[^\]]*)\] | \*(?:\((?P<str2>..)|\[(?P<strl>[^\]]*)\]|(?P<str1>.)) |
    f(?:\(..|\[[^\]]*\]|.) | s[-+]?(?:\(..|\[[^\]]*\]|'[^']*'|\d{1,2}) | [mMFkngVY](?:\(..|\[[^\]]*\]|[-+]?.) |
    [hvwNoblLDXZRxABCSH](?:'[^']*') | (?P<char>.) | $)""",
    re.VERBOSE,
)
_STRINGS = {"Aq": "'", "lq": "“", "rq": "”", "R": "®", "Tm": "™", "L": "“"}
_FONTS = frozenset({"B", "I", "R", "SM", "SB"})
_ALTERNATING = frozenset({"BI", "BR", "IB", "IR", "RB", "RI"})
_MDOC_QUOTED = {
    "Dq": "“%s”",
    "Sq": "‘%s’",
    "Pq": "(%s)",
    "Bq": "[%s]",
    "Op": "[%s]",
    "Aq": "<%s>",
    "Ql": "‘%s’",
    "Qq": '"%s"',
    "Brq": "{%s}",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BREAKING = _words("PP P LP HP Pp br sp IP TP TQ It Bl El Bd Ed RS RE nf fi EX EE in Dl D1 SY YS Lp")
_MDOC_WORDS = _words(
    """Nm Fl Ar Cm Pa Ic Xr Em Sy Li Va Vt Fa Fn Ft Fd Ev Er Dv In Lk Mt St Tn Ux Bx Fx Nx Ox No Ns Ap An At Cd Lb Ms Sx Rv Ex Pf
    Dq Sq Pq Bq Op Aq Ql Qq Brq Oo Oc Ao Ac Do Dc So Sc Po Pc Bo Bc Fo Fc Xo Xc Qo Qc Eo Ec Rs Re Bk Ek Sm Nd"""
)


def roff_to_text(source: str) -> tuple[str, str | None]:
    """The text of a page and its title, such as ls(1)."""
    return _Page().convert(source)


class _Page:
    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.line: list[str] = []
        self.filled = True
        self.title: str | None = None
        self.name = ""
        self.tag_next = False
        self.join_next = False
        self.in_table = False
        self.format_rows = False
        self.skip_until: str | None = None
        self.skipped_blocks = 0
        self.last_condition = self.else_shows = False

    def convert(self, source: str) -> tuple[str, str | None]:
        for line in re.sub(r"\\\n", "", source).split("\n"):
            self._take(line)
        self._break()
        text = "\n".join(self.blocks)
        return re.sub(r"\n{3,}", "\n\n", text).strip(), self.title

    def _take(self, line: str) -> None:
        if self.skipped_blocks:
            self.skipped_blocks = max(0, self.skipped_blocks + line.count("\\{") - line.count("\\}"))
        elif self.skip_until is not None:
            if re.sub(r"^\.\s+", ".", line).startswith(self.skip_until):
                self.skip_until = None
        elif re.fullmatch(r"\.?\s*\\\}", line):
            return
        elif line.startswith((".", "'")) and not re.match(r"'[^.\\a-zA-Z\s]", line):
            self._macro(line[1:].strip())
        elif self.in_table:
            self._row(line)
        elif not line.strip():
            self._break(blank=True)
        else:
            self._text(unescape(line))
            self.join_next = line.endswith("\\c")

    def _text(self, text: str) -> None:
        if not self.filled:
            self._break()
            self.blocks.append(text.rstrip())
            return
        if self.join_next and self.line:
            self.line[-1] += text.strip()
        elif text.strip():
            self.line.append(text.strip())
        self.join_next = False
        if self.tag_next:
            self.tag_next = False
            self._break()

    def _break(self, blank: bool = False) -> None:
        if self.line:
            self.blocks.append(_joined(self.line))
            self.line = []
        if blank:
            self.blocks.append("")

    def _macro(self, line: str) -> None:
        line = re.sub(r'(^|\s)\\".*$', "", line)
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in {"if", "ie", "el"}:
            self._condition(name, rest)
        elif name in {"TH", "Dt"}:
            words = arguments(rest)
            self.title = f"{words[0].lower()}({words[1]})" if len(words) > 1 else None
        elif name in {"SH", "SS", "Sh", "Ss"}:
            self._heading(rest)
        elif name in {"de", "de1", "am", "ig"}:
            words = rest.split()
            self.skip_until = f".{words[1]}" if len(words) > 1 and name != "ig" else ".."
        elif name in {"TS", "EQ", "PS"}:
            self._break()
            self.in_table, self.skip_until = name == "TS", {"EQ": ".EN", "PS": ".PE"}.get(name)
            self.format_rows = True
        elif name == "TE":
            self.in_table = False
        elif name in _BREAKING:
            self._breaking(name, rest)
        else:
            self._inline(name, rest)

    def _condition(self, name: str, rest: str) -> None:
        """What is shown on a terminal (`n`, `!t`) is text; other conditions are about fonts and versions."""
        condition, _, body = rest.partition(" ") if name != "el" else ("", "", rest)
        holds = condition in {"n", "!t"} if name != "el" else self.last_condition is False and self.else_shows
        self.last_condition, self.else_shows = holds, name == "ie" and condition == "t"
        if not holds:
            self.skipped_blocks = max(0, rest.count("\\{") - rest.count("\\}"))
        elif body.strip() not in {"", "\\{"}:
            self._take(body.strip().removeprefix("\\{"))

    def _heading(self, rest: str) -> None:
        self._break(blank=True)
        self.filled = True
        words = arguments(rest)
        if words:
            self.blocks.append(" ".join(words))

    def _breaking(self, name: str, rest: str) -> None:
        self._break(blank=name in {"PP", "P", "LP", "Pp", "sp", "Lp"})
        if name in {"nf", "EX", "Bd"}:
            self.filled = name == "Bd" and "literal" not in rest and "unfilled" not in rest
        elif name in {"fi", "EE", "Ed"}:
            self.filled = True
        elif name in {"TP", "TQ"}:
            self.tag_next = True
        elif name == "IP" and (words := arguments(rest)):
            self.blocks.append(words[0])
        elif name in {"It", "Dl", "D1"} and rest:
            self._text(self._mdoc(rest))
            if name == "It":
                self._break()
        elif name == "SY" and (words := arguments(rest)):
            self.line.append(words[0])

    def _inline(self, name: str, rest: str) -> None:
        words = arguments(rest)
        if name in _FONTS:
            self._text(" ".join(words))
        elif name in _ALTERNATING:
            self._text("".join(words))
        elif name == "OP":
            self._text(f"[{' '.join(words)}]")
        elif name in {"UR", "MT", "ME", "UE"}:
            if words and words[0].strip():
                self._text(words[0])
        elif name == "MR":
            self._text(f"{words[0]}({words[1]}){''.join(words[2:])}" if len(words) > 1 else "".join(words))
        elif name == "Nd":
            self._text("– " + " ".join(words))
        elif name in _MDOC_WORDS or name.startswith("%"):
            self._text(self._mdoc(f"{name} {rest}"))

    def _row(self, line: str) -> None:
        """A line of a table: its format ends with a period; cells are parted by tabs; a T{ block is filled text."""
        if self.format_rows:
            if line.rstrip().endswith("."):
                self.format_rows = False
            return
        if re.fullmatch(r"[_=\s]*", line):
            return
        cells = [unescape(cell).strip() for cell in re.sub(r"T[{}]", "", line).split("\t")]
        text = " ".join(cell for cell in cells if cell and cell not in {"_", "="})
        if text:
            self.blocks.append(text)

    def _mdoc(self, line: str) -> str:
        """A line of mdoc: macros among its words."""
        words = arguments(line)
        out: list[str] = []
        glue = False
        i = 0
        while i < len(words):
            word = words[i]
            i += 1
            if word == "Ns":
                glue = True
            elif word in _MDOC_QUOTED:
                inner = self._mdoc(" ".join(f'"{w}"' if " " in w else w for w in words[i:]))
                out.append(_MDOC_QUOTED[word] % inner)
                break
            elif word == "Xr" and i + 1 < len(words) + 1:
                out.append(f"{words[i]}({words[i + 1]})" if i + 1 < len(words) else "".join(words[i:]))
                i += 2
            elif word == "Nm":
                if i < len(words) and words[i] not in _MDOC_WORDS and not re.fullmatch(r"\W", words[i]):
                    self.name = self.name or words[i]
                else:
                    out.append(self.name)
            elif word == "Fl":
                out.append("-" + (words[i] if i < len(words) and words[i] not in _MDOC_WORDS else ""))
                i += i < len(words) and words[i] not in _MDOC_WORDS
            elif word == "Fn" and i < len(words):
                out.append(f"{words[i]}({', '.join(words[i + 1 :])})")
                break
            elif word in _MDOC_WORDS or word.startswith("%"):
                continue
            elif out and (glue or re.fullmatch(r"[.,;:)\]?!]+", word)):
                out[-1] += word
                glue = False
            else:
                out.append(word)
        return " ".join(w for w in out if w)


def _joined(words: list[str]) -> str:
    """Lines of a paragraph as one; nothing between two Han characters, where a space would be read as one."""
    text = words[0]
    for word in words[1:]:
        text += word if _wide(text[-1:]) and _wide(word[:1]) else f" {word}"
    return text


def _wide(character: str) -> bool:
    return "\u2e80" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef" or "\u3000" <= character <= "\u303f"


def arguments(line: str) -> list[str]:
    """The arguments of a macro; those in quotes may hold spaces, and "" is a quote in them."""
    found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+)', line)
    return [unescape(quoted.replace('""', '"') if quoted or not bare else bare) for quoted, bare in found]


def unescape(text: str) -> str:
    """Text with its escapes replaced by the characters that they stand for."""
    return _ESCAPE.sub(_character, re.sub(r'(?<!\\)\\[#"].*', "", text)) if "\\" in text else text


def _character(match: re.Match[str]) -> str:
    name = match["two"] or match["long"]
    if name is not None:
        return _named(name)
    string = match["str2"] or match["strl"] or match["str1"]
    if string is not None:
        return _STRINGS.get(string, "")
    character = match["char"]
    if character is None:
        return ""
    return {
        "-": "-",
        "e": "\\",
        "E": "\\",
        "\\": "\\",
        "~": " ",
        " ": " ",
        "0": " ",
        "t": "\t",
        "'": "'",
        "`": "`",
        ".": ".",
    }.get(character, "")


def _named(name: str) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name]
    if re.fullmatch(r"u[0-9A-F]{4,6}(_[0-9A-F]{4,6})*", name):
        return "".join(chr(int(code, 16)) for code in name[1:].split("_") if int(code, 16) < 0x110000)
    if len(name) == 2 and name[0] in _ACCENT:
        return unicodedata.normalize("NFC", name[1] + _ACCENT[name[0]])
    return ""
