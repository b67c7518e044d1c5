"""Evidence: errors at most as often as stated, power when there is a gain, estimates and verdicts by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from homeostat.core.probe import Outputs
from homeostat.loop.estimate import Estimate, Normal, Same, Signs, Unknown
from homeostat.loop.trial import Trial, judge
from homeostat.loop.verify import Paired, effective_classes, guard

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


class Fixed(Estimate):
    """A gain of `offset + slope * disagreement`, so far below which its bound is."""

    def __init__(self, offset: float = 0.0, slope: float = 0.0, margin: float = 0.0):
        self.known, self.offset, self.slope, self.below = True, offset, slope, margin

    def gain(self, signs: Signs) -> float:
        return self.offset + self.slope * signs.disagreement

    def margin(self, signs: Signs) -> float:
        return self.below


SURE, UNKNOWN = Fixed(slope=0.5, margin=0.05), Unknown()


def trial(name: str = "A", wins: int = 0, losses: int = 0, ties: int = 0, disagreement: float = 0.0) -> Trial:
    made = Trial(name)
    made.evidence.add(torch.tensor([1] * wins + [0] * ties + [-1] * losses, dtype=torch.int))
    made.signs, made.served = [Signs(disagreement)] * 2, [Signs()] * 2
    return made


def verdict(trial: Trial, mine: Estimate = UNKNOWN, theirs: Estimate = Same(), lost: float = 0.0):
    return judge(trial, mine, theirs, wanted=WANTED, alpha=SHARE, lost=lambda: lost, anchor=0.25)


@pytest.mark.parametrize(
    ("made", "mine", "theirs", "lost", "word"),
    [
        (trial(wins=20), UNKNOWN, Same(), 0.0, "better"),
        (trial(wins=20, ties=2000), UNKNOWN, Same(), 0.0, "undecided"),  # sure, but too small to be worth it
        (trial(wins=3), UNKNOWN, Same(), 0.0, "undecided"),
        (trial(losses=20), UNKNOWN, Same(), 0.0, "undecided"),
        (trial(wins=20), UNKNOWN, Same(), 0.26, "refused"),
        (trial(wins=20), UNKNOWN, Same(), 0.25, "better"),
        (trial(), UNKNOWN, Same(), 0.0, "not shown"),
        (trial(disagreement=0.11), SURE, Same(), 0.0, "better"),  # 0.055, at least 0.005
        (trial(disagreement=0.09), SURE, Same(), 0.0, "not shown"),  # 0.045, at least -0.005
        (trial(disagreement=0.03), Fixed(slope=0.5), Same(), 0.0, "not shown"),  # for sure, but not worth a change
        (trial(disagreement=0.11), SURE, Fixed(margin=0.01), 0.0, "not shown"),  # both margins count
        (trial(disagreement=0.2), SURE, Fixed(offset=0.09), 0.0, "not shown"),  # what is served gains as well
        (trial(disagreement=0.2), SURE, UNKNOWN, 0.0, "not shown"),
        (trial(wins=2, disagreement=0.2), SURE, Same(), 0.0, "better"),  # labels agree with a sure estimate
        (trial(losses=1, disagreement=0.2), SURE, Same(), 0.0, "undecided"),  # and here they do not
        (trial("source"), Same(), Fixed(offset=-0.01, margin=0.3), 0.0, "better"),
        (trial("source"), Same(), Fixed(offset=0.01, margin=0.3), 0.0, "not shown"),
        (trial("source"), Same(), UNKNOWN, 0.0, "not shown"),
        (trial("B"), Same(), Fixed(offset=-0.01, margin=0.3), 0.0, "not shown"),
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


def test_a_trial_gathers_signs_and_stops_at_a_collapse():
    made, normal = Trial("A"), Normal(1.0, torch.full((4,), 0.25).double())
    frozen = Outputs(one_hot(0, 1, 2, 3), None, torch.arange(4))
    served, out = one_hot(0, 0, 0, 3), one_hot(0, 1, 3, 3)
    made.see(out, served, frozen, normal, 0.5)
    assert not made.refused
    assert made.signs[0].disagreement == 0.25 and made.served[0].disagreement == 0.5
    made.see(one_hot(0, 0, 0, 0), served, frozen, normal, 0.5)
    assert made.refused and len(made.signs) == 1
    again = Trial.from_dict(json.loads(json.dumps(made.as_dict())))
    assert again == made


def test_a_candidate_is_too_slow_when_two_windows_running_are():
    made = Trial("A")
    for ms in (50.0, 5.0, 50.0):
        made.hurry(ms, 20.0)
    assert not made.refused
    made.hurry(30.0, 20.0)
    assert made.refused == "a window takes it 30.0 ms, and 20 ms are allowed"
    made = Trial("A")
    made.hurry(1e9, None)
    made.hurry(1e9, None)
    assert not made.refused and made.ms == 0.0, "without a limit the clock leaves no trace"
