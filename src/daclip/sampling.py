"""Samplers: from mu plus noise back to a clean photo, by walking an IRSDE with a network.

All take `(sde, predict, mu, noise)` and the same options, for numpy arrays or torch tensors.
docs/paper.md, "Samplers".
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from jaxtyping import Float

from daclip.diffusion import IRSDE, Array, exp_remainder, like
from daclip.errors import UsageError

A = TypeVar("A", bound=Array)

Predict = Callable[[Any, Any], Any]
"""The network: state x "b 3 h w" and times t "b" (floats) to the noise "b 3 h w"."""

Progress = Callable[[int, int], object]
"""Called after every step with the number of steps done and of all steps."""

Steps = int | Sequence[int | float] | None
"""How many network calls, or the times themselves from high to low; None is every time of the table."""

Spacing = Literal["t", "lambda"]


@runtime_checkable
class Draws(Protocol):
    """Recorded standard normal draws: a sequence of arrays like mu, or one array, draws along axis 0."""

    def __getitem__(self, step: int, /) -> Any: ...
    def __len__(self) -> int: ...


Noise = Callable[[int], Any] | Draws
"""Standard normal draws like mu: 0 is the start, i the one after the i-th network call."""


def posterior(
    sde: IRSDE,
    predict: Predict,
    mu: Float[A, "b 3 h w"],
    noise: Noise,
    *,
    steps: Steps = None,
    spacing: Spacing = "t",
    unbias: bool = False,
    on_progress: Progress | None = None,
) -> Float[A, "b 3 h w"]:
    """A clean photo by posterior sampling: the optimum reverse step and its exact spread, over any gap.

    Few steps lose variance: smooth pictures, high PSNR. The result is not clamped.

    Args:
        sde: the process the network was trained on.
        predict: the network with its conditions.
        mu: the degraded photo.
        noise: where the draws come from; one a step, the last without effect.
        steps: number of network calls.
        spacing: steps of equal time, or of equal ln(alpha / sigma_bar).
        unbias: take off the bias of a network trained with the published objective. Published numbers are
            without.
        on_progress: called after every step.
    """
    times = nodes(sde, steps, spacing=spacing)
    draw = _source(noise, len(times))
    x = sde.noise_state(mu, draw(0))
    for i, (t, s) in enumerate(pairwise(times), start=1):
        x0 = sde.x0_from_noise(x, _predicted(sde, predict, x, mu, t, unbias=unbias), mu, t)
        # published: a draw at every step, after the network call, also where the spread is 0
        x = sde.reverse_step(x, x0, mu, t, s) + draw(i) * sde.reverse_std(mu, t, s)
        _tell(on_progress, i, times)
    return x


def sde(
    sde: IRSDE,
    predict: Predict,
    mu: Float[A, "b 3 h w"],
    noise: Noise,
    *,
    steps: Steps = None,
    spacing: Spacing = "t",
    unbias: bool = False,
    on_progress: Progress | None = None,
) -> Float[A, "b 3 h w"]:
    """A clean photo by Euler steps of the reverse SDE, as in the paper's tables; arguments of `posterior`."""
    times = nodes(sde, steps, spacing=spacing)
    draw = _source(noise, len(times))
    x = sde.noise_state(mu, draw(0))
    for i, (t, s) in enumerate(pairwise(times), start=1):
        e = _predicted(sde, predict, x, mu, t, unbias=unbias)
        # published: noise is taken away, not added, and in the last step too (0.94 grey levels)
        x = sde.euler_mean(x, e, mu, t, s) - draw(i) * sde.euler_std(mu, t, s)
        _tell(on_progress, i, times)
    return x


def ode(
    sde: IRSDE,
    predict: Predict,
    mu: Float[A, "b 3 h w"],
    noise: Noise,
    *,
    steps: Steps = None,
    spacing: Spacing = "t",
    unbias: bool = False,
    on_progress: Progress | None = None,
) -> Float[A, "b 3 h w"]:
    """A clean photo by Euler steps of the flow ODE, one draw for the start; arguments of `posterior`."""
    times = nodes(sde, steps, spacing=spacing)
    x = sde.noise_state(mu, _source(noise, 1)(0))
    for i, (t, s) in enumerate(pairwise(times), start=1):
        x = sde.euler_mean(x, _predicted(sde, predict, x, mu, t, unbias=unbias), mu, t, s, ode=True)
        _tell(on_progress, i, times)
    return x


def mrs(
    sde: IRSDE,
    predict: Predict,
    mu: Float[A, "b 3 h w"],
    noise: Noise,
    *,
    steps: Steps = None,
    spacing: Spacing = "t",
    unbias: bool = False,
    order: int = 2,
    prediction: Literal["data", "noise"] = "data",
    form: Literal["sde", "ode"] = "sde",
    on_progress: Progress | None = None,
) -> Float[A, "b 3 h w"]:
    """A clean photo by a multistep exponential integrator, good at 5 to 20 steps.

    The linear part of the reverse SDE or flow ODE is solved exactly in l = ln(alpha / sigma_bar), and the
    answer is continued from the last `order` calls as a polynomial in l. A last step to 0 returns the clean
    photo predicted there. Arguments as for `posterior`, and `order` 1 to 3 (1 with data and SDE is
    `posterior`, with ODE it is DDIM); `prediction`, what is continued: the clean photo or the noise; `form`:
    fresh noise in each step, or none.
    """
    if order not in (1, 2, 3):
        raise UsageError(f"mrs of order {order}", hint="1, 2 or 3")
    times = nodes(sde, steps, spacing=spacing)
    draw = _source(noise, len(times) - (times[-1] == 0) if form == "sde" else 1)
    x = sde.noise_state(mu, draw(0))
    past: list[tuple[float, Any]] = []  # (l, answer), newest first
    for i, (t, s) in enumerate(pairwise(times), start=1):
        e = _predicted(sde, predict, x, mu, t, unbias=unbias)
        x0 = sde.x0_from_noise(x, e, mu, t)
        if s == 0:
            x = x0
        else:
            # the largest jumps in l come last; with few calls third order overshoots there
            low = order == 3 and len(times) <= 10 and len(times) - 1 - i <= 2
            past = [(sde.half_log_snr(t), x0 - mu if prediction == "data" else e), *past][
                : 2 if low else order
            ]
            keep, weights, spread = _exponential(sde, t, s, prediction=prediction, form=form)
            x = mu + (x - mu) * keep
            for weight, derivative in zip(weights, _derivatives(past), strict=False):
                x = x + derivative * weight
            if form == "sde":
                x = x + draw(i) * spread
        _tell(on_progress, i, times)
    return x


def nodes(sde: IRSDE, steps: Steps = None, *, spacing: Spacing = "t") -> list[int | float]:
    """The times a sampler visits, from `sde.steps` down to 0: distinct whole numbers, or the given ones.

    >>> nodes(IRSDE(), 4)
    [100, 75, 50, 25, 0]
    """
    if isinstance(steps, Sequence):
        if len(steps) < 2 or any(s >= t for t, s in pairwise(steps)) or steps[0] > sde.steps or steps[-1] < 0:
            raise UsageError(f"steps at {list(steps)}", hint=f"times must fall, within {sde.steps} to 0")
        return list(steps)
    count = sde.steps if steps is None else steps
    if not 1 <= count <= sde.steps:
        raise UsageError(f"{count} steps", hint=f"this model takes 1 to {sde.steps}")
    if spacing == "t":
        return [round(time) for time in np.linspace(sde.steps, 0, count + 1).tolist()]
    table = sde.half_log_snr(np.arange(1, sde.steps + 1))
    wanted = np.linspace(table[-1], table[0], count)
    chosen: list[int | float] = []
    for left, value in zip(range(count, 0, -1), wanted, strict=True):
        nearest = int(np.argmin(np.abs(table - value))) + 1
        # below the last one, and with room for those to come
        chosen.append(max(min(nearest, chosen[-1] - 1 if chosen else sde.steps), left))
    return [*chosen, 0]


def _predicted(sde: IRSDE, predict: Predict, x: A, mu: A, t: int | float, *, unbias: bool) -> A:
    e = predict(x, like(mu, [float(t)] * mu.shape[0]))
    return sde.unbias(e, x, mu, t) if unbias else e


def _source(noise: Noise, needed: int) -> Callable[[int], Any]:
    if isinstance(noise, Draws):
        if len(noise) < needed:
            raise UsageError(f"{len(noise)} recorded draws", hint=f"this sampler takes {needed}")
        return noise.__getitem__
    return noise


def _tell(on_progress: Progress | None, done: int, times: Sequence[int | float]) -> None:
    if on_progress is not None:
        on_progress(done, len(times) - 1)


def _exponential(
    sde: IRSDE, t: int | float, s: int | float, *, prediction: str, form: str
) -> tuple[float, tuple[float, float, float], float]:
    """The step from t to s > 0: factor of x - mu, weights of the answer and its l-derivatives, noise std.

    With r_n(z) = exp(z) minus n terms of its series, k = 2 for the SDE and 1 for the ODE, gap = l_s - l_t:
    data -alpha_s r_1(-k gap), alpha_s r_2(-k gap) / k, -alpha_s r_3(-k gap) / k²;
    noise -k sigma_bar_s r_n(gap).
    """
    gap = sde.half_log_snr(s) - sde.half_log_snr(t)
    alpha, sigma = cast(float, sde.alpha(s)), cast(float, sde.sigma_bar(s))
    k = 2 if form == "sde" else 1
    if prediction == "data":
        keep = sigma / sde.sigma_bar(t) * math.exp(-gap * (k - 1))
        weights = tuple(-alpha * exp_remainder(-k * gap, n) / (-k) ** (n - 1) for n in (1, 2, 3))
        spread = sigma * math.sqrt(-math.expm1(-2 * gap))
    else:
        keep = alpha / sde.alpha(t)
        weights = tuple(-k * sigma * exp_remainder(gap, n) for n in (1, 2, 3))
        spread = sigma * math.sqrt(math.expm1(2 * gap))
    return keep, cast("tuple[float, float, float]", weights), spread


def _derivatives(past: list[tuple[float, A]]) -> list[A]:
    """The newest answer and, from those before it, its first and second derivative in l."""
    (l0, f0), *older = past
    if not older:
        return [f0]
    (l1, f1), *oldest = older
    slope = (f0 - f1) / (l0 - l1)
    if not oldest:
        return [f0, slope]
    l2, f2 = oldest[0]
    bend = (slope - (f1 - f2) / (l1 - l2)) / (l0 - l2)
    return [f0, slope + bend * (l0 - l1), bend * 2.0]


SAMPLERS = {"posterior": posterior, "sde": sde, "ode": ode, "mrs": mrs}
