"""Record the published SDE: python tests/parity/sde_record.py <its universal-image-restoration folder>."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
published = Path(sys.argv[1])
sys.path[:0] = [str(published / "utils"), str(published / "config/daclip-sde/models/modules")]
from loss import MatchingLoss  # noqa: E402
from sde_utils import IRSDE  # noqa: E402


def tables() -> dict[str, np.ndarray]:
    """The tables of every schedule, in the order of `diffusion.IRSDE`'s methods."""
    values = {}
    for schedule in ("cosine", "linear", "constant"):
        sde = IRSDE(50, T=100, schedule=schedule, eps=0.005)
        rows = [sde.thetas, sde.thetas_cumsum, sde.weights(range(101)), sde.sigmas, sde.sigma_bars]
        values[f"table_{schedule}"] = torch.stack(rows).numpy()
    return values


def steps() -> dict[str, np.ndarray]:
    """Single steps and conversions at chosen times, on small arrays."""
    sde = IRSDE(50, T=100, schedule="cosine", eps=0.005)
    torch.manual_seed(0)
    x, x0, mu, noise = (torch.rand(4, 3, 4, 5) for _ in range(4))
    sde.set_mu(mu)
    values = {"x": x, "x0": x0, "mu": mu, "noise": noise}
    for t in (1, 2, 3, 50, 100):
        score = sde.get_score_from_noise(noise, t)
        values |= {
            f"mean_{t}": sde.mu_bar(x0, t),
            f"score_{t}": score,
            f"x0_{t}": sde.get_init_state_from_noise(x, noise, t),
            f"noise_{t}": sde.get_real_noise(x, x0, t),
            f"optimum_{t}": sde.reverse_optimum_step(x, x0, t),
            f"std_{t}": sde.reverse_optimum_std(t),
            f"sde_{t}": sde.reverse_sde_step_mean(x, score, t),
            f"ode_{t}": sde.reverse_ode_step(x, score, t),
        }
    for name, times in (("low", [1, 2, 3, 4]), ("wide", [2, 30, 70, 100])):
        t = torch.tensor(times).view(4, 1, 1, 1)
        prediction = sde.reverse_sde_step_mean(x, sde.get_score_from_noise(noise, t), t)
        values[f"loss_{name}"] = MatchingLoss()(prediction, sde.reverse_optimum_step(x, x0, t))
    return {name: value.numpy() for name, value in values.items()}


def network(x: torch.Tensor, mu: torch.Tensor, t: float) -> torch.Tensor:
    """A smooth function in the place of a network; tests have the same in numpy."""
    return torch.sin(3 * x + 2 * mu + 0.05 * t) + (x - mu)


def trajectories() -> dict[str, np.ndarray]:
    """Whole runs of 100 steps with recorded draws, half-precision numbers so that the file stays small."""
    torch.manual_seed(1)
    mu = torch.rand(1, 3, 8, 9)
    draws = torch.randn(101, 1, 3, 8, 9).half().float()
    values = {"mu": mu, "draws": draws.half()}
    for schedule in ("cosine", "linear"):
        for name in ("posterior", "sde", "ode"):
            queue = iter(draws)
            torch.randn_like = lambda like, queue=queue: next(queue)
            sde = IRSDE(50, T=100, schedule=schedule, eps=0.005)
            sde.set_mu(mu)
            sde.set_model(network)
            start = sde.noise_state(mu)
            walk = SimpleNamespace(posterior=sde.reverse_posterior, sde=sde.reverse_sde, ode=sde.reverse_ode)
            values[f"{schedule}_{name}"] = getattr(walk, name)(start)
    return {name: value.numpy() for name, value in values.items()}


np.savez_compressed(HERE / "sde_steps.npz", **tables(), **steps())
np.savez_compressed(HERE / "sde_trajectories.npz", **trajectories())
