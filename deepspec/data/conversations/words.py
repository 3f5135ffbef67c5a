"""The words of a text, for near-duplicates and overlaps with benchmarks. Standard library only."""

import re
import unicodedata

# Kana and Han are written without spaces: there each sign is a word.
_SIGNS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W_{_SIGNS}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, case-folded and in Unicode's compatibility form; punctuation is left out."""
    if text.isascii():  # the same, sooner
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def plain(text: str) -> str:
    """A text without case, spacing and punctuation; one without words (an emoji) as it is."""
    return " ".join(words_of(text)) or text.strip()
