"""Languages by script where it says them, by the models otherwise."""

import pyarrow as pa
import pytest
from real_text import real_text

from qianyi.corpus.clean.language import SAMPLE_CHARS, identify, languages, sample
from qianyi.corpus.clean.variants import variants
from qianyi.corpus.kernels.statistics import statistics

SENTENCES = {
    "en": "The committee will meet again next week to discuss what should be done about the bridge.",
    "de": "Der Ausschuss wird sich nächste Woche wieder treffen, um über die Brücke zu sprechen.",
    "fr": "Le comité se réunira de nouveau la semaine prochaine pour parler de l’avenir du pont.",
    "es": "El comité se reunirá de nuevo la próxima semana para hablar sobre el futuro del puente.",
    "ru": "Комитет снова соберётся на следующей неделе, чтобы обсудить будущее моста.",
    "ar": "ستجتمع اللجنة مرة أخرى في الأسبوع المقبل لمناقشة مستقبل الجسر.",
    "vi": "Ủy ban sẽ họp lại vào tuần tới để thảo luận về tương lai của cây cầu.",
    "zh": "委员会将于下周再次开会，讨论这座桥的未来。",
    "ja": "委員会は来週ふたたび集まり、橋の将来について話し合う予定です。",
    "ko": "위원회는 다음 주에 다시 모여 다리의 미래에 대해 논의할 것입니다.",
    "und": "12:30 — 45.6 % ...",
}


def told(texts: list[str]) -> pa.RecordBatch:
    strings = pa.array(texts, pa.string())
    return languages(strings, statistics(strings, *variants()))


def test_sentences() -> None:
    batch = told(list(SENTENCES.values()))
    assert batch.column("label_language").to_pylist() == list(SENTENCES)
    scores = batch.column("label_language_score").to_pylist()
    assert all(score > 0.5 for score, name in zip(scores, SENTENCES, strict=True) if name != "und")
    scripts = ["latin"] * 4 + ["cyrillic", "other_letters", "latin", "han", "kana", "hangul", ""]
    assert batch.column("label_script").to_pylist()[:7] == scripts[:7]
    assert batch.column("label_script").to_pylist()[-2:] == scripts[-2:]


def test_chinese_with_commands_in_it_is_chinese() -> None:
    text = "使用 git rebase --interactive HEAD~3 可以修改最近三次提交，然后用 git push --force-with-lease origin main 推送。"
    assert told([text]).column("label_language").to_pylist() == ["zh"]


@pytest.mark.parametrize(("name", "language"), [("sanguo", "zh"), ("shakespeare", "en"), ("sotu", "en"), ("manpages-zh", "zh")])
def test_real_text(name: str, language: str) -> None:
    found = told(real_text(name)[:200]).column("label_language").to_pylist()
    assert found.count(language) >= 0.99 * len(found)


def test_sample_is_the_beginning_and_the_middle() -> None:
    text = "a" * SAMPLE_CHARS + "b" * SAMPLE_CHARS + "\n" * 9 + "c" * 5 * SAMPLE_CHARS
    assert sample(text).count("a") == SAMPLE_CHARS
    assert len(sample(text)) == 2 * SAMPLE_CHARS + 1
    assert sample("x\ny") == "x y"


def test_the_detector_is_believed_only_where_the_model_is_unsure() -> None:
    german = SENTENCES["de"]
    assert identify(german, lambda _: {"fr": 0.9, "de": 0.1}) == ("fr", 0.9)
    assert identify(german, lambda _: {"fr": 0.4, "de": 0.3}) == ("de", 0.3)
    assert identify("xq zzkw", lambda _: {"fr": 0.2}) == ("fr", 0.2)
    assert identify("", lambda _: {}) == ("und", 0.0)
