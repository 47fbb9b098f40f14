"""datatrove's Gopher rules on documents, in an environment of its own.

    pip install datatrove==0.10.1 'xxhash<4' spacy jieba nltk tldextract regex
    python benchmarks/peers/datatrove_rules.py FILE.json LANGUAGE

FILE.json is a list of texts. Prints JSON: documents that GopherRepetitionFilter and GopherQualityFilter both keep, and CPU seconds.
"""

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

LANGUAGES = {
    "en": {"language": "en"},
    # What one would write who knows the options: words of a character or two, Chinese stop words.
    "zh": {"language": "zh", "stop_words": ["的", "是", "了", "在", "不"], "min_avg_word_length": 1, "max_avg_word_length": 10},
}


def main(file: str, language: str) -> None:
    texts = json.loads(Path(file).read_text(encoding="utf-8"))
    filters = (GopherRepetitionFilter(language=language), GopherQualityFilter(**LANGUAGES[language]))
    began, kept = time.process_time(), 0
    for text in texts:
        kept += all(step.filter(Document(text=text, id="")) is True for step in filters)
    print(json.dumps({"kept": kept, "seconds": time.process_time() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
