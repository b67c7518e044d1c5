"""Sensing on demand: the same error for half of the looks, no cascade of errors, and less for each of two who share.

A position paper on sensing-to-action loops at the edge (S213) says what such a loop should do and measures nothing.
These are its three demands, made concrete with simulated processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.core.run import Run
from homeostat.evidence import claim
from homeostat.loop import Process, Sensed, Sensing, SensingLoop

TUNED = "nothing; the policy's defaults but for the uncertainty that the task allows"
CALM, WILD = 0.05, 1.0
"""Standard deviations of a step of the process."""
ERROR = 0.2
"""Standard deviation of a look's error."""
STEPS = 2000


def _walk(run: Run, wild: Tensor) -> Tensor:
    """A random walk whose steps are wild at times, `[steps]`."""
    noise = torch.randn(len(wild), generator=run.rng("walk"), dtype=torch.float64)
    return (torch.where(wild, WILD, CALM) * noise).cumsum(0)


def _followed(policy: Sensing, path: Tensor, seen: Tensor, noise: float = CALM) -> tuple[Tensor, Tensor]:
    """Errors of the estimates, and in which steps there was a look."""
    process = Process(((1.0,),), ((noise**2,),), sensors=(Sensed(((1.0,),), ((ERROR**2,),)),))
    loop, errors, looks = SensingLoop(process, policy), [], []
    for x, y in zip(path, seen, strict=True):
        belief = loop.step([lambda y=y: y[None]])
        errors.append(belief.mean[0] - x)
        looks.append(belief.sensor is not None)
    return torch.stack(errors), torch.tensor(looks)


def _regular(path: Tensor, seen: Tensor, every: int) -> Tensor:
    """Errors of a filter that knows the process's mean variance and looks every so many steps."""
    noise = float(path.diff().square().mean())
    mean, var, errors = torch.zeros((), dtype=torch.float64), 100.0, []
    for step, (x, y) in enumerate(zip(path, seen, strict=True)):
        if step % every == 0:
            gain = var / (var + ERROR**2)
            mean, var = mean + gain * (y - mean), (1 - gain) * var
        errors.append(mean - x)
        var += noise
    return torch.stack(errors)


def _rmse(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


@claim(
    "S213",
    says="On a process that is wild a tenth of the time, sensing on demand needs at most half of the looks of the "
    "rarest fixed rate with no larger an error.",
    ours="on demand", baseline="half of the fixed rate", metric="looks a step", better="lower", least=0.0,
    tier="a minute", data=(), tuned=TUNED,
    shrunk="a random walk of 2,000 steps; steps have a deviation of 0.05, and of 1 in two bursts of 100 steps",
)  # fmt: skip
def half_of_the_looks(run: Run) -> dict[str, float]:
    wild = (torch.arange(STEPS) % 1000) >= 900
    path = _walk(run, wild)
    seen = path + ERROR * torch.randn(STEPS, generator=run.rng("looks"), dtype=torch.float64)
    errors, looks = _followed(Sensing(uncertainty=0.25), path, seen)
    allowed = _rmse(errors)
    every = next((k for k in range(50, 0, -1) if _rmse(_regular(path, seen, k)) <= allowed), 1)
    share = float(looks.double().mean())
    return {"on demand": share, "half of the fixed rate": 0.5 / every, "error": allowed}


@claim(
    "S213",
    says="Where the process runs away and the predictor does not know it, watching the innovations keeps the error "
    "below half of what it is without.",
    ours="watched", baseline="half of the unwatched", metric="root mean squared error", better="lower", least=0.0,
    tier="a minute", data=(), tuned=TUNED,
    shrunk="a line of slope 0.3 with a random walk of deviation 0.05 on it, 500 steps",
)  # fmt: skip
def no_cascade(run: Run) -> dict[str, float]:
    path = _walk(run, torch.zeros(500, dtype=torch.bool)) + 0.3 * torch.arange(500, dtype=torch.float64)
    seen = path + ERROR * torch.randn(500, generator=run.rng("looks"), dtype=torch.float64)
    watched, unwatched = (
        _followed(Sensing(uncertainty=0.5, run_length=length), path, seen)[0] for length in (500, None)
    )
    return {"watched": _rmse(watched), "half of the unwatched": _rmse(unwatched) / 2}


def _two(run: Run, looks: Sequence[int]) -> tuple[float, float]:
    """Looks a step for each agent and the error, with so many sensors in a loop."""
    path = _walk(run, torch.zeros(STEPS, dtype=torch.bool))
    total, errors = 0.0, []
    for agents in looks:
        sensors = (Sensed(((1.0,),), ((ERROR**2,),)),) * agents
        loop = SensingLoop(Process(((1.0,),), ((CALM**2,),), sensors=sensors), Sensing(uncertainty=0.2))
        draws = run.rng("looks", len(errors))
        for x in path:
            values = x + ERROR * torch.randn(agents, generator=draws, dtype=torch.float64)
            belief = loop.step([lambda v=v: v[None] for v in values])
            total += belief.sensor is not None
            errors.append(belief.mean[0] - x)
    return total / STEPS / 2, _rmse(torch.stack(errors))


@claim(
    "S213",
    says="Two agents that share what they see look at most six tenths as often each as two that do not.",
    ours="shared", baseline="six tenths of alone", metric="looks a step and agent", better="lower", least=0.0,
    tier="a minute", data=(), tuned=TUNED, shrunk="a random walk of 2,000 steps that both see",
)  # fmt: skip
def shared(run: Run) -> dict[str, float]:
    together, apart = _two(run, (2,)), _two(run, (1, 1))
    looks = {"shared": together[0], "alone": apart[0], "six tenths of alone": 0.6 * apart[0]}
    return looks | {"error shared": together[1], "error alone": apart[1]}
