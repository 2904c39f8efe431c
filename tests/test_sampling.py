from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip.diffusion import IRSDE
from daclip.errors import UsageError
from daclip.sampling import SAMPLERS, mrs, nodes, ode, posterior
from daclip.sampling import sde as euler

PARITY = Path(__file__).parent / "parity"
LAST = 4.74  # ln(alpha / sigma_bar) where the accuracy tests stop, alpha 0.999


def network(x, mu, t):
    """The function in the place of a network that parity/sde_record.py has."""
    return np.sin(3 * x + 2 * mu + 0.05 * t[:, None, None, None]) + (x - mu)


def no_noise(step):
    raise AssertionError(f"draw {step} was not expected")


def times_at(sde, half_log_snr):
    """The (fractional) times at which ln(alpha / sigma_bar) has the given values."""
    ratio = sde.max_sigma**2 * np.exp(2 * np.asarray(half_log_snr))
    theta_bar = -0.5 * np.log(ratio / (1 + ratio)) / sde.dt
    table = sde.theta_bar(np.arange(sde.steps + 1))
    return np.interp(theta_bar, table, np.arange(sde.steps + 1)).tolist()


def steps_to(sde, count):
    """`count` steps of equal ln(alpha / sigma_bar) from the start to `LAST`, short of the photo."""
    return [sde.steps, *times_at(sde, np.linspace(sde.half_log_snr(sde.steps), LAST, count + 1))[1:]]


MEANS, STDS = np.array([0.4, -0.3]), np.array([0.05, 0.1])


def mixture_at(sde, t):
    """Means and spreads of the state around mu when the clean pixel is one of two Gaussians."""
    return sde.alpha(t) * MEANS, np.hypot(sde.alpha(t) * STDS, sde.sigma_bar(t))


def mixture_noise(sde, mu):
    """The exact noise prediction for the two-Gaussian pixel."""

    def predict(x, t):
        t = float(t[0])
        y, (means, spreads) = (x - mu)[..., None], mixture_at(sde, t)
        share = np.exp(-0.5 * ((y - means) / spreads) ** 2) / spreads
        each = sde.sigma_bar(t) * (y - means) / spreads**2
        return np.sum(share * each, axis=-1) / np.sum(share, axis=-1)

    return predict


def quantile_moved(sde, y, t, s):
    """Where the flow ODE takes y from t to s: to the same quantile of the state's distribution."""
    from math import erf

    def share_below(v, at):
        means, spreads = mixture_at(sde, at)
        return 0.5 * np.mean([1 + erf((v - m) / d / np.sqrt(2)) for m, d in zip(means, spreads, strict=True)])

    def solve(share):
        low, high = -3.0, 3.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if share_below(middle, s) < share else (low, middle)
        return middle

    return np.array([solve(share_below(v, t)) for v in y.ravel()]).reshape(y.shape)


@pytest.fixture(scope="module")
def flow():
    """An SDE, starts spread over two standard deviations, and where the exact flow takes them."""
    sde, mu = IRSDE(), np.full((1, 3, 2, 4), 0.5)
    start = np.linspace(-2, 2, mu.size).reshape(mu.shape)
    end = steps_to(sde, 1)[-1]
    return sde, mu, start, quantile_moved(sde, sde.max_sigma * start, sde.steps, end)


def flow_error(flow, count, order, prediction):
    sde, mu, start, exact = flow
    x = mrs(
        sde,
        mixture_noise(sde, mu),
        mu,
        start[None],
        steps=steps_to(sde, count),
        order=order,
        prediction=prediction,
        form="ode",
    )
    return np.max(np.abs(x - mu - exact))


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize(("order", "least"), [(1, 0.9), (2, 1.75), (3, 2.6)])
def test_the_ode_error_falls_with_the_power_of_the_order(flow, order, least, prediction):
    coarse, fine = (flow_error(flow, count, order, prediction) for count in (80, 160))
    assert np.log2(coarse / fine) > least
    assert fine < {1: 1e-2, 2: 6e-4, 3: 8e-5}[order]


def moments(sampler, sde, mean, spread, **options):
    """Mean and spread of what a sampler makes when the clean pixel is Gaussian around mu + mean.

    The exact network is affine, so the result is affine in the draws: run with none, and with each alone.
    """
    objective = options.pop("objective", "noise")
    steps = options["steps"]
    count = 1 + (steps if isinstance(steps, int) else len(steps) - 1)
    mu = np.zeros((count + 1, 1, 1, 1)).repeat(3, axis=1)

    def predict(x, t):
        t = float(t[0])
        alpha, noise = sde.alpha(t), sde.sigma_bar(t)
        e = noise * (x - alpha * mean) / (alpha**2 * spread**2 + noise**2)
        if objective == "noise":
            return e
        h = sde.theta(t) * sde.dt
        b = (np.expm1(h) - h) * noise / (2 * sde.max_sigma**2 * h)
        return np.sinh(h) / h * e - b * x

    def draw(step):
        return np.broadcast_to(np.eye(count + 1, count)[:, step, None, None, None], mu.shape)

    x = sampler(sde, predict, mu, draw, **options)[:, 0, 0, 0]
    # the last row of eye is without a draw
    return x[-1], np.sqrt(np.sum((x[:-1] - x[-1]) ** 2))


@pytest.mark.parametrize(
    ("order", "prediction", "least"),
    [(1, "data", 0.85), (2, "data", 1.9), (3, "data", 1.9), (2, "noise", 1.9), (3, "noise", 1.8)],
)
def test_the_sde_spread_is_right_to_the_second_order(order, prediction, least):
    sde, errors = IRSDE(), []
    for count in (40, 80):
        steps = steps_to(sde, count)
        exact = np.hypot(sde.alpha(steps[-1]) * 0.1, sde.sigma_bar(steps[-1]))
        _, got = moments(mrs, sde, 0.4, 0.1, steps=steps, order=order, prediction=prediction)
        errors.append(abs(got - exact))
    assert np.log2(errors[0] / errors[1]) > least
    assert errors[1] < {1: 6e-3, 2: 5e-4, 3: 1e-4}[order]


@pytest.mark.parametrize(
    ("sampler", "options", "mean", "spread"),
    [
        (posterior, {"steps": 100}, 0.3016, 0.1450),
        (posterior, {"steps": 100, "unbias": True}, 0.3000, 0.1441),
        (posterior, {"steps": 10}, 0.3021, 0.1109),
        (posterior, {"steps": 10, "unbias": True}, 0.3000, 0.1097),
        (euler, {"steps": 100}, 0.3000, 0.1528),
        (mrs, {"steps": 10, "order": 1, "form": "ode"}, 0.3018, 0.1476),
        (mrs, {"steps": 10, "order": 2, "form": "ode"}, 0.3012, 0.1602),
        (mrs, {"steps": 10, "order": 2, "form": "ode", "unbias": True}, 0.2988, 0.1522),
    ],
)
def test_published_networks_are_sampled_with_the_moments_of_the_table(sampler, options, mean, spread):
    # docs/paper.md, "Few steps": clean pixels N(0.3, 0.15²), exact minimiser of the published objective
    got = moments(sampler, IRSDE(), 0.3, 0.15, objective="published", **options)
    assert got == pytest.approx((mean, spread), abs=3e-4)


def run(sampler, steps, **options):
    rng = np.random.default_rng(0)
    mu, draws = rng.random((2, 3, 3, 4)), rng.standard_normal((102, 2, 3, 3, 4))
    return sampler(IRSDE(), lambda x, t: network(x, mu, t), mu, draws, steps=steps, **options)


@pytest.mark.parametrize("steps", [1, 3, 17, 100])
def test_the_first_order_integrator_is_the_posterior_sampler(steps):
    np.testing.assert_allclose(run(mrs, steps, order=1), run(posterior, steps), rtol=1e-7, atol=1e-9)


def test_first_order_flows_of_data_and_noise_are_the_same():
    data, noise = (run(mrs, 12, order=1, form="ode", prediction=p) for p in ("data", "noise"))
    np.testing.assert_allclose(data, noise, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_last_step_returns_the_predicted_clean_photo(order):
    seen = []
    sde, mu = IRSDE(), np.full((1, 3, 2, 2), 0.5)

    def predict(x, t):
        seen.append(sde.x0_from_noise(x, network(x, mu, t), mu, float(t[0])))
        return network(x, mu, t)

    x = mrs(sde, predict, mu, np.zeros((7, *mu.shape)), steps=6, order=order)
    np.testing.assert_array_equal(x, seen[-1])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("name", ["posterior", "sde", "ode"])
def test_whole_trajectories_are_the_published_ones(name, schedule):
    with np.load(PARITY / "sde_trajectories.npz") as file:
        mu, draws, published = file["mu"], file["draws"].astype(np.float32), file[f"{schedule}_{name}"]
    sampler = SAMPLERS[name]
    x = sampler(IRSDE(schedule=schedule), lambda x, t: network(x, mu, t), mu, draws)
    assert x.dtype == np.float32
    assert np.max(np.abs(x - published)) <= 1e-5 * np.max(np.abs(published))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers_ask_for_draws_after_each_call_and_tell_how_far_they_are(sampler):
    mu, happened = np.full((1, 3, 2, 2), 0.5), []

    def predict(x, t):
        happened.append(f"network at {t[0]:g}")
        return network(x, mu, t)

    def draw(step):
        happened.append(f"draw {step}")
        return np.zeros_like(mu)

    sampler(IRSDE(), predict, mu, draw, steps=2, on_progress=lambda *done: happened.append(done))
    without_draws = [each for each in happened if "draw" not in str(each)]
    assert without_draws == ["network at 100", (1, 2), "network at 50", (2, 2)]
    assert happened[:2] == ["draw 0", "network at 100"]
    if sampler in (posterior, euler):
        assert happened[1:] == ["network at 100", "draw 1", (1, 2), "network at 50", "draw 2", (2, 2)]


def test_the_flow_draws_once():
    mu = np.full((1, 3, 2, 2), 0.5)
    for sampler, options in ((ode, {}), (mrs, {"form": "ode"})):
        sampler(
            IRSDE(),
            lambda x, t: network(x, mu, t),
            mu,
            lambda step: np.ones_like(mu) if step == 0 else no_noise(step),
            steps=5,
            **options,
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.sampled_from(["t", "lambda"]), st.sampled_from(["cosine", "linear"]))
def test_any_number_of_steps_visits_distinct_whole_times_down_to_zero(steps, spacing, schedule):
    times = nodes(IRSDE(schedule=schedule), steps, spacing=spacing)
    assert len(times) == steps + 1
    assert times[0] == 100
    assert times[-1] == 0
    assert all(isinstance(t, int) for t in times)
    assert all(t > s for t, s in pairwise(times))


def test_spacing_in_lambda_makes_equal_steps_of_it():
    sde = IRSDE()
    steps = np.diff(sde.half_log_snr(np.array(nodes(sde, 6, spacing="lambda")[:-1])))
    assert np.ptp(steps) < 0.3 * np.mean(steps)


@pytest.mark.parametrize("steps", [0, 101, [100], [100, 100, 0], [50, 60], [101, 0], [5, -1]])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(UsageError, match="step"):
        nodes(IRSDE(), steps)


def test_too_few_recorded_draws_are_refused_before_any_work():
    mu = np.zeros((1, 3, 2, 2))
    with pytest.raises(UsageError, match="takes 11"):
        posterior(IRSDE(), no_noise, mu, np.zeros((10, *mu.shape)), steps=10)


def test_an_unknown_order_is_refused():
    with pytest.raises(UsageError, match="1, 2 or 3"):
        run(mrs, 10, order=4)


@pytest.mark.torch
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_tensors_are_sampled_like_arrays(sampler):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    mu = rng.random((2, 3, 4, 3)).astype(np.float32)
    draws = rng.standard_normal((8, *mu.shape)).astype(np.float32)
    arrays = sampler(IRSDE(), lambda x, t: network(x, mu, t), mu, draws, steps=7)
    mu_t = torch.from_numpy(mu)

    def predict(x, t):
        return torch.sin(3 * x + 2 * mu_t + 0.05 * t[:, None, None, None]) + (x - mu_t)

    tensors = sampler(IRSDE(), predict, mu_t, torch.from_numpy(draws), steps=7)
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors.numpy(), arrays, rtol=1e-4, atol=1e-5)
