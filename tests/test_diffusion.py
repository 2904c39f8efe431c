from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip.diffusion import IRSDE, SCHEDULES, exp_remainder
from daclip.errors import UsageError

PARITY = Path(__file__).parent / "parity"

few = settings(max_examples=25, deadline=None)
schedules = st.sampled_from(sorted(SCHEDULES))
sdes = st.builds(
    IRSDE,
    max_sigma=st.floats(0.01, 0.9),
    steps=st.integers(2, 150),
    schedule=schedules,
    eps=st.floats(1e-3, 0.1),
)


def close(ours, published, tolerance=1e-5):
    """Equal up to the tolerance times the largest published value."""
    assert np.max(np.abs(np.asarray(ours) - published)) <= tolerance * np.max(np.abs(published))


def photos(rng, *shape):
    return [rng.random(shape) for _ in range(3)]


@few
@given(sdes)
def test_the_process_goes_from_the_clean_photo_to_a_rest_of_eps(sde):
    assert sde.alpha(0) == 1
    assert sde.sigma_bar(0) == 0
    assert sde.alpha(sde.steps) == pytest.approx(sde.eps)
    alpha = sde.alpha(np.arange(sde.steps + 1))
    assert np.all(np.diff(alpha) < 0)
    assert np.allclose(sde.sigma_bar(np.arange(sde.steps + 1)) ** 2 / sde.max_sigma**2 + alpha**2, 1)


@few
@given(sdes, st.floats(0, 1))
def test_between_two_times_theta_bar_is_linear(sde, part):
    t = sde.steps // 2
    between = (1 - part) * sde.theta_bar(t) + part * sde.theta_bar(t + 1)
    assert sde.theta_bar(t + part) == pytest.approx(between)
    assert sde.alpha(t + part) == pytest.approx(np.exp(-between * sde.dt))


@few
@given(sdes, st.data())
def test_noise_score_and_clean_photo_turn_into_one_another(sde, data):
    t = data.draw(st.floats(0.5, sde.steps))
    x, x0, mu = photos(np.random.default_rng(0), 2, 3, 4, 5)
    noise = sde.noise_from_x0(x, x0, mu, t)
    np.testing.assert_allclose(sde.x0_from_noise(x, noise, mu, t), x0, atol=1e-9)
    np.testing.assert_allclose(sde.state(x0, mu, t, noise), x, atol=1e-9)
    score = sde.score_from_noise(noise, t)
    np.testing.assert_allclose(sde.noise_from_score(score, t), noise)
    np.testing.assert_allclose(score, -(x - sde.mean(x0, mu, t)) / sde.sigma_bar(t) ** 2)


@few
@given(sdes, st.data())
def test_a_reverse_step_over_any_gap_keeps_the_marginals(sde, data):
    t = data.draw(st.floats(0.6, sde.steps))
    s = data.draw(st.floats(0, t - 0.5))
    mu, x0, one = np.zeros(1), np.full(1, 0.7), np.ones(1)
    of_x = sde.reverse_step(one, 0 * one, mu, t, s) - sde.reverse_step(0 * one, 0 * one, mu, t, s)
    mean = sde.reverse_step(sde.mean(x0, mu, t), x0, mu, t, s)
    spread = np.hypot(of_x * sde.sigma_bar(t), sde.reverse_std(one, t, s))
    np.testing.assert_allclose(mean, sde.mean(x0, mu, s), atol=1e-9)
    # Near s = 0 the root of a variance known to 1e-16 is known to 1e-8 only: compare the variances.
    np.testing.assert_allclose(spread**2, sde.sigma_bar(s) ** 2, atol=1e-12)


@few
@given(sdes, st.data())
def test_the_last_step_gives_the_clean_photo(sde, data):
    t = data.draw(st.integers(1, sde.steps))
    x, x0, mu = photos(np.random.default_rng(1), 1, 3, 2, 2)
    np.testing.assert_allclose(sde.reverse_step(x, x0, mu, t, 0), x0, atol=1e-9)
    assert sde.reverse_std(x, t, 0) == 0


@few
@given(sdes, st.data())
def test_unbias_undoes_the_bias_of_the_published_objective(sde, data):
    t = data.draw(st.integers(1, sde.steps))
    x, noise, mu = photos(np.random.default_rng(2), 1, 3, 2, 2)
    optimum = sde.reverse_step(x, sde.x0_from_noise(x, noise, mu, t), mu, t, t - 1)
    # the network output whose Euler step is the optimum step
    at0, at1 = (sde.euler_mean(x, np.full_like(x, e), mu, t) for e in (0, 1))
    learned = (optimum - at0) / (at1 - at0)
    np.testing.assert_allclose(sde.unbias(learned, x, mu, t), noise, rtol=1e-6, atol=1e-6)


@few
@given(sdes, st.data())
def test_weight_is_what_a_noise_error_does_to_the_next_state(sde, data):
    t = data.draw(st.integers(1, sde.steps))
    x, noise, mu = photos(np.random.default_rng(3), 1, 3, 2, 2)
    next1, next2 = (
        sde.reverse_step(x, sde.x0_from_noise(x, e, mu, t), mu, t, t - 1) for e in (noise, noise + 1)
    )
    np.testing.assert_allclose(next1 - next2, sde.weight(t), rtol=1e-6)


def test_times_of_a_batch_are_each_sample_s_own():
    sde = IRSDE()
    x, x0, mu = (a.astype(np.float32) for a in photos(np.random.default_rng(4), 3, 3, 2, 5))
    times = np.array([2.0, 61.0, 100.0])
    together = sde.reverse_step(x, x0, mu, times, times - 1)
    assert together.dtype == np.float32
    for i, t in enumerate(times):
        each = slice(i, i + 1)
        alone = sde.reverse_step(x[each], x0[each], mu[each], int(t), int(t) - 1)
        np.testing.assert_array_equal(together[each], alone)


@few
@given(schedules)
def test_tables_are_the_published_ones(schedule):
    with np.load(PARITY / "sde_steps.npz") as recorded:
        tables = recorded[f"table_{schedule}"]
    sde = IRSDE(50, schedule=schedule)
    t = np.arange(101)
    ours = [sde.theta(t), sde.theta_bar(t), sde.alpha(t), sde.sigma(t), sde.sigma_bar(t)]
    for mine, table in zip(ours, tables, strict=True):
        close(mine, table)


@pytest.mark.parametrize("t", [1, 2, 3, 50, 100])
def test_single_steps_are_the_published_ones(t):
    sde = IRSDE(max_sigma=50 / 255, steps=100, schedule="cosine", eps=0.005)
    with np.load(PARITY / "sde_steps.npz") as file:
        r = dict(file)
    x, x0, mu, noise = r["x"], r["x0"], r["mu"], r["noise"]
    close(sde.mean(x0, mu, t), r[f"mean_{t}"])
    close(sde.score_from_noise(noise, t), r[f"score_{t}"])
    close(sde.x0_from_noise(x, noise, mu, t), r[f"x0_{t}"])
    close(sde.noise_from_x0(x, x0, mu, t), r[f"noise_{t}"])
    close(sde.reverse_step(x, x0, mu, t, t - 1), r[f"optimum_{t}"])
    close(sde.euler_mean(x, noise, mu, t), r[f"sde_{t}"])
    close(sde.euler_mean(x, noise, mu, t, ode=True), r[f"ode_{t}"])
    assert sde.reverse_std(x, t, t - 1) == pytest.approx(r[f"std_{t}"], rel=1e-5, abs=1e-11)


@pytest.mark.parametrize(("name", "times"), [("low", [1, 2, 3, 4]), ("wide", [2, 30, 70, 100])])
def test_the_published_training_loss_is_reproduced(name, times):
    sde, t = IRSDE(), np.array(times)
    with np.load(PARITY / "sde_steps.npz") as file:
        r = dict(file)
    x, x0, mu = r["x"], r["x0"], r["mu"]
    loss = np.abs(sde.euler_mean(x, r["noise"], mu, t) - sde.reverse_step(x, x0, mu, t, t - 1)).mean()
    assert loss == pytest.approx(r[f"loss_{name}"], rel=1e-5)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_the_rest_of_the_exponential_is_accurate_on_both_sides_of_its_switch(terms):
    below, above = exp_remainder(0.5 - 1e-12, terms), exp_remainder(0.5, terms)
    assert below == pytest.approx(above, rel=1e-10)
    assert exp_remainder(-1e-6, 2) == pytest.approx(0.5e-12, rel=1e-6)


def test_max_sigma_may_be_given_in_grey_levels():
    assert IRSDE(50) == IRSDE(50 / 255) == IRSDE()


def test_an_unknown_schedule_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="cosine, linear, constant"):
        IRSDE(schedule="square")


@pytest.mark.parametrize(("t", "s"), [(5, 5), (5, 7), (101, 3)])
def test_a_step_that_is_none_is_refused(t, s):
    x = np.zeros((1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"outside|no reverse step"):
        IRSDE().reverse_step(x, x, x, t, s)


@pytest.mark.torch
def test_tensors_give_tensors_with_the_numbers_of_arrays():
    torch = pytest.importorskip("torch")
    sde, times = IRSDE(), np.array([1, 2, 50.5])
    x, x0, mu = (a.astype(np.float32) for a in photos(np.random.default_rng(5), 3, 3, 4, 4))
    tensors = [torch.from_numpy(a) for a in (x, x0, mu)]
    for t, t_tensor in ((7, 7), (times, torch.from_numpy(times))):
        for ours, theirs in (
            (sde.mean(x0, mu, t), sde.mean(tensors[1], tensors[2], t_tensor)),
            (sde.x0_from_noise(x, x0, mu, t), sde.x0_from_noise(*tensors, t_tensor)),
            (sde.unbias(x, x0, mu, t), sde.unbias(*tensors, t_tensor)),
            (sde.euler_mean(x, x0, mu, t), sde.euler_mean(*tensors, t_tensor)),
        ):
            assert isinstance(theirs, torch.Tensor)
            assert theirs.dtype == torch.float32
            np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5, atol=1e-6)
    alpha = sde.alpha(torch.tensor([3, 4]))
    assert isinstance(alpha, torch.Tensor)
    np.testing.assert_allclose(alpha.numpy(), sde.alpha(np.array([3, 4])), rtol=1e-6)
