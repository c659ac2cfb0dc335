"""Entropy of n-grams and tf-idf cosine, against hand calculation."""

import math

import pytest

import rome_lens as rl
from rome_lens.evaluation.fluency import ngram_entropy, tfidf_similarity, words


def test_words_keep_apostrophes_and_punctuation_stands_alone() -> None:
    assert words("It's Wanda's: 3 cats, isn’t it?") == [
        "It's",
        "Wanda's",
        ":",
        "3",
        "cats",
        ",",
        "isn’t",
        "it",
        "?",
    ]


def test_entropy_by_hand() -> None:
    """ "a b a b c": bigrams ab 2, ba 1, bc 1 (1.5 bits); trigrams aba, bab, abc (log2 3 bits)."""
    assert ngram_entropy("a b a b c") == pytest.approx(
        (2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2, abs=1e-12
    )


@pytest.mark.parametrize("text", ["", "one", "a a a a a a a a"])
def test_what_repeats_itself_or_says_nothing_has_no_entropy(text: str) -> None:
    assert ngram_entropy(text) == 0.0


def test_entropy_grows_with_distinct_words() -> None:
    few, many = (" ".join(f"w{i % n}" for i in range(60)) for n in (3, 60))
    assert ngram_entropy(few) < 2.0 < ngram_entropy(many)
    assert ngram_entropy(many) == pytest.approx(
        (2 / 3 * math.log2(59) + 4 / 3 * math.log2(58)) / 2, abs=1e-12
    )


def test_tfidf_by_hand() -> None:
    """Documents "Rome rome city." and "rome, tower": idf 1 for what both have, ln(3/2) + 1 for the
    rest."""
    rare = math.log(3 / 2) + 1
    expected = (2 * 1) / (math.hypot(2, rare) * math.hypot(1, rare))
    assert tfidf_similarity(["Rome rome", "city."], ["rome, tower"]) == pytest.approx(
        expected, abs=1e-12
    )


def test_similarity_is_one_of_the_same_words_and_zero_of_others() -> None:
    assert tfidf_similarity(["a tall tower"], ["Tower: tall, a."]) == pytest.approx(1.0, abs=1e-12)
    assert tfidf_similarity(["a tall tower"], ["some river"]) == 0.0
    assert tfidf_similarity([""], ["some river"]) == tfidf_similarity(["..."], ["..."]) == 0.0


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    assert words("巴黎 is 12 km.") == ["巴", "黎", "is", "12", "km", "."]
    assert ngram_entropy("法国的首都是巴黎") > ngram_entropy("巴巴巴巴巴巴巴巴") == 0.0
    assert tfidf_similarity(["首都是巴黎"], ["巴黎是首都"]) == pytest.approx(1.0)


def test_a_single_text_is_not_several(unchecked: None) -> None:
    for sides in (("a b", ["a b"]), (["a b"], "a b")):
        with pytest.raises(rl.RomeLensError, match="is the single text"):
            tfidf_similarity(*sides)
