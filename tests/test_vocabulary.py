"""Words people type, and the degradations they mean."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip import vocabulary
from daclip.errors import UsageError
from daclip.vocabulary import ALIASES, CLEAN, DEGRADATIONS, degradation, degradations, mixture_text


def test_the_ten_words_are_the_papers_in_its_order() -> None:
    assert (
        *("motion-blurry", "hazy", "jpeg-compressed", "low-light", "noisy"),
        *("raindrop", "rainy", "shadowed", "snowy", "uncompleted"),
    ) == DEGRADATIONS


@pytest.mark.parametrize("word", DEGRADATIONS)
def test_a_word_of_the_paper_means_itself_however_it_is_written(word: str) -> None:
    for written in (word, f"  {word.upper()} ", word.replace("-", "_")):
        assert degradation(written) == word


def test_every_degradation_has_one_everyday_alias() -> None:
    assert sorted(degradation(alias) for alias in ALIASES) == sorted(DEGRADATIONS)


def test_an_unknown_word_gets_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match=r'unknown degradation "rainey"; did you mean "rainy"\? known: '):
        degradation("rainey")
    with pytest.raises(UsageError, match=r'did you mean "noisy"\?'):
        degradation("noises")
    with pytest.raises(UsageError) as raised:
        degradation("xyzzy")
    assert "did you mean" not in str(raised.value)


def test_a_model_with_words_of_its_own_knows_these() -> None:
    assert degradation("moire", known=("moire", "hazy")) == "moire"
    with pytest.raises(UsageError, match="known: moire, hazy"):
        degradation("rainy", known=("moire", "hazy"))


def test_a_list_keeps_its_order_and_drops_doubles() -> None:
    assert degradations("noise, rainy,noisy,") == ("noisy", "rainy")
    for empty in ("", " , "):
        with pytest.raises(UsageError, match="no degradation named"):
            degradations(empty)


@settings(max_examples=40, deadline=None)
@given(st.permutations(DEGRADATIONS[:4]), st.integers(0, 4))
def test_the_text_of_a_mixture_does_not_depend_on_the_order_given(names: list[str], count: int) -> None:
    text = mixture_text(names[:count])
    assert text == mixture_text(reversed(names[:count]))
    parts = text.split(", ")
    assert parts == sorted(names[:count], key=DEGRADATIONS.index) or (parts == [CLEAN] and count == 0)


def test_own_words_of_a_mixture_come_last() -> None:
    assert mixture_text(["moire", "rainy", "hazy"]) == "hazy, rainy, moire"


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(vocabulary).failed == 0
