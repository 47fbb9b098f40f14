"""Personal data and secrets, found and masked: each kind has a placeholder, and a column counts it.

A kernel finds the places (`kernels/candidates.py`); what stands there is verified by its own rules: checksums (resident identity numbers by
GB 11643-1999, cards by Luhn, ISO/IEC 7812-1), public addresses alone, the documented forms of keys, entropy.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa

from qianyi.corpus.kernels import candidates as cd
from qianyi.corpus.kernels.buffers import replaced
from qianyi.corpus.kernels.candidates import candidates

KINDS = ("email", "ip", "secret", "resident_id", "card", "phone")
PLACEHOLDERS = {kind: f"<{kind.upper()}>" for kind in KINDS}

Span = tuple[int, int, str]
"""First byte, byte after the last, kind."""

_BEFORE_BYTES, _AFTER_BYTES = 72, 280
_EMAIL = re.compile(
    rb"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IPV4 = re.compile(rb"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(rb"(?<![\w:])[0-9A-Fa-f:]{4,45}(?![\w:])")
_RUN = re.compile(rb"[\d .()-]*")
_VERSION = re.compile(rb"(?i)(?:version|ver\.?|release|v)\s*$")
_RESIDENT_ID = re.compile(rb"(?<!\w)[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)")
_CARD = re.compile(rb"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w]|\.\d)")
_MOBILE = re.compile(rb"(?<![\w.+])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?![\w]|\.\d)")
_INTERNATIONAL = re.compile(rb"(?<!\w)\+[1-9]\d{0,2}(?:[ .()-]{0,2}\d){6,12}(?!\w)")
# A Han character is bytes from 0x80, which are no \w of bytes: numbers may stand right beside it.
_KEYS = re.compile(
    rb"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|xox[bpars]-[A-Za-z0-9-]{10,250}"
    rb"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s:,\\-]{0,8000}?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
)
_ASSIGNED = re.compile(rb"[:=]\s{0,2}[\"']?([A-Za-z0-9+/_-]{16,200}={0,2})(?![A-Za-z0-9+/_.(-])")
MIN_ENTROPY_BITS = 3.5
"""Of the characters of a value after `key=`: words have less, random letters and digits more."""

_CARD_LENGTHS = (
    (re.compile(rb"4"), {13, 16, 19}),
    (re.compile(rb"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), {16}),
    (re.compile(rb"3[47]"), {15}),
    (re.compile(rb"62"), {16, 17, 18, 19}),
    (re.compile(rb"6011|64[4-9]|65|35(?:2[89]|[3-8])"), {16, 17, 18, 19}),
    (re.compile(rb"30[0-5]|3[689]"), {14, 16, 19}),
)
"""Issuer prefix and lengths: Visa, Mastercard, American Express, UnionPay, Discover and JCB, Diners Club."""


def mask(texts: pa.Array) -> tuple[pa.Array, pa.RecordBatch]:
    """Replace what is found by placeholders.

    Returns:
        The texts (the same array where nothing was found), and the columns `stat_pii_KIND`: how many of each kind were found, [n].
    """
    found, data, offsets = candidates(texts)
    content = memoryview(data)  # type: ignore[arg-type]
    counts = {kind: np.zeros(len(texts), np.int64) for kind in KINDS}
    masked: dict[int, str] = {}
    for row, places in groupby(found.tolist(), key=lambda place: place[0]):
        start, end = int(offsets[row]), int(offsets[row + 1])
        spans = list(_apart(span for _, at, kind in places for span in _VERIFY[kind](content, at, start, end)))
        if spans:
            masked[row] = _replace(content, start, end, spans)
        for _, _, kind in spans:
            counts[kind][row] += 1
    batch = pa.RecordBatch.from_arrays([pa.array(counts[k]) for k in KINDS], names=[f"stat_pii_{k}" for k in KINDS])
    return replaced(texts, masked), batch


def _apart(spans: Iterator[Span]) -> Iterator[Span]:
    """In order, without those that overlap an earlier one."""
    last = -1
    for span in sorted(set(spans)):
        if span[0] >= last:
            yield span
            last = span[1]


def _replace(content: memoryview, start: int, end: int, spans: list[Span]) -> str:
    pieces: list[bytes] = []
    for a, b, kind in spans:
        pieces += [bytes(content[start:a]), PLACEHOLDERS[kind].encode()]
        start = b
    return b"".join([*pieces, bytes(content[start:end])]).decode()


def _window(content: memoryview, at: int, start: int, end: int) -> tuple[bytes, int]:
    """The bytes around a place, and where they begin."""
    first = max(start, at - _BEFORE_BYTES)
    return bytes(content[first : min(end, at + _AFTER_BYTES)]), first


def _email(content: memoryview, at: int, start: int, end: int) -> Iterator[Span]:
    window, first = _window(content, at, start, end)
    for match in _EMAIL.finditer(window):
        if match.start() <= at - first < match.end():
            yield first + match.start(), first + match.end(), "email"


def _number(content: memoryview, at: int, start: int, end: int) -> Iterator[Span]:
    window, first = _window(content, at, start, end)
    from_run = max(0, at - first - 2)  # a + and a bracket may stand before the digits
    run = _RUN.match(window, at - first)
    near = window[: (run.end() if run else 0) + 2]
    digits = len(near) - from_run - len(near[from_run:].translate(None, b"0123456789"))
    for kind, pattern, holds, least_digits, sign in _NUMBERS:
        if digits < least_digits or sign not in near:
            continue
        for match in pattern.finditer(near, from_run):
            if holds(match[0]) and not (kind == "ip" and _VERSION.search(near[: match.start()])):
                yield first + match.start(), first + match.end(), kind


def _ipv6(content: memoryview, at: int, start: int, end: int) -> Iterator[Span]:
    window, first = _window(content, at, start, end)
    for match in _IPV6.finditer(window):
        if match.start() <= at - first < match.end() and _is_public(match[0]):
            yield first + match.start(), first + match.end(), "ip"


def _prefixed(content: memoryview, at: int, start: int, end: int) -> Iterator[Span]:
    match = _KEYS.match(bytes(content[at : min(end, at + 9000)]))
    if match:
        yield at, at + match.end(), "secret"


def _assigned(content: memoryview, at: int, start: int, end: int) -> Iterator[Span]:
    match = _ASSIGNED.match(bytes(content[at : min(end, at + _AFTER_BYTES)]))
    if match and _is_random(match[1]):
        yield at + match.start(1), at + match.end(1), "secret"


def _is_public(address: bytes) -> bool:
    try:
        return ipaddress.ip_address(address.decode()).is_global
    except ValueError:
        return False


def _is_random(value: bytes) -> bool:
    mixed = re.search(rb"\d", value) and re.search(rb"[A-Za-z]", value)
    counts = Counter(value).values()
    entropy_bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
    return bool(mixed) and entropy_bits >= MIN_ENTROPY_BITS


def is_resident_id(number: bytes) -> bool:
    """Whether the check character of 18 fits: weights 2^(17-i) mod 11 (GB 11643-1999)."""
    total = sum(int(chr(digit)) * pow(2, 17 - i, 11) for i, digit in enumerate(number[:17]))
    return b"10X98765432"[total % 11] == number.upper()[17]


def is_card(number: bytes) -> bool:
    """Whether prefix and length are of an issuer and the Luhn sum fits."""
    digits = re.sub(rb"\D", b"", number)
    if not any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _CARD_LENGTHS):
        return False
    doubled = sum(sum(divmod(2 * int(chr(d)), 10)) for d in digits[-2::-2])
    return (doubled + sum(int(chr(d)) for d in digits[-1::-2])) % 10 == 0


def _is_international(number: bytes) -> bool:
    return 8 <= len(re.sub(rb"\D", b"", number)) <= 15


_NUMBERS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], bool], int, bytes], ...] = (
    ("ip", _IPV4, _is_public, 4, b"."),
    ("resident_id", _RESIDENT_ID, is_resident_id, 17, b""),
    ("card", _CARD, is_card, 13, b""),
    ("phone", _MOBILE, bool, 11, b""),
    ("phone", _INTERNATIONAL, _is_international, 7, b"+"),
)
"""Kind, pattern, what a match must pass, and without what there is none: so many digits, a sign."""
_VERIFY = {
    cd.EMAIL: _email,
    cd.DIGITS: _number,
    cd.IPV4: _number,
    cd.IPV6: _ipv6,
    cd.PREFIX: _prefixed,
    cd.ASSIGNED: _assigned,
}
