"""From embeddings to what is wrong with a photo."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip.detect import ClassTexts, Detection, detect, probabilities, silenced, unit, voiced
from daclip.vocabulary import CLEAN

SOFT = ClassTexts(names=("hazy", "noisy", "rainy"), embeddings=np.eye(3, dtype=np.float32))
SIGMOID = ClassTexts(
    names=("hazy", "noisy", CLEAN),
    embeddings=np.eye(3, dtype=np.float32),
    rule="sigmoid",
    scale=20.0,
    bias=-10.0,
)


def views(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_unit_vectors_have_length_one_and_the_same_direction() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 5, 7))
    np.testing.assert_allclose(np.linalg.norm(unit(vectors), axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(unit(vectors) * np.linalg.norm(vectors, axis=-1, keepdims=True), vectors)


def test_the_published_rule_is_a_softmax_of_a_hundred_cosines() -> None:
    degradation = views([3.0, 4.0, 0.0])
    weights = np.exp(100 * np.array([0.6, 0.8, 0.0]))
    np.testing.assert_allclose(probabilities(degradation, SOFT)[0], weights / weights.sum(), rtol=1e-5)


def test_the_rule_for_mixtures_answers_for_each_word_alone() -> None:
    cosines = np.array([0.6, 0.8, 0.0])
    wanted = 1 / (1 + np.exp(-(20 * cosines - 10)))
    np.testing.assert_allclose(probabilities(views([3.0, 4.0, 0.0]), SIGMOID)[0], wanted, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3).filter(lambda v: max(map(abs, v)) > 1e-3),
    st.floats(0.01, 100),
    st.sampled_from([SOFT, SIGMOID]),
)
def test_probabilities_lie_in_range_and_ignore_the_length_of_an_embedding(
    row: list[float], length: float, texts: ClassTexts
) -> None:
    found = probabilities(views(row), texts)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    if texts.rule == "softmax":
        assert found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(probabilities(np.float32(length) * views(row), texts), found, atol=2e-3)


def test_views_are_averaged_as_probabilities() -> None:
    rows = views([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    found = detect(rows, SOFT)
    np.testing.assert_allclose(found.probabilities, [1 / 3, 2 / 3, 0], atol=1e-6)
    assert found.found == ("noisy",)


def test_beside_a_word_for_clean_the_mean_of_views_is_made_surer() -> None:
    rows = views([0.6, 0.0, -0.8], [0.3, 0.0, -0.954])
    nameless = replace(SIGMOID, names=("noisy", "hazy", "snowy"))
    mean = detect(rows, nameless).probabilities[0]
    assert mean == pytest.approx(probabilities(rows, nameless)[:, 0].mean(), rel=1e-5)
    surer = detect(rows, replace(SIGMOID, names=("noisy", "hazy", CLEAN))).probabilities[0]
    assert 0.5 < mean < surer < 1 or surer < mean < 0.5
    assert np.log(surer / (1 - surer)) == pytest.approx(1.6 * np.log(mean / (1 - mean)), rel=1e-3)


def test_what_lies_in_a_corner_is_found_by_the_two_views_that_show_it() -> None:
    corner, clean = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    for name, found in (("shadowed", ("shadowed",)), ("noisy", ())):
        texts = replace(SIGMOID, names=(name, "hazy", CLEAN))
        seen = detect(views(corner, clean, clean, corner, clean), texts)
        assert seen.found == found
        assert (seen.probability(name) > 0.9) == bool(found)
        assert detect(views(corner, clean, clean, clean, clean), texts).found == (), "one view may err"
    nameless = replace(SIGMOID, names=("shadowed", "hazy", "snowy"))
    assert detect(views(corner, *[clean] * 4), nameless).found == ("snowy",)


def test_a_shadow_must_be_surer_than_a_drop() -> None:
    def seen(name: str) -> Detection:
        return detect(views([0.54, 0.0, -0.842]), replace(SIGMOID, names=(name, "hazy", CLEAN)))

    assert 0.5 < seen("shadowed").probability("shadowed") < 0.8
    assert seen("shadowed").found == ()
    assert seen("shadowed").doubtful == ()
    assert seen("raindrop").found == ("raindrop",)


def test_a_shadow_is_found_by_the_word_and_the_pixels_together() -> None:
    texts = replace(SIGMOID, names=("shadowed", "hazy", CLEAN))
    loud, faint, dumb = views([1.0, 0.0, 0.0]), views([0.4, 0.0, 0.917]), views([-0.2, 0.0, 0.98])
    alone = [detect(rows, texts).probability("shadowed") for rows in (dumb, faint, loud)]
    assert alone[0] < 0.01 < alone[1] < 0.5 < 0.9 < alone[2]
    for rows, shadow, found in (
        (loud, 2.0, True),
        (loud, -4.0, False),
        (faint, 2.0, False),
        (faint, 5.0, True),
    ):
        seen = detect(rows, texts, shadow=shadow)
        assert seen.found == (("shadowed",) if found else ())
        assert (seen.probability("shadowed") >= 0.5) == found
    assert detect(dumb, texts, shadow=3.0).found == ()
    assert detect(loud, texts, shadow=0.0, threshold=0.9999).found == ()
    nameless = replace(SIGMOID, names=("rainy", "hazy", CLEAN))
    np.testing.assert_array_equal(
        detect(loud, nameless, shadow=9.0).probabilities, detect(loud, nameless).probabilities
    )


def test_what_is_dark_in_a_photo_of_too_little_light_is_no_shadow() -> None:
    texts = replace(SIGMOID, names=("shadowed", "low-light", CLEAN))
    for lightless, found in ((-0.6, ("shadowed",)), (0.45, ())):
        seen = detect(views([0.8, lightless, 0.0]), texts)
        assert seen.probability("shadowed") > 0.9
        assert seen.found == found
    assert seen.doubtful == ("low-light",)


def test_what_the_mean_of_views_lost_is_said_again() -> None:
    corner, clean = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    texts = replace(SIGMOID, names=("shadowed", "hazy", CLEAN))
    rows = views(corner, corner, *[clean] * 6)
    found, mean = detect(rows, texts), 3 * rows.mean(axis=0, keepdims=True)
    assert detect(mean, texts).probability("shadowed") < 0.5 < found.probability("shadowed")
    said = voiced(mean, found, texts)
    assert detect(said, texts).probability("shadowed") == pytest.approx(
        found.probability("shadowed"), abs=1e-4
    )
    assert np.linalg.norm(said) == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    heard = rows[:1]
    assert voiced(heard, found, texts) is heard, "said already"


def test_a_mixture_is_found_with_the_likeliest_part_first() -> None:
    assert detect(views([0.6, 0.8, 0.0]), SIGMOID).found == ("noisy", "hazy")
    assert detect(views([0.8, 0.6, 0.0]), SIGMOID).found == ("hazy", "noisy")


def test_darkness_must_be_surer_than_other_damage() -> None:
    texts = replace(SIGMOID, names=("low-light", "noisy", CLEAN))

    def seen(dark: float, texts: ClassTexts = texts) -> Detection:
        # a row of length 1, noisy at 0.8
        return detect(views([dark, 0.6, -((1 - 0.6**2 - dark**2) ** 0.5)]), texts)

    unheard, doubtful, dark = seen(0.35), seen(0.53), seen(0.6)
    assert unheard.probability("low-light") < 0.08 < doubtful.probability("low-light") < 0.92
    assert (unheard.found, unheard.doubtful) == (("noisy",), ())
    assert (doubtful.found, doubtful.doubtful) == (("noisy",), ("low-light",))
    assert dark.probability("low-light") > 0.92
    assert (set(dark.found), dark.doubtful) == ({"noisy", "low-light"}, ())
    # any other word, and a model without a word for clean, need no more than the threshold
    assert set(seen(0.53, replace(SIGMOID, names=("rainy", "noisy", CLEAN))).found) == {"noisy", "rainy"}
    nameless = replace(texts, names=("low-light", "noisy", "snowy"))
    assert set(seen(0.53, nameless).found) == {"noisy", "low-light"}
    assert seen(0.53, nameless).doubtful == ()


def test_haze_must_be_surer_and_is_no_reason_to_deny_a_shadow() -> None:
    texts = replace(SIGMOID, names=("shadowed", "hazy", CLEAN))

    def seen(haze: float) -> Detection:
        return detect(views([0.6, haze, -((1 - 0.6**2 - haze**2) ** 0.5)]), texts)

    unheard, doubtful, hazy = seen(0.45), seen(0.52), seen(0.6)
    assert unheard.probability("hazy") < 0.5 < doubtful.probability("hazy") < 0.73 < hazy.probability("hazy")
    assert (unheard.found, unheard.doubtful) == (("shadowed",), ())
    assert (doubtful.found, doubtful.doubtful) == (("shadowed",), ("hazy",))
    assert (set(hazy.found), hazy.doubtful) == ({"shadowed", "hazy"}, ())


def test_what_is_silenced_is_said_no_more_and_the_rest_stays_as_clear() -> None:
    leaning = replace(SIGMOID, embeddings=np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32))
    own = views([3.0, 2.0, 1.0])
    without = silenced(own, ["noisy"], leaning)
    np.testing.assert_allclose(np.linalg.norm(without), np.linalg.norm(own), rtol=1e-6)
    _, noisy, clean = probabilities(without, leaning)[0]
    before = probabilities(own, leaning)[0]
    assert before[1] > 0.98
    assert noisy == pytest.approx(0.02, rel=1e-3)
    assert clean >= before[2]
    both = silenced(own, ["noisy", "hazy"], leaning)
    assert probabilities(both, leaning)[0, :2].max() < 0.0201
    assert np.isfinite(silenced(views([1.0, 0.0, 0.0]), ["hazy"], SIGMOID)).all()  # nothing else was said
    # what was not said stays as it was
    np.testing.assert_array_equal(silenced(without, ["noisy"], leaning).round(5), without.round(5))


def test_a_clean_photo_has_nothing_wrong_with_it() -> None:
    found = detect(views([0.1, 0.1, 1.0]), SIGMOID)
    assert found.found == ()
    assert found.is_clean


def test_what_is_less_likely_than_clean_is_not_found() -> None:
    # hazy reaches the threshold, but clean is likelier
    assert detect(views([0.65, 0.0, 0.76]), SIGMOID).found == ()


def test_a_model_without_a_word_for_clean_always_finds_the_likeliest() -> None:
    found = detect(views([1.0, 1.0, 1.01]), SOFT, threshold=0.9)
    assert max(found.probabilities) < 0.9
    assert found.found == ("rainy",)
    assert not found.is_clean


def test_a_higher_threshold_finds_less() -> None:
    rows = views([0.62, 0.78, 0.0])
    assert detect(rows, SIGMOID).found == ("noisy", "hazy")
    assert detect(rows, SIGMOID, threshold=0.99).found == ("noisy",)


def test_a_detection_ranks_its_words_and_knows_their_probabilities() -> None:
    found = Detection(names=("a", "b", "c"), probabilities=np.array([0.2, 0.7, 0.2]), found=("b",))
    assert found.ranked() == [("b", 0.7), ("a", 0.2), ("c", 0.2)]
    assert found.probability("c") == pytest.approx(0.2)
    assert found.probability("unknown") == 0
