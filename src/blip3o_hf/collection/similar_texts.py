"""Texts that say the same in nearly the same words: found by MinHash, decided by the words themselves."""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

SIMILAR = 0.8
"""Share of common pairs of words from which two texts count as one."""
RUN = 8
"""So many words in a row in common are a quotation, not chance."""
_BANDS, _ROWS = 32, 4
_ARTICLES = {"a", "an", "the"}
_RNG = np.random.default_rng(0)
_FACTORS = _RNG.integers(1, 2**63, size=_BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _RNG.integers(0, 2**63, size=_BANDS * _ROWS, dtype=np.uint64)


def words_of(text: str) -> tuple[str, ...]:
    """
    The words of a text in one form: small letters, without punctuation and articles.

    Example:
        >>> words_of("The red Apple, on a table.")
        ('red', 'apple', 'on', 'table')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return tuple(word for word in re.findall(r"[^\W_]+", plain) if word not in _ARTICLES)


def runs_of(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every [`RUN`] words in a row."""
    return {words[start : start + RUN] for start in range(len(words) - RUN + 1)}


def _pairs(words: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    padded = ("", *words, "")
    return frozenset(itertools.pairwise(padded))


def _hash(pair: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(pair).encode(), digest_size=8).digest(), "little")


class SimilarTexts:
    """
    Texts by their words, so that an equal or similar one is found fast among many.

    Two texts are similar when at least [`SIMILAR`] of their pairs of neighbouring words, taken together, are common
    (Jaccard). MinHash with 32 bands of 4 rows proposes which texts are compared: at this similarity it misses about
    one in ten million.

    Example:
        >>> texts = SimilarTexts(["two red apples on a table"])
        >>> texts.find("Two red apples, on the table!")
        'two red apples on a table'
    """

    def __init__(self, texts: Iterable[str] = ()):
        self._equal: dict[tuple[str, ...], str] = {}
        self._bands: dict[tuple[int, bytes], list[tuple[frozenset, str]]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        words = words_of(text)
        if words in self._equal:
            return
        self._equal[words] = text
        pairs = _pairs(words)
        for band in self._signature(pairs):
            self._bands.setdefault(band, []).append((pairs, text))

    def find(self, text: str) -> str | None:
        """A remembered text that is equal or similar, the equal one first; `None` where there is none."""
        words = words_of(text)
        if words in self._equal:
            return self._equal[words]
        pairs = _pairs(words)
        for band in self._signature(pairs):
            for others, other in self._bands.get(band, ()):
                if len(pairs & others) >= SIMILAR * len(pairs | others):
                    return other
        return None

    @staticmethod
    def _signature(pairs: frozenset[tuple[str, ...]]) -> list[tuple[int, bytes]]:
        hashes = np.array(sorted(map(_hash, pairs)), dtype=np.uint64)
        mixed = hashes[:, None] * _FACTORS + _OFFSETS  # wraps around, as it should
        mixed ^= mixed >> np.uint64(32)
        least = (mixed * _FACTORS[::-1]).min(axis=0).reshape(_BANDS, _ROWS)
        return [(number, row.tobytes()) for number, row in enumerate(least)]
