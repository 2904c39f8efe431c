"""The mean-reverting SDE of IR-SDE: schedules, marginals, conversions, optimum reverse step.

Arithmetic only: numpy arrays in, numpy arrays out; torch tensors in, torch tensors out. `sampling` walks it
backwards, `train` draws states from it. IR-SDE sections 3 and 4; docs/paper.md, "Mean-reverting SDE".
"""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, Num

from daclip.errors import UsageError

T = TypeVar("T")


@runtime_checkable
class Array(Protocol):
    """What numpy arrays and torch tensors have in common, as far as the SDE needs it."""

    @property
    def shape(self) -> Any: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102
    @property
    def ndim(self) -> int: ...  # noqa: D102
    def __add__(self: T, other: Any, /) -> T: ...
    def __sub__(self: T, other: Any, /) -> T: ...
    def __mul__(self: T, other: Any, /) -> T: ...
    def __truediv__(self: T, other: Any, /) -> T: ...


A = TypeVar("A", bound=Array)

Time = int | float | Num[Array, "..."]
"""A moment of the process, 0 (clean) to `steps` (noise): one number, or an array of shape b, one a sample."""

Numbers = np.floating[Any] | Float[np.ndarray, "..."]
"""Coefficients in numpy, one or for each sample."""


def like(x: Array, values: list[float] | Numbers) -> Any:
    """The values as an array of the kind, type and device of x."""
    if isinstance(x, np.ndarray):
        return np.asarray(values, dtype=x.dtype)
    numbers: Any = values.tolist() if isinstance(values, np.ndarray) else values
    return cast(Any, x).new_tensor(numbers)


def exp_remainder(z: float, terms: int) -> float:
    """exp(z) without the first terms of its power series, accurate for small z too.

    >>> exp_remainder(1e-9, 2)  # exp(z) - 1 - z
    5.000000001666667e-19
    """
    if abs(z) < 0.5:
        return math.fsum(z**n / math.factorial(n) for n in range(terms, terms + 16))
    return math.exp(z) - sum(z**n / math.factorial(n) for n in range(terms))


@dataclass(frozen=True)
class IRSDE:
    """The process dx = theta_t (mu - x) dt + sigma_t dw, from clean x0 at time 0 to mu plus noise.

    sigma_t² = 2 max_sigma² theta_t. Times run from 0 to `steps`; the unit of theta is such that
    exp(-theta_bar_steps dt) = eps. Between whole times theta is constant, its running sum theta_bar linear.
    States of double precision are computed exactly, others with the published single-precision numbers.

    Args:
        max_sigma: the standing noise level (the paper's lambda), in [0, 1] units; 1 and more are read as grey
            levels of 255.
        steps: length of the schedule.
        schedule: how theta grows with time, cosine, linear or constant.
        eps: what is left of x0 - mu at the end.
    """

    max_sigma: int | float = 50 / 255
    steps: int = 100
    _: KW_ONLY
    schedule: str = "cosine"
    eps: float = 0.005

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f'unknown schedule "{self.schedule}"', hint=f"known: {', '.join(SCHEDULES)}")
        if not (self.steps >= 1 and 0 < self.eps < 1 and self.max_sigma > 0):
            raise UsageError(
                f"no diffusion with max_sigma {self.max_sigma}, steps {self.steps}, eps {self.eps}",
                hint="max_sigma above 0, steps from 1, eps between 0 and 1",
            )
        if self.max_sigma >= 1:
            object.__setattr__(self, "max_sigma", self.max_sigma / 255)

    @cached_property
    def dt(self) -> float:
        """The length of one step in the units of theta: -ln(eps) / theta_bar(steps)."""
        return float(self._exact.dt)

    def theta(self, t: Time) -> Any:
        """Drift speed theta_t, which holds from t - 1 to t: a number, or an array of the kind of t."""
        return _same_kind(t, self._exact.theta[np.ceil(_numbers(t)).astype(int)])

    def theta_bar(self, t: Time) -> Any:
        """The drift speed summed up to t, 0 at t = 0."""
        return _same_kind(t, self._theta_bar(_numbers(t)))

    def alpha(self, t: Time) -> Any:
        """What is left of x0 - mu at t: exp(-theta_bar_t dt)."""
        return _same_kind(t, self._alpha(_numbers(t)))

    def sigma(self, t: Time) -> Any:
        """Speed of the noise: sqrt(2 max_sigma² theta_t)."""
        return _same_kind(t, self.max_sigma * np.sqrt(2 * _numbers(self.theta(_numbers(t)))))

    def sigma_bar(self, t: Time) -> Any:
        """Noise in the state at t: max_sigma sqrt(1 - alpha_t²)."""
        return _same_kind(t, self._sigma_bar(_numbers(t)))

    def half_log_snr(self, t: Time) -> Any:
        """ln(alpha_t / sigma_bar_t), the time of the exponential integrators; infinite at t = 0."""
        times = _numbers(t)
        with np.errstate(divide="ignore"):
            return _same_kind(t, np.log(self._alpha(times)) - np.log(self._sigma_bar(times)))

    def weight(self, t: Time) -> Any:
        """Worth of a noise error in the next state: max_sigma (1 - A²) / (A sqrt(1 - B²)).

        A, B as in `reverse_step` for s = t - 1. The weight of the bias-free objective: the L1 of `weight`
        times the noise error equals the L1 between the optimum steps of true and predicted noise.
        """
        h, alpha = self._gap(t, _numbers(t) - 1), self._alpha(_numbers(t))
        return _same_kind(t, -self.max_sigma * np.expm1(-2 * h) * np.exp(h) / np.sqrt(1 - alpha**2))

    def mean(self, x0: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time) -> Float[A, "*shape"]:
        """Mean of the state at t: mu + (x0 - mu) alpha_t."""
        return mu + (x0 - mu) * self._broadcast(x0, self._table(x0).alpha, self._alpha, t)

    def state(
        self, x0: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time, noise: Float[A, "*shape"]
    ) -> Float[A, "*shape"]:
        """The state at t for a standard normal draw: what a network is trained on."""
        return self.mean(x0, mu, t) + noise * self._noise_level(x0, t)

    def noise_state(self, mu: Float[A, "*shape"], noise: Float[A, "*shape"]) -> Float[A, "*shape"]:
        """Where sampling starts: mu plus max_sigma times a standard normal draw.

        published: max_sigma instead of sigma_bar_steps, and the rest eps (x0 - mu) dropped.
        """
        return mu + noise * self.max_sigma

    def score_from_noise(self, noise: Float[A, "*shape"], t: Time) -> Float[A, "*shape"]:
        """Gradient of the log density of the state: -noise / sigma_bar_t."""
        return noise / (self._noise_level(noise, t) * -1.0)

    def noise_from_score(self, score: Float[A, "*shape"], t: Time) -> Float[A, "*shape"]:
        """-sigma_bar_t times the score."""
        return score * (self._noise_level(score, t) * -1.0)

    def x0_from_noise(
        self, x: Float[A, "*shape"], noise: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time
    ) -> Float[A, "*shape"]:
        """The clean state that, with this noise, gives x at t; not clamped."""
        decay = self._broadcast(x, self._table(x).alpha, self._alpha, t)
        return (x - mu - noise * self._noise_level(x, t)) / decay + mu

    def noise_from_x0(
        self, x: Float[A, "*shape"], x0: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time
    ) -> Float[A, "*shape"]:
        """The noise that, with this clean state, gives x at t > 0."""
        return (x - self.mean(x0, mu, t)) / self._noise_level(x, t)

    def reverse_step(
        self, x: Float[A, "*shape"], x0: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time, s: Time
    ) -> Float[A, "*shape"]:
        """Most likely state at time s < t, given the state at t and an estimate of the clean photo.

        IR-SDE proposition 3.2 for s = t - 1; for longer steps the same derivation between s and t, with
        A = alpha_t / alpha_s, B = alpha_t, C = alpha_s:
        mu + A (1 - C²) / (1 - B²) (x - mu) + C (1 - A²) / (1 - B²) (x0 - mu).
        t and s are both numbers or both of shape b. Raises ValueError unless 0 <= s < t <= steps.
        """
        of_x, of_x0, _ = self._posterior(x, t, s)
        return (x - mu) * _fit(x, of_x) + (x0 - mu) * _fit(x, of_x0) + mu

    def reverse_std(self, x: Float[Array, "*shape"], t: Time, s: Time) -> Any:
        """Spread of the state at s around `reverse_step`; a number, or an array that multiplies x.

        max_sigma sqrt((1 - A²) (1 - C²) / (1 - B²)); 0 at s = 0.
        """
        return _fit(x, self._posterior(x, t, s)[2])

    def euler_mean(
        self,
        x: Float[A, "*shape"],
        noise: Float[A, "*shape"],
        mu: Float[A, "*shape"],
        t: Time,
        s: Time | None = None,
        *,
        ode: bool = False,
    ) -> Float[A, "*shape"]:
        """One Euler step of the reverse SDE without its noise, or of the flow ODE, from t to s (None: t - 1).

        x - [theta_t (mu - x) - sigma_t² score] dt, half the score for the ODE; over a longer gap theta_t dt
        becomes the sum over the gap. With s = None this is the prediction of the published objective.
        """
        h = self._gap(t, _numbers(t) - 1 if s is None else s)
        drift = h * self.max_sigma**2 * (1 if ode else 2) / self._sigma_bar(_numbers(t))
        return x - ((mu - x) * _fit(x, h) + noise * _fit(x, drift))

    def euler_std(self, x: Float[Array, "*shape"], t: Time, s: Time) -> Any:
        """Noise of one Euler step of the reverse SDE: sigma_t sqrt(dt), or its like over a longer gap."""
        return _fit(x, self.max_sigma * np.sqrt(2 * self._gap(t, s)))

    def unbias(
        self, noise: Float[A, "*shape"], x: Float[A, "*shape"], mu: Float[A, "*shape"], t: Time
    ) -> Float[A, "*shape"]:
        """The true noise from the output of a network trained with the published objective.

        That objective compares the optimum step with an Euler step, so its minimiser is
        (sinh h / h) noise - b_t (x - mu), where h = theta_t dt and
        b_t = (exp h - 1 - h) sigma_bar_t / (2 max_sigma² h). This is its exact inverse.
        """
        h = self._gap(t, _numbers(t) - 1)
        excess = np.vectorize(exp_remainder, otypes=[float])(h, 2)
        shift = excess * self._sigma_bar(_numbers(t)) / (2 * self.max_sigma**2 * h)
        return (noise + (x - mu) * _fit(x, shift)) * _fit(x, h / np.sinh(h))

    @cached_property
    def _exact(self) -> "_Table":
        return _table(self, np.float64)

    @cached_property
    def _published(self) -> "_Table":
        return _table(self, np.float32)

    def _table(self, x: Array) -> "_Table":
        """Double precision computes exactly, anything less with the published numbers."""
        return self._exact if "float64" in str(x.dtype) else self._published

    def _theta_bar(self, t: Numbers) -> Numbers:
        if np.any((t < 0) | (t > self.steps)):
            raise ValueError(f"time {t} outside 0 to {self.steps}")
        return np.asarray(np.interp(t, np.arange(self.steps + 1), self._exact.theta_bar))

    def _alpha(self, t: Numbers) -> Numbers:
        return np.exp(-self._theta_bar(t) * self.dt)

    def _sigma_bar(self, t: Numbers) -> Numbers:
        return self.max_sigma * np.sqrt(-np.expm1(-2 * self._theta_bar(t) * self.dt))

    def _gap(self, t: Time, s: Time) -> Numbers:
        """The sum of theta dt from s to t."""
        before, after = _numbers(t), np.maximum(_numbers(s), 0)  # s = t - 1 of a time below 1 ends at 0
        if np.any(after >= before):
            raise ValueError(f"no reverse step from {before} to {after}")
        return (self._theta_bar(before) - self._theta_bar(after)) * self.dt

    def _broadcast(self, x: Array, table: Float[np.ndarray, "n"], exact: Any, t: Time) -> Any:
        times = _numbers(t)
        whole = np.all(times == np.floor(times)) and np.all((times >= 0) & (times <= self.steps))
        return _fit(x, table[times.astype(int)] if whole else exact(times))

    def _noise_level(self, x: Array, t: Time) -> Any:
        return self._broadcast(x, self._table(x).sigma_bar, self._sigma_bar, t)

    def _posterior(self, x: Array, t: Time, s: Time) -> tuple[Any, Any, Any]:
        """Weights of x - mu and x0 - mu, and the spread, of the step from t to s."""
        before, after = _numbers(t), _numbers(s)
        h = self._gap(before, after)
        single = np.all(before - after == 1) and np.all(before == np.floor(before))
        if single and (table := self._table(x)) is self._published:
            # published: in single precision 1 - A² and 1 - B² cancel, at t = 2 to 2e-4 of the weights;
            # recorded trajectories and the published loss need those very weights
            index = before.astype(int)
            a, b, c = table.decay[index], table.alpha[index], table.alpha[index - 1]
            keep, lost = 1 - c**2, 1 - b**2
            return a * keep / lost, c * (1 - a**2) / lost, table.posterior_std[index]
        decay, alpha = np.exp(-h), self._alpha(after)
        forgotten, keep, lost = -np.expm1(-2 * h), 1 - alpha**2, 1 - self._alpha(before) ** 2
        return (
            decay * keep / lost,
            alpha * forgotten / lost,
            self.max_sigma * np.sqrt(forgotten * keep / lost),
        )


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The schedule at times 0 .. steps, all of one precision."""

    theta: Float[np.ndarray, "n"]
    theta_bar: Float[np.ndarray, "n"]
    dt: np.floating[Any]
    decay: Float[np.ndarray, "n"]
    alpha: Float[np.ndarray, "n"]
    sigma_bar: Float[np.ndarray, "n"]
    posterior_std: Float[np.ndarray, "n"]


def _table(sde: IRSDE, dtype: type[np.floating[Any]]) -> _Table:
    """The schedule in one precision, in the order of operations of the published code.

    published: tables are made in float32. exp and cos are rounded here from double precision, which is what
    torch does in all but a few entries, so that numpy reproduces them.
    """
    theta = SCHEDULES[sde.schedule](sde.steps, dtype)
    # published: theta_0 is not 0, so it is taken off the running sum
    theta_bar = np.cumsum(theta, dtype=np.float64).astype(dtype) - theta[0]
    dt = dtype(-1) / theta_bar[-1] * dtype(math.log(sde.eps))
    square = dtype(sde.max_sigma**2)
    a2, b2 = _exp(-2 * theta * dt), _exp(-2 * theta_bar * dt)
    c2 = np.concatenate([b2[:1], b2[:-1]])
    with np.errstate(invalid="ignore"):  # 0 / 0 at index 0, which is never used
        variance = (1 - a2) * (1 - c2) / (1 - b2)
    return _Table(
        theta=theta,
        theta_bar=theta_bar,
        dt=dt,
        decay=_exp(-theta * dt),
        alpha=_exp(-theta_bar * dt),
        sigma_bar=np.sqrt(square * (1 - b2)),
        posterior_std=np.sqrt(variance) * dtype(sde.max_sigma),
    )


def _exp(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.exp(x.astype(np.float64)).astype(x.dtype)


def _cosine(steps: int, dtype: type[np.floating[Any]]) -> Float[np.ndarray, "n"]:
    """1 - a_1 .. 1 - a_{steps + 1} of the cosine a_k over steps + 2 intervals."""
    k = np.arange(steps + 3, dtype=dtype)
    angle = (k / dtype(steps + 2) + dtype(0.008)) / dtype(1.008) * dtype(math.pi) * dtype(0.5)
    a = np.cos(angle.astype(np.float64)).astype(dtype) ** 2
    return 1 - (a / a[0])[1:-1]


def _linear(steps: int, dtype: type[np.floating[Any]]) -> Float[np.ndarray, "n"]:
    """Equal steps from 0.1 / n to 20 / n, n = steps + 1."""
    first, last = dtype(0.1 / (steps + 1)), dtype(20 / (steps + 1))
    step, k = (last - first) / dtype(steps), np.arange(steps + 1, dtype=dtype)
    return np.where(k < (steps + 1) // 2, first + step * k, last - step * (dtype(steps) - k))


def _constant(steps: int, dtype: type[np.floating[Any]]) -> Float[np.ndarray, "n"]:
    return np.ones(steps + 1, dtype)


def _numbers(t: Any) -> Numbers:
    return np.asarray(t.tolist() if hasattr(t, "tolist") else t, dtype=np.float64)


def _same_kind(t: Time, values: Any) -> Any:
    """A float for a number; for an array of times an array of its kind, floating."""
    if np.ndim(values) == 0 and not isinstance(t, Array):
        return float(values)
    if isinstance(t, np.ndarray | np.generic):
        return np.asarray(values)
    times = cast(Any, t)
    return like(times if times.is_floating_point() else times.float(), np.asarray(values))


def _fit(x: Array, values: Numbers) -> Any:
    """A number, or one value for each sample shaped to multiply x."""
    if np.ndim(values) == 0:
        return float(values)
    each = like(x, values)
    return each.reshape(each.shape + (1,) * (x.ndim - each.ndim))


SCHEDULES = {"cosine": _cosine, "linear": _linear, "constant": _constant}
