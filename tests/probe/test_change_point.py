"""The change point: where a step is, the stated coverage of its interval, and the probe over data in order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.world import World
from homeostat.probe import ChangePoint, change_gains, find_change
from homeostat.probe.change_point import ranks


def noise(kind: str, windows: int, at: int, effect: float, g: torch.Generator) -> Tensor:
    """Windows with a change; the effect is in standard deviations of a window's mean, or (coins) a share."""
    if kind == "coins":
        share = torch.full((windows, 1), 0.1)
        share[at:] += effect
        return (torch.rand(windows, 20, generator=g) < share).double().mean(1)
    x = torch.randn(windows, generator=g, dtype=torch.float64)
    if kind == "skewed":
        x = x.exp()
    if kind == "calmer":
        x[at:] *= 0.5
    x[at:] += effect
    return x


def covered(count: int, at: int, draw, seed: int, **how) -> tuple[float, float]:
    g, hits, width = torch.Generator().manual_seed(seed), 0, 0
    for _ in range(count):
        found = find_change(draw(g), generator=g, draws=39, **how)
        assert found.low <= found.at <= found.high
        hits += found.low <= at <= found.high
        width += found.high - found.low
    return hits / count, width / count


def enough(count: int, level: float) -> float:
    """A share of hits below which the true coverage is below `level`, at one in a hundred."""
    return level - 2.33 * math.sqrt(level * (1 - level) / count)


@pytest.mark.parametrize("kind", ["normal", "coins", "skewed", "calmer"])
@pytest.mark.parametrize(("windows", "at"), [(14, 7), (14, 2), (14, 12)])
def test_permutations_cover_whatever_the_distribution(kind, windows, at):
    for effect in (0.1, 0.4) if kind == "coins" else (0.7, 3.0):
        share, _ = covered(60, at, lambda g, e=effect: noise(kind, windows, at, e, g), at, level=0.9)
        assert share >= enough(60, 0.9)


@pytest.mark.parametrize(("windows", "at"), [(14, 7), (14, 2), (14, 12)])
def test_normal_draws_cover_normal_windows_and_nearly_cover_shares(windows, at):
    for effect in (0.7, 3.0):
        share, _ = covered(50, at, lambda g, e=effect: noise("normal", windows, at, e, g), at, level=0.9, normal=True)
        assert share >= enough(50, 0.9)
        share, _ = covered(
            80, at, lambda g, e=effect: noise("coins", windows, at, e / 8, g), at, level=0.9, normal=True
        )
        assert share >= enough(50, 0.83)


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("at", [0, 3, 19])
def test_a_known_mean_before_is_used_and_lets_the_first_window_be_the_change(normal, at):
    share, width = covered(50, at, lambda g: noise("normal", 20, at, 3.0, g), at, level=0.9, normal=normal, before=0.0)
    assert share >= enough(50, 0.9)
    assert width < 19, "it says something"


def test_normal_draws_are_the_shorter_ones_soon_after_a_change():
    lengths = [
        covered(30, 19, lambda g: noise("normal", 20, 19, 6.0, g), 1, level=0.9, normal=normal)[1]
        for normal in (False, True)
    ]
    assert lengths[1] < 0.5 * lengths[0]


@pytest.mark.parametrize("normal", [False, True])
def test_windows_of_many_samples_weigh_more(normal):
    def draw(g: torch.Generator) -> Tensor:
        return torch.randn(20, generator=g, dtype=torch.float64) / weights.sqrt() + 0.9 * (torch.arange(20) >= 8)

    weights = torch.tensor([1.0, 9.0]).double().repeat(10)
    share, width = covered(50, 8, draw, 7, level=0.9, normal=normal, weights=weights)
    _, unweighted = covered(50, 8, draw, 7, level=0.9, normal=normal)
    assert share >= enough(50, 0.9) and width < unweighted


def test_gains_are_the_fall_of_the_sum_of_squares():
    x, w = torch.tensor([1.0, 2.0, 5.0, 7.0]).double(), torch.tensor([1.0, 2.0, 1.0, 3.0]).double()

    def squares(low: int, high: int, center: float | None = None) -> float:
        part, weight = x[low:high], w[low:high]
        center = float((part * weight).sum() / weight.sum()) if center is None else center
        return float((weight * (part - center) ** 2).sum())

    gains = change_gains(x[:, None], w)
    assert gains[0] == -math.inf
    assert gains[1:].tolist() == pytest.approx([squares(0, 4) - squares(0, k) - squares(k, 4) for k in (1, 2, 3)])
    known = change_gains(x[:, None], w, torch.tensor([0.5]).double())
    expected = [squares(0, 4, 0.5) - (squares(0, k, 0.5) if k else 0) - squares(k, 4) for k in range(4)]
    assert known.tolist() == pytest.approx(expected)
    both = change_gains(torch.stack([x, -2 * x], 1), w)
    assert both[1:].tolist() == pytest.approx((5 * gains[1:]).tolist()), "columns add up"


def test_the_effect_and_the_p_value_by_hand():
    found = find_change(torch.tensor([1.0, 1.0, 1.0, 3.0]), weights=torch.tensor([1.0, 1.0, 2.0, 5.0]))
    assert found.at == 3 and found.effect == pytest.approx(2.0)
    assert find_change(torch.full((9,), 2.0)).p_value == 1.0
    assert find_change(torch.tensor([4.0, 4.0]), before=1.0).at == 0
    step = torch.cat([torch.zeros(10), torch.ones(10)])
    assert find_change(step).p_value == pytest.approx(1 / 200)


def test_sequences_without_a_change_have_small_p_values_as_seldom_as_stated():
    g = torch.Generator().manual_seed(3)
    p = torch.tensor(
        [find_change(torch.rand(12, generator=g), draws=19, level=0.9, generator=g).p_value for _ in range(200)]
    )
    for level in (0.1, 0.3):
        assert float((p <= level).double().mean()) <= level + 2.6 * math.sqrt(level * (1 - level) / 200)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"values": torch.ones(1)}, "at least 2 windows; got 1"),
        ({"values": torch.ones(5), "level": 0.99, "draws": 50}, "50 draws cannot give an interval of level 0.99"),
        ({"values": torch.ones(5), "weights": torch.tensor([1.0, 0, 1, 1, 1])}, "above 0; leave empty windows out"),
    ],
)
def test_what_cannot_be_answered_is_refused(how, message):
    with pytest.raises(InputError, match=message):
        find_change(how.pop("values"), **how)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        find_change(torch.tensor([1.0, math.nan, 2.0]))


# -- the probe


def ordered(at: int, count: int, seed: int, later: float = 0.5) -> World:
    """Logits as inputs: from sample `at` on they are `later` times as large, so that the network is less certain."""
    z = 3 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    z[at:] *= later
    return World(held=z)


@pytest.mark.parametrize("on", ["entropy", "confidence"])
@pytest.mark.parametrize("at", [60, 151, 240])
def test_the_probe_finds_the_first_sample_after_the_change(on, at):
    readings = [ChangePoint(on=on)(nn.Identity(), ordered(at, 300, seed)) for seed in range(12)]
    hits = sum(float(at) in reading.interval for reading in readings if reading.interval is not None)
    assert hits >= 10, "0.95 of 12, less two"
    assert sorted(abs(reading.value - at) for reading in readings)[6] <= 20
    found = [reading for reading in readings if reading.finding is not None and reading.finding.detected]
    assert len(found) >= 9
    for reading in found:
        finding = reading.finding
        assert finding is not None and finding.effect is not None
        assert finding.since == reading.value and (finding.effect > 0) == (on == "entropy")
        assert finding.kind == "change" and f"from sample {finding.since} on" in finding.text


def test_the_probe_finds_nothing_where_nothing_changed_or_little():
    quiet = [ChangePoint()(nn.Identity(), ordered(150, 300, seed, later=1.0)).finding for seed in range(40)]
    assert sum(finding.detected for finding in quiet) <= 6  # 0.05 of 40, and three standard errors
    assert all(finding.since is None and "no notable" in finding.text for finding in quiet if not finding.detected)
    small = ChangePoint(min_effect=0.4)(nn.Identity(), ordered(150, 300, 1)).finding
    assert (
        not small.detected and small.p_value == pytest.approx(1 / 200) and small.effect == pytest.approx(0.2, abs=0.15)
    )


def test_the_effect_is_the_chance_that_a_later_sample_has_more_less_a_half():
    data = ordered(100, 200, 2)
    reading = ChangePoint()(nn.Identity(), data)
    p = data.held.load().x.softmax(-1)
    entropy, at = torch.special.entr(p).sum(1), int(reading.value)
    pairs = (entropy[at:, None] > entropy[:at]).double().mean()
    assert reading.finding.effect == pytest.approx(float(pairs) - 0.5, abs=1e-6)


def test_ranks_of_equal_scores_are_their_mean():
    assert ranks(torch.tensor([0.3, 0.1, 0.3, 0.9])).tolist() == pytest.approx([0.5, 0.125, 0.5, 0.875])


def test_two_windows_are_needed():
    with pytest.raises(InputError, match="needs at least 40 samples for two windows of 20; got 39"):
        ChangePoint()(nn.Identity(), ordered(20, 39, 1))
    with pytest.raises(SpecError, match=r"ChangePoint\.on"):
        ChangePoint(on="error")
