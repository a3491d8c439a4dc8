"""What a model says of the words that it was trained on."""

from phenaki.checkpoint import PRETRAINED, read_info
from phenaki.vocabulary import MAX_WORDS, familiar, unfamiliar_words, vocabulary


def test_words_are_those_of_captions_in_small_letters():
    assert vocabulary(["A bear, hops!", "The Bär can't hop; 3 bears"]) == ("a", "bear", "bears", "bär", "can", "hop", "hops", "t", "the")
    many = ["often " + str(100_000 + n).translate(str.maketrans("0123456789", "abcdefghij")) for n in range(30_000)]
    assert len(vocabulary(many)) == MAX_WORDS and "often" in vocabulary(many), "the most frequent"


def test_other_forms_short_words_and_those_of_grammar_are_familiar():
    known = familiar(["bear", "hops", "walks", "snow", "runs", "sunny"])
    assert unfamiliar_words("While bears are hopping, walked or run through the snowy sun with them", known) == []
    assert unfamiliar_words("A wizard hops, the Wizard brews", known) == ["wizard", "brews"]
    assert unfamiliar_words("He and his two men are in it, but who has an ox, a gun?", known) == ["men", "gun"], "three letters can say a thing"
    forms = familiar(["dances", "makes", "mane", "house"])
    assert unfamiliar_words("They dance, dancing and danced; who makes, making houses to make?", forms) == []
    assert unfamiliar_words("A man, the manes", forms) == ["man"]


def test_the_shipped_model_knows_its_own_world():
    words = familiar(read_info(PRETRAINED / "storybook").words)
    assert unfamiliar_words("A teddy bear walks to the right on the beach at sunset", words) == []
    assert unfamiliar_words("A wizard brews a potion in the kitchen", words) == ["wizard", "brews", "potion", "kitchen"]
    assert unfamiliar_words("A man and a boy watch their dog", words) == ["man", "boy", "watch"]
