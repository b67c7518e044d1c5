"""The monitor: few false alarms however long one looks, real changes found soon, small ones left alone."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs
from homeostat.loop.monitor import HISTORY, SIGNALS, STAKES, Monitor, shiryaev_roberts
from homeostat.loop.scores import (
    mid_ranks,
)
from homeostat.loop.signals import layout_of
from homeostat.probe.intervals import wilson

WINDOW = 40


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(
    count: int,
    seed: int,
    *,
    alike: int = 1,
    sure: float = 2.0,
    shares: tuple[float, ...] = (1, 1, 1, 1),
    moved: float = 0.0,
) -> Outputs:
    """Outputs of a network on four classes; runs of `alike` samples have one class and one difficulty."""
    g, runs = draws(seed), count // alike + 2
    low = int(torch.randint(alike, (1,), generator=g))
    y = torch.multinomial(torch.tensor(shares, dtype=torch.float), runs, True, generator=g)
    hard = sure * 2 * torch.rand(runs, generator=g)
    y, hard = (t.repeat_interleave(alike)[low : low + count] for t in (y, hard))
    z = (0.3 if alike == 1 else 0.05) * torch.randn(count, 4, generator=g)
    z[torch.arange(count), y] += hard
    features = torch.randn(count, 12, generator=g) * torch.linspace(2, 0.2, 12)
    features[:, -1] += moved
    return Outputs(z, None, torch.arange(count), features=features)


def begun(monitor: Monitor, count: int = 400, seed: int = 0, error: float | None = 0.2, **how) -> Bag:
    state = Bag()
    monitor.begin(stream(count, seed, **how), state, error)
    return state


def kept(state: Bag, signal: str, name: str) -> Tensor:
    """What the monitor keeps of one signal: its mean before, or its detectors' bounds, weights or capitals."""
    widths = zip(SIGNALS, state["monitor.widths"].tolist(), strict=True)
    layout = layout_of(tuple((signal, width) for signal, width in widths if width))
    return state[f"monitor.{name}"][(layout.columns if name == "center" else layout.detectors)[signal]]


def errors(detectors: int) -> float:
    """Standard errors that cover two of one detector where there are several."""
    return -float(ndtri(ndtr(-2.0) / detectors))


def windows(seen: Outputs, size: int = WINDOW) -> list[Outputs]:
    return [seen[low : low + size] for low in range(0, len(seen) - size + 1, size)]


def coins(mean: float, count: int, seed: int) -> Tensor:
    return (torch.rand(count, generator=draws(seed)) < mean).long()


def first_alarms(values: Tensor, bound: float, run_length: int) -> Tensor:
    """First window, by simulation, whose average of two directions passes; `[windows, 2, simulations, observed]`."""
    capital = torch.zeros(2, values.shape[2], len(STAKES), dtype=torch.float64)
    first = torch.full((values.shape[2],), len(values), dtype=torch.float64)
    for t, observed in enumerate(values, start=1):
        capital = shiryaev_roberts(capital, observed, torch.full(capital.shape[:2], bound, dtype=torch.float64))
        first[(capital.mean((0, 2)) >= run_length) & (first == len(values))] = t
    return first


def at_most(first: Tensor) -> float:
    """Upper 99.5 % bound of the average run length (cut at the length of the simulation, so it can only be too low)."""
    return float(first.mean() + 2.6 * first.std() / math.sqrt(len(first)))


# -- false alarms: the stated average run length


@pytest.mark.parametrize(("observations", "bound"), [(1, 0.55), (20, 0.55), (20, 0.1), (4, 0.9)])
def test_the_average_run_length_is_kept_where_every_mean_is_the_bound_itself(observations, bound):
    coin = (torch.rand(500, 2, 300, observations, generator=draws(1)) < bound).double()
    first = first_alarms(coin, bound, 60)
    assert at_most(first) >= 60
    assert first.median() < 500, "else nothing was tested"


def test_the_capital_grows_by_no_more_than_one_a_window_under_the_null_hypothesis():
    coin = (torch.rand(20, 2, 4000, 3, generator=draws(2)) < 0.3).double()
    capital = torch.zeros(2, 4000, len(STAKES), dtype=torch.float64)
    for t, observed in enumerate(coin, start=1):
        capital = shiryaev_roberts(capital, observed, torch.full((2, 4000), 0.3, dtype=torch.float64))
        each = capital.mean((0, 2))
        assert float(each.mean()) <= t + 4 * float(each.std()) / math.sqrt(4000)


def test_runs_of_equal_samples_keep_it_in_blocks_and_break_it_one_by_one():
    runs = (torch.rand(400, 2, 200, 4, generator=draws(3)) < 0.55).double().repeat_interleave(10, -1)
    blocks = runs.unflatten(-1, (4, 10)).mean(-1)
    assert at_most(first_alarms(blocks, 0.55, 60)) >= 60
    assert at_most(first_alarms(runs, 0.55, 60)) < 60, "or blocks would not be needed"


@pytest.mark.parametrize("size", [50, 200, 1000])
def test_it_is_kept_against_references_that_are_themselves_samples(size):
    """Ranks among another reference for each simulation, in windows like those of the reference's own distribution."""
    bound = float(kept(begun(Monitor(effect=1e-9), size), "entropy", "bounds")[0])
    assert bound == pytest.approx(0.5 + errors(3) / math.sqrt(12 * size))
    g = draws(size)
    known = torch.rand(150, size, generator=g).sort(-1).values
    ranks = torch.stack([mid_ranks(known, torch.rand(150, 20, generator=g)) for _ in range(300)])
    first = first_alarms(torch.stack([ranks, 1 - ranks], 1), bound, 60)
    assert at_most(first) >= 60


def counted(monitor: Monitor, references: int, size: int, looks: int, window: int = WINDOW, alike: int = 1) -> int:
    alarms = 0
    for seed in range(references):
        state = begun(monitor, size, seed)
        for t, seen in enumerate(windows(stream(looks * window, 100 + seed, alike=alike), window)):
            alarms += monitor.look(seen, coins(0.2, 5, 1000 * seed + t), state) is not None
    return alarms


@pytest.mark.parametrize("size", [50, 200, 1000])
def test_all_signals_together_keep_it_on_independent_streams(size):
    assert counted(Monitor(run_length=10), 3, size, 40) <= 3 * 40 / 10


@pytest.mark.parametrize(("block", "alike"), [(None, 4), (None, 10), (16, 8)])
def test_all_signals_together_keep_it_on_streams_of_runs(block, alike):
    assert counted(Monitor(run_length=10, block=block), 3, 300, 40, 80, alike) <= 3 * 40 / 10


def test_without_blocks_runs_would_raise_many_false_alarms():
    assert counted(Monitor(run_length=10, block=1), 2, 300, 40, 80, 10) > 2 * 2 * 40 / 10


def test_a_change_smaller_than_the_effect_raises_no_alarm_and_is_seen_by_a_keener_monitor():
    signals = ("entropy", "confidence")
    later = windows(stream(100 * WINDOW, 5, sure=1.8))
    blunt, keen = Monitor(effect=0.15, share=0.15, signals=signals), Monitor(effect=0.01, share=0.01, signals=signals)
    states = begun(blunt, 1000), begun(keen, 1000)
    assert not any(blunt.look(seen, None, states[0]) for seen in later)
    assert any(keen.look(seen, None, states[1]) for seen in later)


def test_a_stream_without_labels_gathers_no_evidence_about_errors():
    monitor = Monitor(run_length=10, signals=("error",))
    state = begun(monitor)
    assert not any(monitor.look(seen, None, state) for seen in windows(stream(50 * WINDOW, 6)))
    assert monitor.evidence(state)["error"]["capital"] == 0.0


# -- real changes


@pytest.mark.parametrize(
    ("kind", "how", "wrong", "within"),
    [
        ("uncertain", {"sure": 0.7}, 0.2, 5),
        ("certain", {"sure": 5.0}, 0.2, 5),
        ("features", {"moved": 1.0}, 0.2, 3),
        ("classes", {"shares": (5, 1, 1, 1)}, 0.2, 3),
        ("error", {}, 0.7, 8),
    ],
)
def test_a_change_is_found_within_so_many_windows_and_named(kind, how, wrong, within):
    monitor = Monitor(run_length=500)
    for seed in range(3):
        state = begun(monitor, seed=seed)
        for t, seen in enumerate(windows(stream(12 * WINDOW, 10 + seed))):
            assert monitor.look(seen, coins(0.2, 10, t), state) is None
        for late, seen in enumerate(windows(stream(within * WINDOW, 20 + seed, **how)), start=1):
            if (finding := monitor.look(seen, coins(wrong, 10, 50 + late + 10 * seed), state)) is not None:
                break
        else:
            pytest.fail(f"seed {seed}: nothing found in {within} windows")
        assert finding.effect is not None and finding.since is not None and finding.p_value is not None
        assert finding.kind == kind and finding.detected and finding.effect > 0.05
        assert abs(finding.since - late) <= 1 and 0 < finding.p_value <= 1 / 500
        estimate, low, high = monitor.since(state, kind)
        assert estimate == finding.since and 1 <= low <= estimate <= high <= 12 + late
        if kind == "classes":
            assert finding.subjects[0] == 0 and "class 0 in 6" in finding.text and "was 2" in finding.text
        words = {"uncertain": "less certain", "certain": "more certain", "features": "features are unlike"}
        assert words.get(kind, "") in finding.text
        assert kind != "error" or "labels disagree (was 20%)" in finding.text


def test_few_samples_far_out_are_found_by_the_tenth_that_is_least_certain():
    """A fifth of the samples is as uncertain as can be: the mean rank moves by a tenth, the tail's share doubles."""
    monitor = Monitor(signals=("entropy",), effect=0.15, share=0.05)
    state = begun(monitor, 1000)
    seen = stream(10 * WINDOW, 30)
    seen.logits[::5] = 0.0
    findings = [f for window in windows(seen) if (f := monitor.look(window, None, state)) is not None]
    assert findings and findings[0].kind == "uncertain" and "as high an entropy as 10% had before" in findings[0].text


def test_the_time_of_a_change_is_found_far_back_and_its_interval_covers_it():
    covered = 0
    for seed in range(6):
        monitor = Monitor(run_length=10**12, signals=("entropy",))  # an alarm comes late, when there is much to go by
        state = begun(monitor, seed=seed)
        for seen in windows(stream(10 * WINDOW, 40 + seed)) + windows(stream(6 * WINDOW, 60 + seed, sure=1.4)):
            monitor.look(seen, None, state)
        estimate, low, high = monitor.since(state, "uncertain")
        covered += low <= 6 <= high
        assert abs(estimate - 6) <= 4 and high - low <= 12
    assert covered >= 5


def test_an_alarm_starts_the_detectors_afresh_and_keeps_what_was_seen():
    monitor = Monitor(run_length=50)
    state = begun(monitor)
    later = windows(stream(12 * WINDOW, 70, sure=0.7))
    looks = [monitor.look(seen, None, state) for seen in later]
    alarms = [t for t, finding in enumerate(looks) if finding is not None]
    assert len(alarms) >= 2, "the shift stays, and so do its alarms"
    assert looks[alarms[-1]].since == alarms[-1] + 1, "all windows since the reference are shifted"


# -- by hand


def test_one_window_of_the_capital_by_hand():
    before = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    after = shiryaev_roberts(
        before, torch.tensor([[1.0, 0.25]]).double(), torch.tensor([0.5]).double(), torch.tensor([0.5, 0.2]).double()
    )
    assert after[0].tolist() == pytest.approx([1 * 1.5 * 0.75, 4 * 1.2 * 0.9])
    half = torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(shiryaev_roberts(before, torch.zeros(1, 0).double(), half, STAKES[:2]), before)
    dead = shiryaev_roberts(before, torch.ones(1, 4).double(), torch.tensor([math.inf]).double(), STAKES[:2])
    assert bool((dead < before + 1).all()), "an infinite bound only loses"


def test_the_alarm_goes_off_when_the_average_capital_reaches_the_run_length():
    monitor = Monitor(run_length=300)
    state = begun(monitor)
    for seen in windows(stream(40 * WINDOW, 80, sure=1.4)):
        names = [name for name in monitor.evidence(state) if name != "all"]
        before = Bag({name: state[name].clone() for name in state})
        finding = monitor.look(seen, None, state)
        if finding is not None:
            break
        told = monitor.evidence(state)
        assert told["all"]["capital"] < 300
        assert told["all"]["capital"] == pytest.approx(sum(told[n]["capital"] for n in names) / len(names), rel=1e-3)
    patient = Monitor(run_length=10**9)
    patient.look(seen, None, before)
    assert patient.evidence(before)["all"]["capital"] == pytest.approx(1 / finding.p_value, rel=1e-3)
    assert 1 / finding.p_value >= 300 and monitor.evidence(state)["all"]["capital"] >= 300


def test_the_evidence_says_capital_threshold_and_bound_and_is_ready_for_json():
    monitor = Monitor(run_length=200, effect=0.02, harm=0.04)
    state = begun(monitor, 100)
    monitor.look(stream(WINDOW, 1), None, state)
    told = json.loads(json.dumps(monitor.evidence(state)))
    assert list(told) == ["entropy", "confidence", "features", "classes", "error", "all"]
    assert {told[name]["threshold"] for name in list(told)[:-1]} == {1000} and told["all"]["threshold"] == 200
    assert told["entropy"]["bound"] == pytest.approx(0.5 + errors(3) / math.sqrt(12 * 100) + 0.02, abs=1e-4)
    assert told["features"]["bound"] == pytest.approx(0.5 + errors(18) / math.sqrt(12 * 50) + 0.02, abs=1e-4)
    assert told["error"]["bound"] == pytest.approx(wilson(20, 100, 0.9545).high + 0.04, abs=1e-4)
    assert len(json.dumps(told)) < 500


# -- calibration and state


def test_bounds_that_no_share_can_pass_leave_the_average():
    monitor = Monitor(signals=("classes",))
    state = begun(monitor, shares=(1, 1, 1, 0))
    alive = kept(state, "classes", "weights") > 0
    gone = state["monitor.sensor.classes"].tolist().index(3)
    assert alive.tolist() == [True] * 4 + [place != gone for place in range(4)], "an absent class cannot get rarer"
    assert not any(monitor.look(seen, None, state) for seen in windows(stream(60 * WINDOW, 90, shares=(1, 1, 1, 0))))
    always = Monitor(run_length=5, signals=("error",))
    state = begun(always, error=1.0)
    assert not any(always.look(stream(WINDOW, 1), torch.ones(9), state) for _ in range(40))


def test_the_error_before_is_taken_from_labels_where_it_is_not_given():
    before = stream(200, 1)
    y = before.logits.argmax(-1)
    y[:30] = (y[:30] + 1) % 4
    y[150:] = -100
    labelled = Outputs(before.logits, y, before.id)
    state = Bag()
    Monitor().begin(labelled, state)
    assert float(kept(state, "error", "center")) == pytest.approx(30 / 150)
    for unknown in (None, torch.full_like(y, -100)):
        absent = Outputs(before.logits, unknown, before.id)
        Monitor().begin(absent, state)
        assert "error" not in Monitor().evidence(state), "what was not measured cannot rise"
        assert Monitor().look(stream(WINDOW, 2), torch.ones(WINDOW), state) is None


def test_a_reference_in_order_whose_neighbours_are_alike_widens_the_bounds():
    runs, mixed = stream(400, 3, alike=10), stream(400, 3)
    bounds = []
    for before, ordered in ((runs, True), (runs, False), (mixed, True)):
        state = Bag()
        Monitor().begin(before, state, ordered=ordered)
        bounds.append(float(kept(state, "entropy", "bounds")[0]) - 0.53)
    assert bounds[0] > 2 * bounds[1] and bounds[2] < 1.5 * bounds[1]


def test_a_new_beginning_forgets_the_windows_and_remembers_how_alike_neighbours_are():
    monitor = Monitor()
    state = begun(monitor)
    for seen in windows(stream(20 * WINDOW, 4, alike=8)):
        monitor.look(seen, None, state)
    products = state["monitor.alike"].clone()
    monitor.begin(stream(100, 5), state, 0.2)
    assert len(state["monitor.history"]) == 0 and torch.equal(state["monitor.alike"], products)
    assert set(state) == {name for name in state if name.startswith("monitor.")}


def test_windows_without_features_leave_what_is_known_of_features_alone():
    monitor, bare = Monitor(), stream(WINDOW, 6)
    state = begun(monitor)
    monitor.look(stream(WINDOW, 7), None, state)
    before = kept(state, "features", "capital").clone()
    monitor.look(Outputs(bare.logits, None, bare.id), None, state)
    assert torch.equal(kept(state, "features", "capital"), before)
    monitor.look(stream(WINDOW, 7), None, state)
    assert not torch.equal(kept(state, "features", "capital"), before)


def test_state_that_was_kept_goes_on_as_if_it_had_not_stopped():
    monitor = Monitor(run_length=100)
    seen = windows(stream(12 * WINDOW, 8)) + windows(stream(12 * WINDOW, 9, sure=1.2))
    straight, stopped = begun(monitor), begun(monitor)
    whole = [monitor.look(window, None, straight) for window in seen]
    parts = []
    for window in seen:
        stopped = Bag({name: stopped[name].clone() for name in stopped})
        parts.append(Monitor(run_length=100).look(window, None, stopped))
    assert whole == parts and any(whole)


def test_the_state_stays_small_for_a_large_reference_and_wide_features():
    g = draws(11)
    logits, features = torch.randn(10_000, 40, generator=g), torch.randn(10_000, 512, generator=g)
    before = Outputs(logits, None, torch.arange(10_000), features=features)
    monitor, state = Monitor(), Bag()
    monitor.begin(before, state, 0.1)
    state["monitor.history"] = torch.ones(HISTORY, state["monitor.history"].shape[1])
    for low in range(0, 300, 100):
        monitor.look(before[low : low + 100], None, state)
    assert len(state["monitor.history"]) == HISTORY and state["monitor.history"][-4:, 0].tolist() == [1, 100, 100, 100]
    assert sum(state[name].numel() * state[name].element_size() for name in state) < 150_000


@pytest.mark.parametrize("count", [0, 1, 49])
def test_a_reference_that_is_too_small_is_refused(count):
    with pytest.raises(InputError, match=f"{count} samples; at least 50"):
        Monitor().begin(stream(60, 1)[:count], Bag())
    Monitor().begin(stream(50, 1), Bag())


def test_what_does_not_fit_is_refused():
    monitor = Monitor()
    state = begun(monitor)
    seen = stream(WINDOW, 1)
    with pytest.raises(InputError, match="begun with 4 classes; these outputs have 3"):
        monitor.look(Outputs(seen.logits[:, :3], None, seen.id), None, state)
    with pytest.raises(InputError, match="prepared for 12 features; these data have 11"):
        monitor.look(Outputs(seen.logits, None, seen.id, features=seen.features[:, 1:]), None, state)
    with pytest.raises(NonFiniteError, match="1 samples hold NaN"):
        seen.logits[3, 1] = math.nan
        monitor.look(seen, None, state)
    with pytest.raises(InputError, match="nothing to say about 'novel'"):
        monitor.since(state, "novel")
    for wrong in (
        {"run_length": 0}, {"block": 0}, {"effect": 0.0}, {"harm": -0.1}, {"share": 0.0}, {"signals": ()},
        {"signals": ("entropy", "entropy")}, {"signals": ("entropie",)},
    ):  # fmt: skip
        with pytest.raises(SpecError):
            Monitor(**wrong)


@pytest.mark.parametrize("alike", [1, 8])
def test_signals_watched_together_have_the_capital_that_each_has_alone(alike):
    seen = windows(stream(15 * WINDOW, 41, alike=alike))
    wrong = [coins(0.25, number % 3, 50 + number) for number in range(len(seen))]
    whole = begun(Monitor())
    for window, labels in zip(seen, wrong, strict=True):
        Monitor().look(window, labels, whole)
    for signal in SIGNALS[:-1]:  # the error's blocks are as long as the longest of the others
        alone = Monitor(signals=(signal,))
        state = begun(alone)
        for window, labels in zip(seen, wrong, strict=True):
            alone.look(window, labels, state)
        assert torch.equal(kept(state, signal, "capital"), kept(whole, signal, "capital")), signal
        assert float(kept(whole, signal, "capital").sum()) > 0
