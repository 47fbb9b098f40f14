"""What is personal or secret is masked, what looks like it is not, and the scan finds all that its rules would find anywhere."""

import random
import re

import pyarrow as pa
import pytest
from real_text import real_text

from qianyi.corpus.clean.pii import KINDS, PLACEHOLDERS, is_card, is_resident_id, mask


def masked(text: str) -> tuple[str, dict[str, int]]:
    out, counts = mask(pa.array(["before", text, "after"]))
    assert out[0].as_py() == "before"
    assert out[2].as_py() == "after"
    return out[1].as_py(), {kind: n for kind in KINDS if (n := counts.column(f"stat_pii_{kind}")[1].as_py())}


FOUND = {
    "写信给zhang.san@mail.example.com.cn，谢谢": "写信给<EMAIL>，谢谢",
    "a+b_c@x-y.org; d@e.io": "<EMAIL>; <EMAIL>",
    "电话13800138000。": "电话<PHONE>。",
    "tel +86 139-1234-5678 ok": "tel <PHONE> ok",
    "call +1 (415) 555-2671 or +44 20 7946 0958 now": "call <PHONE> or <PHONE> now",
    "身份证11010519491231002X，姓名": "身份证<RESIDENT_ID>，姓名",
    "card 4111 1111 1111 1111, 378282246310005": "card <CARD>, <CARD>",
    "卡号6222020000000000000": "卡号<CARD>",
    "from 8.8.8.8 to 2001:4860:4860::8888": "from <IP> to <IP>",
    "id AKIAIOSFODNN7EXAMPLE end": "id <SECRET> end",
    "token ghp_" + "a1B2" * 9 + ".": "token <SECRET>.",
    "github_pat_" + "a1B2c3" * 10: "<SECRET>",
    "xoxb-123456789012-abcdefGHIJ": "<SECRET>",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\nIBAAK\n-----END RSA PRIVATE KEY-----\nx": "<SECRET>\nx",
    'api_key = "sk9f8Qw7ZxC1vB2nM3aS4dF5gH6j"': 'api_key = "<SECRET>"',
    "PASSWORD: x9Kq2mWv7LpZ4tRb8NcY": "PASSWORD: <SECRET>",
    "1998 2001 13912345678 7": "1998 2001 <PHONE> 7",
}
KEPT = [
    "me@localhost foo@bar @name a@",
    "192.168.1.1 10.0.0.1 127.0.0.1 255.255.255.255 1.2.3 v1.2.3.4 version 8.8.4.4 999.1.1.1 1.2.3.4.5",
    "12:30:45 fe80::1 ::1 std::vector a::b",
    "身份证110105194912310021 13912345",
    "4111 1111 1111 1112 and 1234567890123456",
    "ISBN 978-7-02-000220-7, 3.14159265358979, 0.13800138000, 1600000000, 2024-01-02 10:20:30",
    "key=operator.itemgetter(1) key: value password: hunter2 token = get_token_from_environment",
    "-----BEGIN CERTIFICATE-----",
    "123456789012345678901234567890",
]


@pytest.mark.parametrize(("text", "expected"), FOUND.items())
def test_found(text: str, expected: str) -> None:
    out, counts = masked(text)
    assert out == expected
    assert counts == {kind: expected.count(p) for kind, p in PLACEHOLDERS.items() if p in expected}


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    assert masked(text) == (text, {})


def test_checksums() -> None:
    source = random.Random(0)
    for _ in range(200):
        born = f"19{source.randrange(40, 99)}0{source.randrange(1, 9)}1{source.randrange(9)}"
        body = f"{source.randrange(110000, 660000)}{born}{source.randrange(1000):03d}"
        good = [c for c in "0123456789X" if is_resident_id((body + c).encode())]
        weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # as the standard prints them
        total = sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11
        assert good == ["10X98765432"[total]]
    assert is_card(b"5555 5555 5555 4444")
    assert is_card(b"3530111333300000")
    assert not is_card(b"9555555555554444")


def test_the_scan_overlooks_no_address_in_real_text() -> None:
    """With addresses put at random places, all of them are found, and nothing else changes."""
    source, texts, wanted = random.Random(0), [], []
    for text in real_text("sanguo")[:100] + real_text("shakespeare")[:100]:
        at = source.randrange(len(text))
        secret, placeholder = source.choice(
            [
                (" x.y@example.com ", " <EMAIL> "),
                (" 13800138000 ", " <PHONE> "),
                (" 8.8.8.8 ", " <IP> "),
                (" 11010519491231002X ", " <RESIDENT_ID> "),
            ]
        )
        texts.append(text[:at] + secret + text[at:])
        wanted.append(text[:at] + placeholder + text[at:])
    assert mask(pa.array(texts))[0].to_pylist() == wanted


def test_good_text_is_not_masked() -> None:
    for name in ("sanguo", "shakespeare"):
        out, counts = mask(pa.array(real_text(name)))
        assert out.to_pylist() == real_text(name)
        assert not any(counts.column(k).to_numpy().any() for k in counts.schema.names)
    assert not any(re.search("<[A-Z_]+>", text) for text in real_text("shakespeare")[:50])
