"""Sentences in English and Japanese, side by side in a YAML file: key: {en, ja}, filled."""

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import yaml

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@cache
def sentences(path: Path) -> dict[str, dict[str, str]]:
    """Every text of a file by its key and language."""
    found: dict[str, dict[str, str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


class Sentences:
    """The texts of one file. ``asked``: the keys that were used, for the test that all are."""

    def __init__(self, path: Path):
        self.texts = sentences(path)
        self.asked: set[str] = set()

    def __call__(self, key: str, lang: Language, **values: object) -> str:
        """The text of ``key``, filled by str.format; a value that is a (key, values) pair is a text
        too."""
        self.asked.add(key)
        filled = {
            name: self(value[0], lang, **value[1]) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        return self.texts[key][lang].format(**filled)

    def both(self, key: str, **values: object) -> dict[str, str]:
        """The text in every language."""
        return {lang: self(key, lang, **values) for lang in LANGUAGES}
