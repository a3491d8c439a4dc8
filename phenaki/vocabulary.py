"""The words of the captions that a model was trained on, and what of a prompt is not among them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

MAX_WORDS = 20_000  # that a model names: the most frequent
LEAST_LETTERS = 3  # of a word that is missed: shorter ones say little
WORD = re.compile(r"[^\W\d_]+")
ENDINGS = ("ing", "ed", "es", "s", "ly", "y", "e")
LITTLE_WORDS = frozenset({  # that say how things hang together, whatever is shown
    "about", "across", "after", "again", "all", "along", "also", "and", "another", "are", "around", "because", "been", "before", "begins",
    "behind", "being", "beside", "between", "both", "but", "can", "could", "did", "does", "doing", "each", "ever", "few", "for", "from", "get",
    "gets", "got", "had", "has", "have", "having", "her", "him", "his", "how", "into", "its", "just", "lot", "many", "may", "more", "most",
    "much", "nor", "not", "now", "off", "one", "only", "onto", "other", "our", "out", "over", "own", "same", "scene", "she", "should", "shows",
    "some", "starts", "still", "stops", "such", "suddenly", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "through", "too", "toward", "towards", "two", "under", "until", "upon", "very", "via", "video", "was", "were", "what", "when",
    "where", "which", "while", "who", "whom", "whose", "will", "with", "would", "yet", "you", "your",
})  # fmt: skip


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """The words of captions, small letters, in alphabetical order."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    return tuple(sorted(word for word, _ in counts.most_common(MAX_WORDS)))


def familiar(words: Collection[str]) -> frozenset[str]:
    """These words, their stems, and the words of grammar. An e is no ending here: a mane is no form of man."""
    stems = (stem(word) for word in words if not word.endswith("e"))
    return LITTLE_WORDS.union(words, stems)


def unfamiliar_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of a prompt that are not `familiar`, nor is another form of them; short ones are left out."""
    missing = (word for word in words_of(prompt) if len(word) >= LEAST_LETTERS and not known.intersection(forms(word)))
    return list(dict.fromkeys(missing))


def forms(word: str) -> set[str]:
    """A word, its stem, and what it may be made from by dropping an e: dancing, danc, dance."""
    short = stem(word)
    return {word} if short == word else {word, short, short + "e"}


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def stem(word: str) -> str:
    """An English word without its ending, roughly: hops, hopping and hopped are hop."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            word = word.removesuffix(ending)
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
    return word
