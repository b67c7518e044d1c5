"""The numbers behind the report: what answered, phases and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from homeostat.core.reading import Reading
from homeostat.core.trace import Entry, Trace
from homeostat.loop.reporting import summary
from homeostat.loop.store import Row


def windows():
    return [
        Row(i, "window", {"served": "Blend" if 15 < i <= 25 else "source", "entropy": 0.5 if i >= 10 else 0.2})
        for i in range(30)
    ]


def test_the_interval_is_that_of_a_paired_t_test():
    noise = np.random.default_rng(0).normal(0.5, 0.1, (2, 30))
    trace = Trace(
        tuple(
            Entry(i, "source", str(i // 10), (Reading("accuracy", a), Reading("frozen", b)))
            for i, (a, b) in enumerate(noise.T.tolist())
        )
    )
    stream = summary.Stream.of([], trace)
    for number, phase in enumerate(summary.phases(stream, ["clean", "fog", "clean again"])):
        part = slice(10 * number, 10 * number + 10)
        expected = stats.ttest_rel(noise[0][part], noise[1][part]).confidence_interval(0.95)
        assert (phase.interval.low, phase.interval.high) == pytest.approx((expected.low, expected.high))
        assert phase.difference == pytest.approx((noise[0] - noise[1])[part].mean())


def test_what_answered_is_taken_from_the_journal_because_the_trace_names_what_came_after():
    changed = Trace(tuple(Entry(i, "Blend" if 15 <= i < 25 else "source", "", ()) for i in range(30)))
    stream = summary.Stream.of(windows(), changed)
    assert [i for i, name in enumerate(stream.served) if name == "Blend"] == list(range(16, 26))


def test_a_phase_that_comes_back_is_one_phase():
    trace = Trace(tuple(Entry(i, "source", "010"[i // 2]) for i in range(6)))
    found = summary.phases(summary.Stream.of([], trace), ["a", "b"])
    assert [(p.number, p.name, p.windows, len(p.stretches)) for p in found] == [(1, "a", 4, 2), (2, "b", 2, 1)]
