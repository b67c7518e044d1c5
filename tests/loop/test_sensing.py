from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.save import load, save
from homeostat.loop.sensing import Process, Sensed, Sensing, SensingLoop

MOVES = ((1.0, 0.5), (0.0, 0.9))
NOISE = ((0.2, 0.05), (0.05, 0.1))
POSITION, SPEED = Sensed(((1.0, 0.0),), ((0.5,),)), Sensed(((0.0, 1.0),), ((0.1,),), energy=2.0)


def matrix(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def simulate(steps: int, moves=MOVES, noise=NOISE, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(matrix(noise))
    x, path = torch.zeros(len(moves), dtype=torch.float64), []
    for _ in range(steps):
        path.append(x)
        x = matrix(moves) @ x + root @ torch.randn(len(x), generator=draws, dtype=torch.float64)
    return torch.stack(path)


def track(loop: SensingLoop, path: torch.Tensor, seed: int = 1) -> list:
    """Follow a path; sensors see it with the errors that the process says they have."""
    draws, beliefs = torch.Generator().manual_seed(seed), []
    for x in path:

        def look(sensor: Sensed, x: torch.Tensor = x) -> torch.Tensor:
            root = torch.linalg.cholesky(matrix(sensor.error))
            return matrix(sensor.reads) @ x + root @ torch.randn(len(root), generator=draws, dtype=torch.float64)

        beliefs.append(loop.step([lambda s=s: look(s) for s in loop.process.sensors]))
    return beliefs


@pytest.mark.exact("S213")
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.floats(0.3, 3.0), st.integers(0, 1000))
def test_beliefs_are_those_of_the_joint_gaussian_given_every_look_that_was_answered(latency, uncertainty, seed):
    process = Process(MOVES, NOISE, start=4.0, sensors=(POSITION, SPEED))
    loop = SensingLoop(process, Sensing(uncertainty=uncertainty, run_length=None, latency=latency))
    draws = torch.Generator().manual_seed(seed)
    seen, steps = [], 9
    a, n = matrix(MOVES), 2
    # The joint covariance of x_0 ... x_8.
    cov = torch.zeros(steps, n, steps, n, dtype=torch.float64)
    cov[0, :, 0, :] = 4.0 * torch.eye(n, dtype=torch.float64)
    for t in range(1, steps):
        for s in range(t):
            cov[t, :, s, :] = a @ cov[t - 1, :, s, :]
            cov[s, :, t, :] = cov[t, :, s, :].T
        cov[t, :, t, :] = a @ cov[t - 1, :, t - 1, :] @ a.T + matrix(NOISE)
    for now in range(steps):
        values = [torch.randn(1, generator=draws, dtype=torch.float64) for _ in process.sensors]
        belief = loop.step([lambda v=v: v for v in values])
        if belief.sensor is not None:
            seen.append((now, process.sensors[belief.sensor], values[belief.sensor]))
        known = [(t, s, y) for t, s, y in seen if t <= now - latency]
        mean, covariance = torch.zeros(n, dtype=torch.float64), cov[now, :, now, :]
        if known:
            rows = [matrix(s.reads) for _, s, _ in known]
            cross = torch.cat([cov[now, :, t, :] @ c.T for (t, _, _), c in zip(known, rows, strict=True)], 1)
            inner = torch.cat([
                torch.cat([c @ cov[t, :, u, :] @ d.T for (u, _, _), d in zip(known, rows, strict=True)], 1)
                for (t, _, _), c in zip(known, rows, strict=True)
            ])  # fmt: skip
            inner = inner + torch.block_diag(*(matrix(s.error) for _, s, _ in known))
            gain = cross @ torch.linalg.inv(inner)
            mean, covariance = gain @ torch.cat([y for _, _, y in known]), covariance - gain @ cross.T
        assert torch.allclose(belief.mean, mean, atol=1e-8) and torch.allclose(belief.covariance, covariance, atol=1e-8)


def test_it_looks_when_what_the_task_needs_is_unsure_and_not_for_anything_else():
    only_speed = Process(MOVES, NOISE, needs=((0.0, 1.0),), sensors=(SPEED,))
    loop = SensingLoop(only_speed, Sensing(uncertainty=0.4, run_length=None))
    for belief in track(loop, simulate(60)):
        unsure = float(belief.covariance[1, 1].sqrt())
        assert unsure <= 0.4 + 1e-9
    assert 0 < int(loop.carry["looks"]) < 60
    position_grows = float(loop.carry["covariance"][0, 0])
    assert position_grows > 10, "the position, which the task does not need, is let go"


def test_of_two_sensors_the_one_that_helps_more_for_its_energy_looks():
    cheap, dear = Sensed(((1.0,),), ((1.0,),), energy=1.0), Sensed(((1.0,),), ((0.5,),), energy=10.0)
    sharp = Sensed(((1.0,),), ((0.01,),), energy=1.0)
    for sensors, wanted in (((cheap, dear), 0), ((cheap, sharp), 1)):
        beliefs = track(SensingLoop(Process(sensors=sensors)), simulate(20, ((1.0,),), ((1.0,),)))
        assert {b.sensor for b in beliefs} <= {wanted, None} and any(b.sensor == wanted for b in beliefs)


def test_looks_that_cannot_be_paid_are_not_made_and_counted():
    loop = SensingLoop(Process(), Sensing(uncertainty=0.1, run_length=None, budget=0.25, reserve=2.0))
    beliefs = track(loop, simulate(40, ((1.0,),), ((1.0,),)))
    looks = sum(b.sensor is not None for b in beliefs)
    assert looks == int(loop.carry["looks"]) == 2 + int(39 * 0.25) and int(loop.carry["starved"]) == 40 - looks


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    """Over 200 simulations of a right predictor; every look is counted, up to the first alarm or 2,000."""
    lengths, limit = [], 60
    for seed in range(200):
        loop = SensingLoop(Process(), Sensing(uncertainty=0.1, run_length=limit))
        path, count = simulate(2000, ((1.0,),), ((1.0,),), seed), 0
        draws = torch.Generator().manual_seed(seed + 10_000)
        for x in path:
            count += 1
            seen = x + torch.randn(1, generator=draws, dtype=torch.float64)
            if loop.step([lambda seen=seen: seen]).alarmed:
                break
        lengths.append(float(count))
    found = torch.tensor(lengths)
    error = float(found.std()) / len(lengths) ** 0.5
    assert float(found.mean()) > limit - 2 * error, "it would be rarer than stated by chance in 2 % of such tests"


def biased(run_length: int | None) -> tuple[float, float, float, SensingLoop]:
    """A process that runs away at 0.3 a step, which the predictor does not know; errors of the first and last third."""
    process = Process(((1.0,),), ((0.01,),), sensors=(Sensed(((1.0,),), ((0.04,),)),))
    path = 0.3 * torch.arange(300, dtype=torch.float64)[:, None]
    loop = SensingLoop(process, Sensing(uncertainty=0.5, run_length=run_length))
    beliefs = track(loop, path)
    wrong = torch.stack([b.mean for b in beliefs]) - path
    early, late = (float(part.square().mean().sqrt()) for part in (wrong[20:120], wrong[200:]))
    return early, late, int(loop.carry["looks"]) / 300, loop


def test_a_biased_predictor_is_found_out_and_looked_after():
    _, blind, few, _ = biased(None)
    _, watched, more, loop = biased(100)
    assert int(loop.carry["alarms"]) >= 1 and more > 2 * few
    assert watched < blind / 2


def test_calm_brings_rare_looks_back():
    loop = SensingLoop(Process(), Sensing(uncertainty=2.0))
    loop.carry["caution"] = torch.tensor(64.0, dtype=torch.float64)
    beliefs = track(loop, simulate(300, ((1.0,),), ((1.0,),)))
    looked = torch.tensor([float(b.sensor is not None) for b in beliefs])
    assert float(looked[:10].mean()) == 1.0 and float(looked[-100:].mean()) < 0.4


def test_a_saved_loop_goes_on_as_if_it_had_not_stopped(tmp_path):
    process, policy = Process(MOVES, NOISE, sensors=(POSITION, SPEED)), Sensing(uncertainty=0.6, latency=2, budget=1.0)
    path, straight = simulate(40), SensingLoop(process, policy)
    draws = torch.Generator().manual_seed(3)
    values = torch.randn(40, 2, generator=draws, dtype=torch.float64)

    def go(loop: SensingLoop, steps: range) -> list[torch.Tensor]:
        return [
            loop.step([lambda t=t, i=i: path[t, i : i + 1] + values[t, i : i + 1] for i in range(2)]).mean
            for t in steps
        ]

    whole = go(straight, range(40))
    stopped = SensingLoop(process, policy)
    first = go(stopped, range(17))
    save(stopped, tmp_path / "loop")
    rest = go(load(tmp_path / "loop"), range(17, 40))
    assert all(torch.equal(a, b) for a, b in zip(first + rest, whole, strict=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="sensors is empty"):
        Process(sensors=())
    with pytest.raises(SpecError, match="noise has rows"):
        Process(MOVES, ((1.0,),))
    with pytest.raises(SpecError, match="no covariance"):
        Process(noise=((-1.0,),))
    with pytest.raises(SpecError, match=r"error is not 1 x 1"):
        Process(sensors=(Sensed(((1.0,),), ((1.0, 0.0), (0.0, 1.0))),))
    loop = SensingLoop()
    with pytest.raises(InputError, match="one function a sensor"):
        loop.step([])
    with pytest.raises(InputError, match="gives 1 numbers; it gave 2"):
        loop.step([lambda: torch.zeros(2)])
    with pytest.raises(NonFiniteError, match="nothing was taken in"):
        loop.step([lambda: torch.tensor([float("nan")])])
    assert int(loop.carry["step"]) == 0 and int(loop.carry["looks"]) == 0


def test_a_sensor_without_errors_is_refused_and_one_with_a_tiny_error_works():
    """What an exact sensor has seen twice would have no likelihood."""
    still = ((0.0, 0.0), (0.0, 1.0))
    both = tuple(Sensed((row,), ((1e-9,),)) for row in ((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(SpecError, match=r"sensors\[0\]\.error is singular"):
        Process(((1.0, 0.0), (0.0, 1.0)), still, sensors=(Sensed(((1.0, 0.0),), ((0.0,),)), both[1]))
    with pytest.raises(SpecError, match="no covariance"):
        Process(noise=((-1.0,),))
    loop = SensingLoop(Process(((1.0, 0.0), (0.0, 1.0)), still, sensors=both), Sensing(uncertainty=0.5))
    for _ in range(20):
        found = loop.step([lambda: torch.ones(1), lambda: torch.ones(1)])
    assert torch.allclose(found.mean, torch.ones(2).double(), atol=1e-4)
