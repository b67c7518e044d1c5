"""Results made of known effects: luck of a seed that all entrants share, hard and easy phases, gains of entrants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from homeostat.bench import Measured, Result

PHASES = ("clean", "fog 3", "noise 5")
HARDNESS = {"clean": 0.0, "fog 3": -0.15, "noise 5": -0.3}
GAINS: Mapping[str, Sequence[float]] = {
    "Source": (0.0, 0.0, 0.0), "BatchNorm": (-0.01, 0.06, 0.12), "Tent": (-0.03, 0.08, 0.15),
    "EATA": (0.0, 0.08, 0.14), "LAME": (0.0, 0.005, 0.0),
}  # fmt: skip
"""Gain by phase."""


def grid(
    gains: Mapping[str, Sequence[float]] = GAINS,
    *,
    settings: Sequence[str] = ("small network",),
    protocols: Sequence[str] = ("online",),
    streams: Sequence[str] = ("morning", "night"),
    seeds: int = 5,
    noise: float = 0.01,
    luck: float = 0.02,
    windows: int = 30,
    phases: Sequence[str] = PHASES,
    sweep: str = "",
    seed: int = 0,
) -> list[Result]:
    """A result for each cell; what is random is the same for the same cell whatever else is in the grid."""
    made = list[Result]()
    for setting in settings:
        for protocol in protocols:
            for stream in streams:
                for number in range(seeds):
                    shared = _rng(seed, setting, stream, number).normal(0, luck)
                    for name, gain in gains.items():
                        rng = _rng(seed, setting, protocol, stream, name, number)
                        hard = [HARDNESS.get(phase, -0.1) for phase in phases]
                        true = 0.85 + shared + np.array(hard) + np.resize(np.array(gain, float), len(phases))
                        accuracy = true + rng.normal(0, noise, len(phases))
                        bumps = rng.normal(0, 0.05, windows)
                        made.append(
                            Result(
                                f"{setting}/{protocol}/{stream}/{name}/{sweep}/{number}", "small", setting, stream,
                                protocol, name, number, sweep, tuple(phases),
                                {
                                    "accuracy": Measured(tuple(map(float, accuracy)), "higher", "fraction"),
                                    "entropy": Measured(tuple(map(float, 1 - accuracy)), "none", "nats"),
                                    "nll": Measured(tuple(map(float, 2 * (1 - accuracy))), "lower", "nats"),
                                },
                                tuple(map(float, np.repeat(accuracy, -(-windows // len(phases)))[:windows] + bumps)),
                                0.5 if name != "Source" else 0.0, 2.0 + len(name) / 10, 3000,
                                about={"versions": {"homeostat": "0.1.0", "torch": "2.13.0"}},
                                at="2026-01-01 12:00:00",
                            )
                        )  # fmt: skip
    return made


def _rng(*what: object) -> np.random.Generator:
    return np.random.default_rng([sum(ord(c) * 31**i for i, c in enumerate(str(part))) % 2**32 for part in what])


def tuning(trials: int = 4, **options: object) -> list[Result]:
    """A grid with a sweep of Tent whose best member on the stream `"tuning"` is `Tent(1)`, elsewhere `Tent(2)`."""
    every = ("tuning", "morning", "night")
    members = {f"Tent({i})": (-0.05 * abs(i - 2),) for i in range(trials)}
    away = {f"Tent({i})": (-0.05 * abs(i - 1),) for i in range(trials)}
    plain = grid({"Source": (0.0,), "EATA": (0.03,)}, streams=every, **options)
    swept = grid(members, streams=every[1:], sweep="Tent", **options) + grid(
        away, streams=every[:1], sweep="Tent", **options
    )
    return plain + swept
