"""The words of the captions that a model was trained on, and what of a prompt is not among them."""

import re
from collections import Counter
from collections.abc import Iterable

MAX_WORDS = 20_000  # that a model names: the most frequent
LEAST_LETTERS = 4  # of a word that is missed: shorter ones say little
WORD = re.compile(r"[^\W\d_]+")
ENDINGS = ("ing", "ed", "es", "s", "ly", "y", "e")
LITTLE_WORDS = {  # that say how things hang together, whatever is shown
    "about", "across", "after", "again", "along", "also", "another", "around", "because", "been", "before", "begins", "behind", "being",
    "beside", "between", "both", "could", "does", "doing", "each", "from", "have", "having", "into", "just", "many", "more", "most", "much",
    "only", "onto", "other", "over", "same", "scene", "should", "shows", "some", "starts", "still", "stops", "suddenly", "that", "their", "them",
    "then", "there", "these", "they", "this", "those", "through", "toward", "towards", "under", "until", "very", "video", "when", "where",
    "which", "while", "will", "with", "would",
}  # fmt: skip


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """The words of captions, small letters, in alphabetical order."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    return tuple(sorted(word for word, _ in counts.most_common(MAX_WORDS)))


def familiar(words: Iterable[str]) -> frozenset[str]:
    """These words, their stems, and the words of grammar."""
    return frozenset(LITTLE_WORDS).union(*((word, stem(word)) for word in words))


def unfamiliar_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of a prompt that are not `familiar`, nor is another form of them; short ones are left out."""
    missing = (word for word in words_of(prompt) if len(word) >= LEAST_LETTERS and not known & {word, stem(word)})
    return list(dict.fromkeys(missing))


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def stem(word: str) -> str:
    """An English word without its ending, roughly: hops, hopping and hopped are hop."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            word = word.removesuffix(ending)
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
    return word
