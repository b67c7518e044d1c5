"""The monitor: few false alarms however long one looks, real changes found soon, small ones left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from homeostat.core.errors import InputError, SpecError
from homeostat.core.online import Bag
from homeostat.loop.monitor import Monitor, bet_size, e_cusum, normalised_entropy

WINDOW = 20
CENTER = 0.3


def begun(monitor: Monitor, error: float | None = 0.2) -> Bag:
    state = Bag()
    monitor.begin(CENTER + 0.1 * torch.linspace(-1, 1, 200), error, state)
    return state


def bounds(state: Bag) -> list[float]:
    """Upper bounds of the entropy, of one minus the entropy, and of the error."""
    return state["bounds"].tolist()


def coins(mean: float, draws: torch.Generator) -> Tensor:
    """The most variable numbers in 0..1 of this mean."""
    return (torch.rand(WINDOW, generator=draws) < mean).float()


def spread(mean: float, draws: torch.Generator) -> Tensor:
    return mean + 0.8 * min(mean, 1 - mean) * (2 * torch.rand(WINDOW, generator=draws) - 1)


def alike(values: Tensor, block: int) -> Tensor:
    """Runs of equal numbers, as long as a block."""
    return values[::block].repeat_interleave(block)


def false_alarms(monitor: Monitor, draw, windows: int, seed: int, lower: bool = False, run: int = 1) -> int:
    """Alarms on a stream that is as far off as the null hypothesis allows: its means are the bounds themselves."""
    state, draws = begun(monitor), torch.Generator().manual_seed(seed)
    upper, under, error = bounds(state)
    count = 0
    for _ in range(windows):
        entropy = alike(draw(1 - under if lower else upper, draws), run)
        wrong = alike(coins(error, draws), run)
        count += monitor.look(entropy, wrong, state) is not None
    return count


# -- false alarms


@pytest.mark.parametrize(
    ("block", "run", "draw", "lower"),
    [(10, 1, coins, False), (10, 10, coins, False), (5, 5, spread, False), (5, 1, coins, True)],
)
def test_the_average_run_length_between_false_alarms_is_at_least_what_is_promised(block, run, draw, lower):
    length, windows = 50, 5000
    found = false_alarms(Monitor(run_length=length, block=block), draw, windows, seed=block + run, lower=lower, run=run)
    # A renewal count of mean at most windows / length; three deviations of a Poisson above it is already wrong.
    assert found <= windows / length + 3 * math.sqrt(windows / length)


def test_the_same_count_finds_a_block_that_is_shorter_than_the_likeness_of_neighbours():
    length, windows = 5, 1500
    honest = false_alarms(Monitor(run_length=length, block=20), coins, windows, seed=3, run=20)
    wrong = false_alarms(Monitor(run_length=length, block=1), coins, windows, seed=3, run=20)
    assert honest <= windows / length + 3 * math.sqrt(windows / length) and wrong > 3 * max(honest, 1)


def test_a_stream_like_the_reference_raises_no_alarm_in_a_thousand_windows():
    monitor, draws = Monitor(run_length=50), torch.Generator().manual_seed(4)
    state = begun(monitor)
    looks = [monitor.look(spread(CENTER, draws), coins(0.2, draws), state) for _ in range(1000)]
    assert looks == [None] * 1000


def test_a_change_smaller_than_the_effect_raises_no_alarm():
    monitor, draws = Monitor(run_length=50, effect=0.1, harm=0.15), torch.Generator().manual_seed(5)
    for mean in (CENTER + 0.08, CENTER - 0.08):
        state = begun(monitor)
        assert not any(monitor.look(spread(mean, draws), coins(0.33, draws), state) for _ in range(600))
    state, small = begun(Monitor(effect=0.03)), Monitor(effect=0.03)
    assert any(small.look(spread(CENTER + 0.08, draws), None, state) for _ in range(600)), "it is a change all the same"


def test_the_capital_is_a_supermartingale_under_the_null_hypothesis():
    draws = torch.Generator().manual_seed(6)
    bound, ends = 0.3, []
    for _ in range(2000):
        capital, total, squares = 1.0, 0.1, 0.1
        for value in (torch.rand(20, generator=draws) < bound).double().tolist():
            grown = e_cusum(1.0, value, bound, bet_size(total, squares, bound))
            capital, total, squares = capital * grown, total + value - bound, squares + (value - bound) ** 2
        ends.append(capital)
    mean = torch.tensor(ends)
    assert mean.mean() <= 1 + 4 * mean.std() / math.sqrt(len(ends))


# -- real changes


@pytest.mark.parametrize(
    ("mean", "kind", "within"), [(0.6, "uncertain", 12), (0.45, "uncertain", 26), (0.15, "certain", 42)]
)
def test_a_shift_of_the_mean_is_found_within_so_many_windows(mean, kind, within):
    monitor = Monitor(run_length=500)
    for seed in range(20):
        draws, state = torch.Generator().manual_seed(seed), begun(monitor)
        for _ in range(10):
            assert monitor.look(spread(CENTER, draws), None, state) is None
        looks = [monitor.look(spread(mean, draws), None, state) for _ in range(within)]
        found = [(late, finding) for late, finding in enumerate(looks, start=1) if finding is not None]
        assert found, f"seed {seed}: nothing found"
        late, finding = found[0]
        assert finding.kind == kind and finding.detected and abs(finding.effect - abs(mean - CENTER)) < 0.15
        # Evidence may have begun to gather by chance before the shift.
        assert finding.since is not None and 1 <= finding.since <= late + 10
        assert finding.p_value is not None and 0 < finding.p_value <= 1 / (3 * 500 * 2)


def test_labels_that_disagree_raise_the_alarm_though_the_entropy_stays():
    monitor, draws = Monitor(run_length=500), torch.Generator().manual_seed(7)
    state = begun(monitor)
    quiet = [monitor.look(spread(CENTER, draws), coins(0.2, draws)[:10], state) for _ in range(20)]
    looks = [monitor.look(spread(CENTER, draws), coins(0.6, draws)[:10], state) for _ in range(20)]
    finding = next(f for f in looks if f is not None)
    assert quiet == [None] * 20 and finding.kind == "error" and "errors rose" in finding.text
    assert not any(monitor.look(spread(CENTER, draws), None, state) for _ in range(20)), "without labels it is quiet"


def test_the_alarm_goes_off_at_the_stated_threshold_and_the_detectors_start_afresh():
    """By hand: window after window of ones, one block each, so that every step is known."""
    monitor = Monitor(run_length=10, block=WINDOW)
    state = begun(monitor, None)
    bound = bounds(state)[0]
    capital, total, squares, steps = 1.0, 0.0, 0.0, 0
    while capital < 3 * 10 * 1:
        bet = min(max((total + 0.03) / (squares + 0.03**2 + 0.01), 0.0), 0.75 / bound)
        capital = max(capital, 1.0) * (1 + bet * (1 - bound))
        total, squares, steps = total + 1 - bound, squares + (1 - bound) ** 2, steps + 1
    for _ in range(3):
        looks = [monitor.look(torch.ones(WINDOW), None, state) for _ in range(steps)]
        assert looks[:-1] == [None] * (steps - 1) and looks[-1] is not None
        assert looks[-1].p_value == pytest.approx(1 / capital) and looks[-1].since == steps
        assert state["detectors"].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3


def test_more_observations_a_window_raise_the_threshold_in_proportion():
    seen = {}
    for block in (1, 4, 20):
        monitor = Monitor(run_length=7, block=block)
        state = begun(monitor, None)
        finding = None
        while finding is None:
            finding = monitor.look(torch.ones(WINDOW), None, state)
        seen[block] = 1 / finding.p_value
        assert seen[block] >= 3 * 7 * (WINDOW // block)


@pytest.mark.parametrize(
    ("capital", "value", "bet", "after"),
    [(1.0, 0.9, 1.0, 1.5), (0.2, 0.9, 1.0, 1.5), (4.0, 0.4, 2.0, 4.0), (2.0, 0.0, 2.0, 0.4), (8.0, 1.0, 0.5, 10.4)],
)
def test_one_step_of_the_capital_by_hand(capital, value, bet, after):
    assert e_cusum(capital, value, 0.4, bet) == pytest.approx(after)


@pytest.mark.parametrize(("total", "bet"), [(-1.0, 0.0), (0.0, 0.0), (0.1, 0.5), (100.0, 0.75 / 0.4)])
def test_a_bet_is_never_negative_and_never_risks_ruin(total, bet):
    assert bet_size(total, 0.2, 0.4) == pytest.approx(bet)
    assert e_cusum(1.0, 0.0, 0.4, bet_size(total, 0.2, 0.4)) >= 0.25 - 1e-12


# -- calibration


def test_bounds_are_the_mean_its_doubt_and_the_effect():
    reference = CENTER + 0.1 * torch.linspace(-1, 1, 200)
    doubt = 2 * reference.std().item() / math.sqrt(200)
    state = begun(Monitor(effect=0.02, harm=0.04), 0.25)
    expected = [CENTER + doubt + 0.02, 1 - CENTER + doubt + 0.02, 0.25 + 2 * math.sqrt(0.25 * 0.75 / 200) + 0.04]
    assert bounds(state) == pytest.approx(expected)
    certain, sure = Monitor(), Bag()
    certain.begin(torch.zeros(100), 1.0, sure)
    assert bounds(sure) == pytest.approx([0.03, 1.0, 1.0]), "a bound is never above 1"
    assert not any(certain.look(torch.zeros(WINDOW), torch.ones(WINDOW), sure) for _ in range(200))


@pytest.mark.parametrize("count", [0, 1, 49])
def test_a_reference_that_is_too_small_is_refused(count):
    with pytest.raises(InputError, match=f"{count} samples; at least 50"):
        Monitor().begin(torch.rand(count), None, Bag())
    Monitor().begin(torch.rand(50), None, Bag())


def test_state_that_was_kept_goes_on_as_if_it_had_not_stopped():
    monitor, draws = Monitor(run_length=500), torch.Generator().manual_seed(8)
    windows = [spread(0.4, draws) for _ in range(40)]
    straight, stopped = begun(monitor), begun(monitor)
    whole = [monitor.look(window, None, straight) for window in windows]
    parts = []
    for window in windows:
        stopped = Bag({name: stopped[name].clone() for name in stopped})
        parts.append(monitor.look(window, None, stopped))
    assert whole == parts and any(whole)


def test_entropy_is_nought_when_sure_and_one_when_all_classes_are_alike():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1000.0, -1000.0]])
    assert normalised_entropy(logits).tolist() == pytest.approx([1.0, 0.0, 0.5])
    log_p = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    expected = torch.distributions.Categorical(log_p.exp()).entropy() / math.log(5)
    assert torch.allclose(normalised_entropy(log_p), expected)


def test_settings_out_of_range_are_refused():
    for wrong in ({"run_length": 0}, {"block": 0}, {"effect": 0.0}, {"harm": -0.1}):
        with pytest.raises(SpecError):
            Monitor(**wrong)
