"""Quality against network calls."""

import time
from dataclasses import dataclass, field
from statistics import fmean

from daclip.diffusion import IRSDE
from daclip.errors import UsageError
from daclip.evaluate import plots
from daclip.evaluate.analysis.subject import (
    SAMPLERS,
    Study,
    Subject,
    as_eight_bit,
    as_planes,
    own_sampler,
    read_truth,
)
from daclip.evaluate.measure import scores
from daclip.evaluate.tables import (
    Table,
    between,
    bootstrap,
    number,
)
from daclip.vocabulary import DEGRADATIONS


@dataclass(kw_only=True)
class _Sampled:
    """One sampler with so many calls: figures by metric and degradation, seconds of each photo."""

    name: str
    sampler: str
    calls: int
    steps: int | list[int]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def mean(self, metric: str) -> float:
        return fmean(fmean(values) for values in self.figures[metric].values())

    def line(self) -> tuple[str, ...]:
        cells = [self.name, str(self.calls)]
        for metric, groups in self.figures.items():
            digits = 2 if metric == "psnr" else 4
            cells += [number(self.mean(metric), digits), between(bootstrap(list(groups.values())), digits)]
        return (*cells, f"{fmean(self.seconds):.2f}")


def samplers(subject: Subject) -> Study:
    """Quality against network calls, for every sampler, and for the model as it is shipped."""
    config = subject.restorer.folder.config
    if config.kind != "diffusion":
        raise UsageError(
            f"{subject.restorer.folder.name} restores in one pass", hint="samplers need a diffusion model"
        )
    process = IRSDE(**(config.sde or {}))
    calls = [count for count in subject.calls if count <= process.steps]
    tried = [
        _Sampled(name=name, sampler=name, calls=count, steps=count) for name in SAMPLERS for count in calls
    ]
    own, steps = own_sampler(subject.restorer)
    times = f", times {' '.join(map(str, config.times))}" if config.times else ""
    count = steps if isinstance(steps, int) else len(config.times)
    shipped = _Sampled(name=f"as shipped: {own}{times}", sampler=own, calls=count, steps=steps)
    known = [name for name in DEGRADATIONS if name in subject.restorer.folder.texts.names]
    cases = subject.cases("samplers", known)
    for case in cases:
        photo, clean = read_truth(case)
        context = subject.embed(photo)
        mu = subject.restorer.begun(as_planes(photo), context)
        for one in (*tried, shipped):
            start = time.perf_counter()
            restored = as_eight_bit(subject.sampled(mu, context, one.sampler, one.steps))
            one.seconds.append(time.perf_counter() - start)
            for metric, figure in scores(restored, clean, subject.metrics.functions).items():
                one.figures.setdefault(metric, {}).setdefault(case.degradation, []).append(figure)
        subject.on_progress("samplers", case.name, len(cases))
    head = [cell for metric in subject.metrics.names for cell in (metric.upper(), f"{metric.upper()} 95 %")]
    lines = tuple(one.line() for one in (*tried, shipped))
    figures = {
        metric: plots.curves(
            {name: (calls, [one.mean(metric) for one in tried if one.name == name]) for name in SAMPLERS},
            x="network calls",
            y=plots.UNITS[metric],
            log_x=True,
        )
        for metric in subject.metrics.names
    }
    return Study(
        title="Samplers: quality against network calls",
        words="PSNR in dB, means over the photos; one seed. `posterior`, `sde` and `ode` as published. "
        "Seconds are of the sampler alone. `as shipped`: the sampler, calls and times of the model's folder.",
        tables=(Table(head=("sampler", "calls", *head, "s/photo"), lines=lines, words=1),),
        figures={f"samplers-{metric}": figure for metric, figure in figures.items()},
    )
