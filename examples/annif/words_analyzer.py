"""An analyzer for Annif that needs no downloaded data: ``analyzer=words``; words in lower case, as valid as Annif has them."""

from __future__ import annotations

import re

from annif.analyzer import register_analyzer
from annif.analyzer.analyzer import Analyzer

_WORD = re.compile(r"\w+")


class WordsAnalyzer(Analyzer):
    name = "words"

    def __init__(self, param: None = None) -> None:
        """Without the base class's, which fetches a tokenizer."""
        self.param = param

    def tokenize_words(self, text: str, filter: bool = True) -> list[str]:
        return [word.lower() for word in _WORD.findall(text) if not filter or self.is_valid_token(word)]


register_analyzer(WordsAnalyzer)
