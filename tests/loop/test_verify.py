"""Evidence: errors at most as often as stated, power when there is a gain, estimates and verdicts by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.loop.trial import Trial, judge
from homeostat.loop.verify import (
    Estimate,
    Paired,
    Signs,
    confidence,
    effective_classes,
    fit_estimate,
    guard,
    mean_signs,
    share_right,
)  # fmt: skip

STREAMS, LABELS, ALPHA = 2000, 300, 0.05
LIMIT = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)


def capitals(differences: Tensor) -> Tensor:
    """Capital of many streams after every label, `[streams, labels]`, written once more without `Paired`."""
    d = differences.double()
    before, squares = d.cumsum(1) - d, (d * d).cumsum(1) - d * d
    bets = ((before + 0.1) / (squares + 1)).clamp(0, 0.75)
    return (1 + bets * d).cumprod(1)


def drawn(win: float, lose: float, seed: int = 0) -> Tensor:
    u = torch.rand(STREAMS, LABELS, generator=torch.Generator().manual_seed(seed))
    return (u < win).int() - (u > 1 - lose).int()


def runs_of_luck(seed: int = 0) -> Tensor:
    """No gain on average given the past, but ties for long stretches and then coins: what a gambler would wait for."""
    coins = drawn(0.5, 0.5, seed)
    busy = torch.rand(STREAMS, LABELS // 10, generator=torch.Generator().manual_seed(seed + 1)) < 0.3
    return coins * busy.repeat_interleave(10, 1).int()


def worse_when_ahead(seed: int = 0) -> Tensor:
    """The chance of a win is one half while behind and less once ahead: still no better, and it depends on the past."""
    u = torch.rand(STREAMS, LABELS, generator=torch.Generator().manual_seed(seed))
    out, total = torch.zeros(STREAMS, LABELS, dtype=torch.int32), torch.zeros(STREAMS)
    for t in range(LABELS):
        out[:, t] = torch.where(u[:, t] < torch.where(total > 10, 0.45, 0.5), 1, -1)
        total += out[:, t]
    return out


# -- with labels


NULLS = {
    "coins": drawn(0.5, 0.5), "few ties": drawn(0.35, 0.35), "many ties": drawn(0.1, 0.1), "rare": drawn(0.02, 0.02),
    "worse": drawn(0.1, 0.2), "runs of luck": runs_of_luck(), "worse when ahead": worse_when_ahead(),
}  # fmt: skip


@pytest.mark.parametrize("name", NULLS)
def test_a_candidate_that_is_no_better_is_ever_shown_better_in_at_most_alpha_of_streams(name):
    ever = (capitals(NULLS[name]).amax(1) >= 1 / ALPHA).double().mean().item()
    assert ever <= LIMIT, ever


@pytest.mark.parametrize("name", ["coins", "many ties", "worse when ahead"])
def test_the_accumulated_capital_is_that_of_the_formula_however_labels_are_split(name):
    expected = capitals(NULLS[name])
    for stream, row in enumerate(NULLS[name][:200]):
        paired = Paired()
        for part in row.split([1, 0, 49, 50, 200]):
            paired.add(part)
            assert paired.count == 0 or math.isclose(
                paired.capital, float(expected[stream, paired.count - 1]), rel_tol=1e-9
            )
        assert paired.mean == pytest.approx(row.double().mean().item())


def test_the_first_bets_by_hand():
    paired = Paired()
    paired.add(torch.tensor([1, 1, 0, -1]))
    second, fourth = 1.1 / 2.0, 2.1 / 3.0
    assert paired.capital == pytest.approx(1.1 * (1 + second) * (1 - fourth))
    assert (paired.count, paired.total, paired.squares) == (4, 1.0, 3.0) and paired.mean == 0.25
    assert Paired().mean == 0.0 and Paired().capital == 1.0


@pytest.mark.parametrize(("win", "lose", "labels", "power"), [(0.3, 0.1, 300, 0.95), (0.4, 0.0, 60, 0.99)])
def test_a_real_gain_is_shown(win, lose, labels, power):
    reached = (capitals(drawn(win, lose, 9))[:, :labels].amax(1) >= 1 / ALPHA).double().mean().item()
    assert reached >= power, reached


@pytest.mark.parametrize(("win", "lose"), [(0.5, 0.5), (0.1, 0.1)])
def test_evidence_watched_without_end_speaks_falsely_after_as_many_windows_as_its_threshold(win, lose):
    threshold, windows, spoke = 10, 4000, 0
    for part in drawn(win, lose, 3).flatten()[: 10 * windows].split(10 * 400):
        watched = Paired()
        for window in part.split(10):
            watched.watch(window)
            if watched.capital >= threshold:
                watched, spoke = Paired(), spoke + 1
    assert spoke <= windows / threshold + 3 * math.sqrt(windows / threshold)


@pytest.mark.parametrize("good", [0, 20, 500])
def test_good_times_do_not_delay_the_finding_of_bad_ones(good):
    draws = drawn(0.35, 0.05, 4).flatten()
    watched = Paired()
    for window in -draws[: 10 * good].view(-1, 10):
        watched.watch(window)
    late = 0
    while watched.capital < 500:
        watched.watch(draws[10_000 + 10 * late :][:10])
        late += 1
    assert late <= 8


def test_evidence_stays_a_number_that_json_can_hold():
    paired = Paired()
    paired.add(torch.ones(5000, dtype=torch.int))
    assert math.isfinite(paired.capital) and paired.capital > 1e200
    json.dumps(Trial("A", paired).as_dict(), allow_nan=False)
    paired.add(-torch.ones(5000, dtype=torch.int))
    assert 0 <= paired.capital < 1


# -- without labels


def signs_of(count: int, seed: int) -> list[Signs]:
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [Signs(d, r - 0.3) for d, r in x.tolist()]


def ridge_line(signs: list[Signs], gains: list[float], count: int) -> np.ndarray:
    """The penalised line as plain least squares over added rows."""
    penalty = np.sqrt(np.diag([1e-6, 1e-3, 1e-3]) * count)
    x = np.array([[1.0, s.disagreement, s.rise] for s in signs])
    return np.linalg.lstsq(np.vstack([x, penalty]), np.concatenate([gains, np.zeros(3)]), rcond=None)[0]


@pytest.mark.parametrize("coefficients", [(0.02, 0.5, -0.3), (-0.1, 0.9, 0.4), (0.05, 0.0, 0.0)])
def test_an_estimate_recovers_a_line_without_noise(coefficients):
    signs = signs_of(40, 1)
    offset, slope, rise = coefficients
    gains = [offset + slope * s.disagreement + rise * s.rise for s in signs]
    found = fit_estimate(signs, gains)
    assert (found.offset, found.disagreement, found.rise) == pytest.approx(coefficients, abs=0.02)
    assert all(abs(found.gain(s) - g) < 0.01 for s, g in zip(signs, gains, strict=True))
    assert 0 <= found.margin < 0.02, "no noise, no margin but that of the penalty"


def test_a_constant_gain_is_found_exactly_and_has_no_margin():
    found = fit_estimate([Signs()] * 6, [0.125] * 6)
    assert found.gain(Signs()) == pytest.approx(0.125, abs=1e-6) and found.margin < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_the_line_and_its_margin_are_those_of_brute_force(seed):
    signs = signs_of(7, seed)
    gains = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(0.1).tolist()
    found = fit_estimate(signs, gains)
    assert (found.offset, found.disagreement, found.rise) == pytest.approx(ridge_line(signs, gains, 7).tolist())
    over = []
    for left in range(7):
        rest = [i for i in range(7) if i != left]
        line = ridge_line([signs[i] for i in rest], [gains[i] for i in rest], 7)
        over.append(line @ [1.0, signs[left].disagreement, signs[left].rise] - gains[left])
    assert found.margin == pytest.approx(max(0.0, *over)) and found.margin > 0.01


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_shifts_are_refused(count):
    with pytest.raises(InputError, match=f"at least 4 simulated shifts; got {count}"):
        fit_estimate(signs_of(count, 0), [0.0] * count)


def test_signs_or_gains_that_are_not_numbers_are_refused():
    nan = float("nan")
    with pytest.raises(NonFiniteError):
        fit_estimate([*signs_of(5, 0), Signs(0.1, nan)], [0.0] * 6)
    with pytest.raises(NonFiniteError):
        fit_estimate(signs_of(5, 0), [0.0] * 4 + [nan])


def test_signs_by_hand():
    frozen = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, -9.0], [math.log(3), 0.0]])
    out = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0], [-9.0, 9.0], [math.log(3), 0.0]])
    found = Signs.of(out, frozen)
    assert found.disagreement == 0.5 and found.rise == pytest.approx(0.125)
    assert confidence(frozen[:2]) == pytest.approx(0.5) and Signs.of(out, out) == Signs(0.0, 0.0)
    assert share_right(out, torch.tensor([1, 0, 0, 1])) == 0.5
    assert mean_signs([Signs(0.2, 0.4), Signs(0.4, -0.2)]) == Signs((0.2 + 0.4) / 2, (0.4 - 0.2) / 2)
    assert mean_signs([]) == Signs()


# -- guards


def one_hot(*classes: int) -> Tensor:
    return 5 * torch.nn.functional.one_hot(torch.tensor(classes), 4).float()


def test_effective_classes_count_equal_shares_and_fall_with_unequal_ones():
    assert effective_classes(one_hot(0, 1, 2, 3)) == pytest.approx(4)
    assert effective_classes(one_hot(2, 2, 2)) == pytest.approx(1)
    shares = [0.75, 0.25]
    assert effective_classes(one_hot(0, 0, 0, 1)) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_a_collapse_to_few_classes_is_found_against_what_the_frozen_model_predicts():
    varied, single, pair = one_hot(0, 1, 2, 3), one_hot(1, 1, 1, 1), one_hot(0, 0, 1, 1)
    assert guard(single, varied, 0.5) == "it predicts only 1.0 classes where the frozen model predicts 4.0"
    assert guard(pair, varied, 0.45) is None and guard(pair, varied, 0.55) is not None
    assert guard(single, single, 0.5) is None, "a stream of one class is no collapse"
    assert guard(varied, single, 1.0) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_numbers_are_found(value):
    spoilt = one_hot(0, 1, 2, 3)
    spoilt[2, 1] = value
    assert guard(spoilt, one_hot(0, 1, 2, 3), 0.0) == "its outputs hold NaN or infinity"


# -- verdicts


WANTED, SHARE = 0.02, 0.025
SURE, UNKNOWN = Estimate(0.0, 0.5, 0.0, 0.05), Estimate(margin=math.inf)


def trial(name: str = "A", wins: int = 0, losses: int = 0, ties: int = 0, disagreement: float = 0.0) -> Trial:
    made = Trial(name)
    made.evidence.add(torch.tensor([1] * wins + [0] * ties + [-1] * losses, dtype=torch.int))
    made.signs, made.served = [Signs(disagreement)] * 2, [Signs()] * 2
    return made


def verdict(trial: Trial, mine: Estimate = UNKNOWN, theirs: Estimate = Estimate(), lost: float = 0.0):
    return judge(trial, mine, theirs, wanted=WANTED, alpha=SHARE, lost=lost, anchor=0.25)


@pytest.mark.parametrize(
    ("made", "mine", "theirs", "lost", "word"),
    [
        (trial(wins=20), UNKNOWN, Estimate(), 0.0, "better"),
        (trial(wins=20, ties=2000), UNKNOWN, Estimate(), 0.0, "undecided"),  # sure, but too small to be worth it
        (trial(wins=3), UNKNOWN, Estimate(), 0.0, "undecided"),
        (trial(losses=20), UNKNOWN, Estimate(), 0.0, "undecided"),
        (trial(wins=20), UNKNOWN, Estimate(), 0.26, "refused"),
        (trial(wins=20), UNKNOWN, Estimate(), 0.25, "better"),
        (trial(), UNKNOWN, Estimate(), 0.0, "not shown"),
        (trial(disagreement=0.2), SURE, Estimate(), 0.0, "better"),  # 0.10 - 0.05 >= 0.02
        (trial(disagreement=0.13), SURE, Estimate(), 0.0, "not shown"),  # 0.065 - 0.05 < 0.02
        (trial(disagreement=0.2), SURE, Estimate(margin=0.04), 0.0, "not shown"),  # both margins count
        (trial(disagreement=0.2), SURE, Estimate(offset=0.09), 0.0, "not shown"),  # what is served gains as well
        (trial(disagreement=0.2), SURE, UNKNOWN, 0.0, "not shown"),
        (trial(wins=2, disagreement=0.2), SURE, Estimate(), 0.0, "better"),  # labels agree with a sure estimate
        (trial(losses=1, disagreement=0.2), SURE, Estimate(), 0.0, "undecided"),  # and here they do not
        (trial("source"), Estimate(), Estimate(offset=-0.01, margin=0.3), 0.0, "better"),
        (trial("source"), Estimate(), Estimate(offset=0.01, margin=0.3), 0.0, "not shown"),
        (trial("source"), Estimate(), UNKNOWN, 0.0, "not shown"),
        (trial("B"), Estimate(), Estimate(offset=-0.01, margin=0.3), 0.0, "not shown"),
    ],
)
def test_a_verdict_follows_from_the_evidence(made, mine, theirs, lost, word):
    found = verdict(made, mine, theirs, lost)
    assert found.word == word, found.why
    assert found.name == made.name and found.why
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_guard_that_spoke_refuses_whatever_the_evidence():
    made = trial(wins=50)
    made.refused = "its outputs hold NaN or infinity"
    found = verdict(made, SURE)
    assert (found.word, found.why, found.gain) == ("refused", made.refused, None)


def test_verdicts_say_the_gain_on_labels_where_there_are_any_and_the_estimate_where_not():
    seen = verdict(trial(wins=20, ties=20), SURE)
    assert (seen.gain, seen.labels, seen.low) == (0.5, 40, pytest.approx(-0.05))
    assert "+50.0% on 40 labels" in seen.why
    told = verdict(trial(disagreement=0.2), SURE)
    assert (told.gain, told.labels, told.low) == (pytest.approx(0.1), 0, pytest.approx(0.05))
    assert told.why == "estimated +10.0% without labels, at least +5.0%"
    blind = verdict(trial())
    assert (blind.gain, blind.low) == (None, None) and blind.why == "no calibrated estimate"


def test_a_trial_counts_known_labels_alone_and_stops_at_a_collapse():
    made = Trial("A")
    frozen, served, out = one_hot(0, 1, 2, 3), one_hot(0, 0, 0, 3), one_hot(0, 1, 3, 3)
    labels = torch.tensor([0, 1, 2, -100])
    made.see(out, served, frozen, labels, labels != -100, 0.5)
    assert (made.evidence.count, made.evidence.total) == (3, 1.0) and not made.refused
    assert made.signs[0].disagreement == 0.25 and made.served[0].disagreement == 0.5
    made.see(one_hot(0, 0, 0, 0), served, frozen, labels, labels != -100, 0.5)
    assert made.refused and made.evidence.count == 3 and len(made.signs) == 1
    again = Trial.from_dict(json.loads(json.dumps(made.as_dict())))
    assert again == made
