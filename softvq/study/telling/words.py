"""How the report says things, in English or Japanese: the sentences of words.yaml, filled."""

from collections.abc import Iterable
from pathlib import Path

from softvq.errors import UserError
from softvq.words import LANGUAGES, Language, sentences


def texts() -> dict[str, dict[str, str]]:
    """Every sentence by its key and language."""
    return sentences(Path(__file__).with_name("words.yaml"))


class Count(int):
    """A whole number: ``1,234``, or with the format ``photo|photos`` ``1,234 photos``."""

    def __format__(self, spec: str) -> str:
        one, bar, many = spec.partition("|")
        number = f"{int(self):,}"
        return f"{number} {one if self == 1 else many}" if bar else number


class Words:
    """The texts of one language. Raises UserError for a language that is not there."""

    def __init__(self, lang: str):
        if lang not in LANGUAGES:
            raise UserError(f"unknown language '{lang}'; known: {', '.join(LANGUAGES)}")
        self.lang: Language = LANGUAGES[LANGUAGES.index(lang)]
        self.asked: set[str] = set()  # keys, for the test that every text is used

    def __call__(self, key: str, **values: object) -> str:
        """The text of ``key``, filled with ``values``."""
        self.asked.add(key)
        counted = {
            name: Count(value) if type(value) is int else value for name, value in values.items()
        }
        return texts()[key][self.lang].format(**counted)

    def has(self, key: str) -> bool:
        return key in texts()

    def name(self, family: str, name: str) -> str:
        """The text of ``family.name``; a name that no one translated stands for itself."""
        key = f"{family}.{name}"
        return self(key) if self.has(key) else name

    def join(self, items: Iterable[str]) -> str:
        """An enumeration."""
        return self("comma").join(items)

    def prose(self, sentences: Iterable[str]) -> str:
        """One paragraph."""
        return self("between_sentences").join(sentences)
