"""Made-up link loads."""

from __future__ import annotations

import pytest
import torch

from homeostat.core.errors import InputError, SpecError
from homeostat.data import LinkLoads, routes


def test_routes_of_a_square_by_hand():
    """Routers 0-1-2-3-0; demand 0 -> 2 goes over 1, and over 3 when link 0-1 fails."""
    links = ((0, 1), (1, 2), (2, 3), (0, 3))
    before, after = routes(4, links), routes(4, links, down=0)
    assert before[1].tolist() == [1, 1, 0, 0] and after[1].tolist() == [0, 0, 1, 1]  # pair (0, 2)
    assert before[0].tolist() == [1, 0, 0, 0] and after[0].tolist() == [0, 1, 1, 1]  # pair (0, 1)
    assert before.sum() == 4 * (1 + 1 + 2)


def test_a_link_that_cuts_the_network_is_refused():
    with pytest.raises(InputError, match="cut off"):
        routes(4, ((0, 1), (1, 2), (2, 3)), down=1)


def test_a_failure_changes_nothing_before_it_and_moves_the_demand_after_it():
    calm, failed = LinkLoads(steps=300, day=48), LinkLoads(steps=300, day=48, fails=200, down=5)
    a, b = calm.loads(), failed.loads()
    assert torch.equal(a[:200], b[:200]) and bool((b[200:, 5] == 0).all())
    largest = (b[200:].mean(0) / a[200:].mean(0) - 1).abs()
    largest[5] = 0
    assert float(largest.max()) == pytest.approx(failed.shift_of(5), rel=0.1)
    assert torch.allclose(a[:48].mean(0), torch.ones(a.shape[1], dtype=torch.float64))


def test_windows_come_before_their_target_and_a_link_that_is_down_has_none():
    reader = LinkLoads(steps=120, day=48, window=6, fails=90, down=2)
    batch, loads = reader.read().load(), reader.loads().float()
    for row in (0, 50, 113):
        time = int(batch.meta["time"][row])
        assert time == row + 6 and torch.equal(batch.x[row], loads[row : row + 6])
        alive = torch.arange(loads.shape[1]) != 2 if time >= 90 else slice(None)
        assert torch.equal(batch.y[row][alive], loads[time][alive])
    assert batch.y.isnan().sum() == 30


def test_what_does_not_fit_is_refused():
    for wrong in ({"steps": 10, "window": 10}, {"fails": 3}, {"down": 99}):
        with pytest.raises(SpecError):
            LinkLoads(**wrong)
