"""The kind of shift: what is named on shifts that were not simulated, how often none is, and what is said."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, outputs
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.data import digits
from homeostat.fit import Fit, Recipe
from homeostat.nn import MLP, SGD
from homeostat.probe import KINDS, ShiftKind
from homeostat.shift import CorrelatedOrder, LabelShift, Rotate

PROBE = ShiftKind(simulations=24)
READS = {"out", "features"}
CLASSES, COLUMNS = 6, 10
CENTERS = 2.6 * torch.randn(CLASSES + 1, COLUMNS, generator=torch.Generator().manual_seed(0))
SIDE = 1.4 * torch.randn(CLASSES + 1, COLUMNS, generator=torch.Generator().manual_seed(9))


def drawn(count: int, seed: int, classes: int = CLASSES, side: float | None = None) -> tuple[Tensor, Tensor]:
    """Normal clouds, each of two halves; `side` is the share of one half, 0.5 by default."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    half = torch.rand(count, generator=generator) < (0.5 if side is None else side)
    x = CENTERS[y] + torch.randn(count, COLUMNS, generator=generator)
    return x + torch.where(half, 1.0, -1.0)[:, None] * SIDE[y], y


def trained(inputs: int, classes: int, x: Tensor, y: Tensor, hidden: tuple[int, ...] = (48, 24)) -> nn.Module:
    recipe = Recipe(epochs=12, batch=32, optimizer=SGD(lr=0.05, weight_decay=1e-3, nesterov=True))
    return Fit(recipe=recipe)(MLP(inputs, classes, hidden), World(source=(x, y)))


@functools.cache
def clouds() -> nn.Module:
    return trained(COLUMNS, CLASSES, *drawn(900, 1))


@functools.cache
def clouds_kit() -> Any:
    return PROBE.kit(clouds(), World(source=drawn(900, 2)))


@functools.cache
def written() -> tuple[nn.Module, Any, Tensor, Tensor]:
    every: Any = digits().shuffle(torch.Generator().manual_seed(0)).load()
    net = trained(64, 10, every.x[:600], every.y[:600])
    kit = PROBE.kit(net, World(source=(every.x[600:1100], every.y[600:1100])))
    return net, kit, every.x[1100:], every.y[1100:]


def seen(net: nn.Module, x: Tensor, y: Tensor | None) -> Outputs:
    return outputs(net, Tensors(x, y), READS)


def judged(x: Tensor, y: Tensor | None, net: nn.Module | None = None, kit: Any = None) -> Reading:
    return PROBE.measure(seen(net or clouds(), x, y), World(), kit or clouds_kit(), Run())


def found(reading: Reading) -> Finding:
    assert reading.finding is not None
    return reading.finding


def shifted(kind: str, seed: int = 50, count: int = 400) -> tuple[Tensor, Tensor]:
    """A window of clouds under a strong shift of this kind; the samples of a new class have no label."""
    x, y = drawn(2000 if kind in ("label", "correlated") else count, seed)
    if kind == "covariate":
        return x + 1.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)), y
    if kind == "label":
        kept = torch.nonzero((y == 2) | (torch.arange(2000) % 6 == 0)).flatten()[:count]
        return x[kept], y[kept]
    if kind == "correlated":
        order = CorrelatedOrder(0.05, slots=100)((x, y)).load()
        return order.x[:count], order.y[:count]
    if kind == "subgroup":
        return drawn(count, seed, side=1.0)
    if kind == "concept":
        return x, torch.where(y == 4, 1, torch.where(y == 1, 4, y))
    if kind == "novel-class":
        x, y = drawn(count, seed, CLASSES + 1)
        return x, torch.where(y == CLASSES, UNKNOWN, y)
    return x, y


def part(y: Tensor, share: float = 0.25) -> Tensor:
    return torch.where(torch.rand(len(y), generator=torch.Generator().manual_seed(1)) < share, y, UNKNOWN)


SENTENCES = {
    "none": r"no shift stands out \(p = [01]\.\d\d, probability 0\.\d\d of none\)$",
    "covariate": r"the inputs changed: features moved or spread by up to \d\.\d\d standard deviations, most feature",
    "label": r"the class balance changed: predictions of class 2 by \+\d\d points",
    "correlated": r"samples come in runs of a class: \d\d% of neighbors are predicted alike, [1-4]\d% by chance",
    "subgroup": r"other samples of the same classes come: most in classes [\d, ]+ features moved by up to \d\.\d\d",
    "concept": r"labels follow another rule: \d\d% of \d+ known labels disagree, .* most in classes [14], [14]",
    "novel-class": r"samples of no known class come: \d+% are far from all before, where \d+% were, mostly taken for",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_strong_shift_is_named_and_said_in_a_sentence(kind):
    x, y = shifted(kind)
    reading = judged(x, part(y))
    finding = found(reading)
    assert finding.kind == kind, finding.text
    assert re.match(SENTENCES[kind], finding.text), finding.text
    assert finding.detected == (kind != "none")
    assert reading.value == float(reading.arrays["probabilities"][KINDS.index(kind)])
    assert (finding.effect is None) == (kind == "none") and finding.p_value is not None
    assert (finding.p_value <= PROBE.level) == finding.detected
    if kind == "label":
        assert finding.subjects[0] == 2 and float(reading.arrays["classes"].argmax()) == 2
    if kind == "concept":
        assert set(finding.subjects) == {1, 4}


# Bars, set before the rates were known. Chance is 1/6 without labels and 1/7 with them.
OWN_BAR, FOREIGN_BAR = 0.7, 0.5


def real_shifts(x: Tensor, y: Tensor, size: int, turn: int) -> list[tuple[str, Tensor, Tensor]]:
    """Shifts of digits that the probe does not simulate."""
    generator = torch.Generator().manual_seed(turn)
    rows = torch.randperm(len(x), generator=generator)[:size]
    label, order = (
        shift((x, y), run=Run(turn)).load()
        for shift in (LabelShift(concentration=0.5, size=size), CorrelatedOrder(0.1, 40))
    )
    rotated = Rotate(25.0)((x[rows], y[rows]), run=Run(turn)).load()
    a, b = torch.randperm(10, generator=generator)[:2].tolist()
    swapped = torch.where(y[rows] == a, b, torch.where(y[rows] == b, a, y[rows]))
    return [
        ("none", x[rows], y[rows]), ("covariate", rotated.x, y[rows]), ("label", label.x, label.y),
        ("correlated", order.x[:size], order.y[:size]), ("concept", x[rows], swapped),
    ]  # fmt: skip


@pytest.mark.parametrize(("bar", "foreign"), [(OWN_BAR, False), (FOREIGN_BAR, True)])
def test_real_shifts_of_digits_are_named_also_by_models_fitted_on_other_data(bar, foreign):
    net, kit, x, y = written()
    if foreign:
        fitted = {name: clouds_kit()[name] for name in clouds_kit() if name.split(".")[0] in ("plain", "labelled")}
        kit = Bag({**{name: kit[name] for name in kit}, **fitted})
    right: dict[str, list[bool]] = {}
    for turn in range(6):
        for kind, now, labels in real_shifts(x, y, 300, turn):
            right.setdefault(kind, []).append(found(judged(now, part(labels), net, kit)).kind == kind)
    rates = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    assert sum(rates.values()) / len(rates) >= bar, rates


def test_windows_without_shift_are_called_shifted_at_most_as_often_as_stated():
    alarms = total = 0
    for source in range(2):
        kit = PROBE.kit(clouds(), World(source=drawn(600, 100 + source)), run=Run(source)) if source else clouds_kit()
        for window in range(75):
            size = (80, 150, 300)[window % 3]
            x, y = drawn(size, 1000 * (source + 1) + window)
            alarms += found(judged(x, part(y) if window % 2 else None, kit=kit)).detected
            total += 1
    # 5 % of 150 are 7.5, and 15 three standard deviations more; windows that share a reference vary a little more.
    assert alarms <= 16, f"{alarms} of {total}"


def test_without_labels_a_changed_rule_is_not_seen_and_never_named():
    x, y = shifted("concept")
    bare, unknown = judged(x, None), judged(x, torch.full_like(y, UNKNOWN))
    assert found(bare).kind == "none" and "without labels a changed rule would not show" in found(bare).text
    assert torch.equal(bare.arrays["probabilities"], unknown.arrays["probabilities"])
    assert float(bare.arrays["probabilities"][KINDS.index("concept")]) == 0.0
    few = torch.where(torch.arange(len(y)) < 9, y, UNKNOWN)
    assert torch.equal(judged(x, few).arrays["signs"], bare.arrays["signs"])


def test_shuffling_takes_a_correlated_order_away():
    x, y = shifted("correlated")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    p, q = (judged(x[rows], None).arrays["probabilities"] for rows in (torch.arange(len(y)), order))
    assert float(p[KINDS.index("correlated")]) > 0.8 > 0.3 > float(q[KINDS.index("correlated")])


def test_probabilities_add_up_and_effects_are_what_they_say():
    x, y = shifted("label")
    reading = judged(x, y)
    assert torch.isclose(reading.arrays["probabilities"].sum(), torch.tensor(1.0))
    before = seen(clouds(), *drawn(900, 2)).logits.argmax(1).bincount(minlength=CLASSES) / 900
    now = seen(clouds(), x, y).logits.argmax(1).bincount(minlength=CLASSES) / len(x)
    assert torch.allclose(reading.arrays["classes"], now - before, atol=1e-6)
    assert found(reading).effect == pytest.approx(float((now - before).abs().sum()) / 2, abs=1e-6)
    x, y = shifted("concept")
    wrong = float((seen(clouds(), x, y).logits.argmax(1) != y).float().mean())
    assert f"{wrong:.0%} of 400 known labels disagree" in found(judged(x, y)).text


def test_the_kit_is_the_same_for_a_seed_and_survives_save_and_load(tmp_path):
    world, probe = World(source=drawn(200, 3)), ShiftKind(simulations=12)
    kit, again = (probe.kit(clouds(), world, run=Run(4)) for _ in range(2))
    other = probe.kit(clouds(), world, run=Run(5))
    save(kit, tmp_path / "kit")
    back = load(tmp_path / "kit")
    for name, tensor in kit.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]) and torch.equal(tensor, back.state_dict()[name]), name
    assert not torch.equal(kit["plain.slope"], other["plain.slope"])
    x, y = drawn(100, 4)
    a, b = judged(x, y, kit=kit), judged(x, y, kit=back)
    assert a.value == b.value and a.finding == b.finding


def test_with_two_classes_no_novel_class_is_named():
    x, y = drawn(300, 5, 2)
    net = trained(COLUMNS, 2, x, y)
    kit = ShiftKind(simulations=12).kit(net, World(source=drawn(200, 6, 2)))
    reading = judged(drawn(200, 7, CLASSES + 1)[0], None, net, kit)
    assert float(reading.arrays["probabilities"][KINDS.index("novel-class")]) == 0.0
    assert found(reading).detected


def test_calibration_may_stand_for_the_time_before():
    probe = ShiftKind(split="calibration", simulations=12)
    world = World(calibration=drawn(200, 3))
    assert probe.kit(clouds(), world) is not None
    with pytest.raises(MissingPart, match=r"ShiftKind to prepare needs calibration\.x"):
        probe.kit(clouds(), World(source=drawn(200, 3)))


def test_shifts_of_ones_own_are_simulated_and_those_of_labels_passed_over():
    net, _, x, y = written()
    world, kits = World(source=(x[:150], y[:150])), []
    for shifts in ((), (Rotate(25.0),), (LabelShift(),)):
        kits.append(ShiftKind(simulate=shifts, simulations=12).kit(net, world))
    plain, rotated, balance = (kit["windows.signs"] for kit in kits)
    assert not torch.equal(plain, rotated) and torch.equal(plain, balance)


def test_labels_that_are_unknown_before_are_left_out():
    x, y = drawn(300, 3)
    half = torch.where(torch.arange(300) % 2 == 0, y, UNKNOWN)
    kit = ShiftKind(simulations=12).kit(clouds(), World(source=(x, half)))
    assert isinstance(kit, Bag) and len(kit["reference.labels"]) == 150


def test_what_cannot_be_judged_is_refused_with_the_reason():
    x, y = drawn(100, 3)
    with pytest.raises(InputError, match=r"ShiftKind needs at least 20 samples; got 19"):
        judged(x[:19], y[:19])
    with pytest.raises(InputError, match=r"ShiftKind needs at least 40 labelled samples of the source; got 39"):
        PROBE.kit(clouds(), World(source=(x[:39], y[:39])))
    with pytest.raises(InputError, match=r"labels of one class \(3\) only\. Give data of at least two"):
        PROBE.kit(clouds(), World(source=(x, torch.full_like(y, 3))))
    with pytest.raises(InputError, match=r"outside 0\.\.5: \[7\]"):
        judged(x, torch.full_like(y, 7))
    with pytest.raises(ModelError, match=r"Flatten has no linear layer"):
        PROBE.kit(nn.Flatten(), World(source=(torch.randn(100, 6), y)))
    bare = seen(clouds(), x, y)
    with pytest.raises(MissingPart, match=r"ShiftKind reads features, and these outputs have none"):
        PROBE.measure(Outputs(bare.out, y, bare.id), World(), clouds_kit(), Run())


def test_one_class_in_the_window_is_a_label_shift_and_no_error():
    x, y = drawn(2000, 8)
    reading = judged(x[y == 3][:100], None)
    assert found(reading).kind == "label" and found(reading).subjects[0] == 3


def test_it_reads_what_the_loop_has_and_needs_no_inputs():
    assert PROBE.reads == {"out", "features"} and not PROBE.permutable
    assert PROBE.prepares() == {"source.x", "source.y"}
