"""The signs of shifts and the simulated windows: hand-worked values, other libraries, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Tensor
from torch.nn.functional import one_hot

from homeostat.core.data import UNKNOWN
from homeostat.probe import shift_signs
from homeostat.probe.input_changes import changes
from homeostat.probe.shift_reference import SCORES, Reference, Rows, joined, reference
from homeostat.probe.shift_signs import LEAST_LABELS, SIGNS, UNLABELLED, signs
from homeostat.probe.simulated import Pool, simulate, without

CENTERS = 3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def rows(count: int, seed: int, shares: tuple[float, ...] = (0.25,) * 4) -> Rows:
    """Clouds with the logits of the best classifier of them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    x = CENTERS[y] + torch.randn(count, 8, generator=generator)
    return Rows.of(-0.5 * torch.cdist(x, CENTERS).square(), x, y)


def value(found: shift_signs.Seen, name: str) -> float:
    return float(found.signs[SIGNS.index(name)])


def test_u_is_white_within_classes_up_to_the_ridge():
    ref = reference(rows(4000, 1))
    inside = ref.u - ref.centers[ref.labels]
    covariance = inside.T @ inside / len(inside)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 0.02
    assert float(covariance.diagonal().min()) > 0.7 and float(covariance.diagonal().max()) < 1.0


def test_the_temperature_is_that_of_the_logits():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(4000, 4, generator=generator)
    y = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    for scale in (0.5, 1.0, 4.0):
        found = float(reference(Rows.of(scale * logits, logits, y)).temperature)
        assert found == pytest.approx(scale, rel=0.15)  # tried in steps of 16 %


def test_the_distance_to_the_fifth_neighbor_leaves_the_sample_itself_out():
    known = rows(60, 3)
    ref = reference(known)
    distances = torch.cdist(ref.u, ref.u).sort(1).values
    assert torch.allclose(ref.scores[SCORES.index("near")], distances[:, 5], atol=1e-3)
    found = rows(10, 4)
    u, _ = ref.seen(found.features)
    nearest = torch.cdist(u, ref.u).sort(1).values[:, 4]
    among = float((nearest < ref.scores[SCORES.index("near")].median()).float().mean())
    assert math.copysign(1, value(signs(found, ref), "near.0.5")) == math.copysign(1, among - 0.5) or among == 0.5


def test_quantiles_of_equal_weights_are_numpys():
    ref = reference(rows(500, 5))
    marks = shift_signs._quantiles(ref, torch.full((500,), 1 / 500))
    wanted = np.quantile(ref.scores.numpy(), [0.1, 0.5, 0.9, 0.99], axis=1, method="inverted_cdf").T
    # Sums of 500 float32 weights may fall short of a level by a rounding error, which takes the next sample.
    assert np.mean(np.isclose(marks.numpy(), wanted, rtol=1e-5)) >= 0.5
    above = np.sort(ref.scores.numpy(), 1)
    for mark, sorted_, low in zip(marks.numpy(), above, wanted, strict=True):
        for m, w in zip(mark, low, strict=True):
            assert abs(np.searchsorted(sorted_, m) - np.searchsorted(sorted_, w)) <= 1


def test_the_chi_square_is_scipys():
    table = torch.tensor([[12.0, 30.0, 8.0, 0.0], [20.0, 18.0, 12.0, 0.0]])
    wanted: Any = chi2_contingency(table[:, :3].numpy(), correction=False)
    assert shift_signs._chi_square(table) == pytest.approx((wanted.statistic - 2) / 2, rel=1e-5)
    assert shift_signs._chi_square(torch.tensor([[5.0, 0.0], [9.0, 0.0]])) == 0.0


def test_neighbors_alike_by_hand():
    share, chance, z = shift_signs._alike(torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert share == 0.8 and chance == pytest.approx(12 / 30)
    assert z == pytest.approx(0.4 / math.sqrt((0.24 + 1e-3) / 5))


def test_labels_that_agree_have_the_expected_error_and_those_swapped_its_excess():
    ref, window = reference(rows(2000, 6)), rows(400, 7)
    agreed, swapped = signs(window, ref), signs(window.labelled(3 - window.labels), ref)
    wrong = float((window.logits.argmax(1) != 3 - window.labels).float().mean())
    assert swapped.error == pytest.approx(wrong) and swapped.expected < 0.1
    assert abs(value(agreed, "label.error")) < 1.5 < 3 < value(swapped, "label.error")
    few = torch.where(torch.arange(400) < LEAST_LABELS - 1, window.labels, UNKNOWN)
    none = signs(window.labelled(few), ref)
    assert not bool(none.signs[UNLABELLED:].any()) and math.isnan(none.error)
    assert torch.equal(none.signs[:UNLABELLED], agreed.signs[:UNLABELLED])


def test_signs_do_not_depend_on_the_scale_and_place_of_features():
    known, window = rows(600, 8), rows(300, 9, (0.1, 0.2, 0.3, 0.4))

    def moved(r: Rows) -> Rows:
        return Rows(r.logits, 8 * r.features + 2, r.labels)

    plain, other = signs(window, reference(known)), signs(moved(window), reference(moved(known)))
    # A sample at a quantile may change sides by rounding, which counts 1 / 300.
    assert torch.allclose(plain.signs, other.signs, atol=0.15)
    assert float((plain.signs - other.signs).abs().median()) < 1e-4


def test_a_changed_balance_alone_moves_the_mean_of_u_and_not_what_is_left_of_it():
    ref = reference(rows(2000, 10))
    found = signs(rows(400, 11, (0.6, 0.2, 0.1, 0.1)), ref)
    assert value(found, "drift.before") > 3 > 1.5 > abs(value(found, "drift.after"))
    assert torch.allclose(found.estimated, torch.tensor([0.6, 0.2, 0.1, 0.1]), atol=0.08)
    assert abs(value(found, "drift.within")) < 1.5


def test_drift_within_classes_averages_nothing_without_shift():
    ref = reference(rows(1000, 12))
    drifts = torch.tensor([value(signs(rows(200, 20 + i), ref), "drift.within") for i in range(40)])
    assert abs(float(drifts.mean())) < 1.0


def test_a_reference_survives_as_named_tensors():
    ref = reference(rows(100, 13))
    back = Reference.read(ref.tensors())
    assert all(torch.equal(a, b) for a, b in zip(ref.tensors().values(), back.tensors().values(), strict=True))


def pool(count: int = 600) -> Pool:
    return Pool(rows(count, 14), torch.Generator().manual_seed(2))


def balance(labels: Tensor) -> Tensor:
    return torch.bincount(labels, minlength=4) / len(labels)


def test_simulated_label_shifts_keep_the_inputs_of_a_class_and_change_the_balance():
    made = pool()
    for _ in range(20):
        window = made.rebalanced(300)
        assert float((balance(window.labels) - made.prior).abs().sum()) / 2 >= 0.08
        assert bool(torch.isin(window.features[:, 0], made.rows.features[:, 0]).all())


def test_simulated_subgroups_keep_the_balance_and_move_features_within_classes():
    made, moved = pool(), []
    for _ in range(20):
        window = made.subgroups(400)
        assert float((balance(window.labels) - made.prior).abs().sum()) / 2 < 0.12
        means = [
            one_hot(r.labels, 4).float().T @ r.features / torch.bincount(r.labels)[:, None] for r in (window, made.rows)
        ]
        moved.append(float((means[0] - means[1]).norm(dim=1).max()))
    assert sum(moved) / len(moved) > 0.5


def test_simulated_order_keeps_neighbors_alike_and_simulated_rules_leave_inputs():
    made = pool()
    for _ in range(10):
        labels = made.clumped(300).labels
        assert shift_signs._alike(labels, 4)[2] > 2
        window = made.ruled(300)
        truth = {tuple(x): int(y) for x, y in zip(made.rows.features.tolist(), made.rows.labels, strict=True)}
        known = torch.tensor([truth[tuple(x)] for x in window.features.tolist()])
        assert bool((known != window.labels).any())


def test_a_class_left_out_leaves_no_output_and_no_label_and_comes_between_known_ones():
    given = rows(400, 15)
    known, news = without(given, 1, 0.5, torch.Generator().manual_seed(0))
    assert known.logits.shape[1] == news.logits.shape[1] == 3
    assert len(known) + len(news) == 400 and bool((news.labels == UNKNOWN).all())
    assert known.labels.unique().tolist() == [0, 1, 2]
    assert torch.allclose(known.logits.exp().sum(1), torch.ones(len(known)), atol=1e-5)
    far = without(given, 1, 1.0, torch.Generator().manual_seed(0))[1]
    assert torch.equal(far.features, given.features[given.labels == 1])
    apart = [float(torch.cdist(r.features, known.features).amin(1).mean()) for r in (news, far)]
    assert apart[0] < apart[1]


def test_windows_of_every_kind_are_simulated_the_same_for_a_seed():
    source, spoiled = rows(300, 16), rows(200, 17)
    changed = [(torch.arange(200), spoiled)]
    made = [list(simulate(source, changed, 12, torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    counts = {kind: sum(w.kind == kind for w in made[0]) for kind in {w.kind for w in made[0]}}
    assert counts["none"] >= 24 and all(counts[k] == 12 for k in counts if k != "none") and len(counts) == 7
    pairs = [(a.window.features, b.window.features) for a, b in zip(made[0], made[1], strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(made[0][0].window.features, made[2][0].window.features)
    for window in made[0]:
        seen = set(map(tuple, window.reference.standardized(window.window.features).round(decimals=3).tolist()))
        assert len(window.window) >= 10 and len(seen) > 1
        assert window.window.logits.shape[1] == (3 if len(window.reference.prior) == 3 else 4)


def test_reference_and_windows_share_no_sample():
    source = rows(300, 18)
    for window in simulate(source, [], 6, torch.Generator().manual_seed(0)):
        if window.kind in ("none", "label", "subgroup"):
            u, _ = window.reference.seen(window.window.features)
            assert float(torch.cdist(u, window.reference.u).min()) > 1e-3


def test_generic_changes_keep_masks_vocabulary_range_and_shape():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 50, (40, 6), generator=generator)
    mask = (torch.arange(6) < 4).long().expand(40, 6)
    pictures = torch.rand(40, 1, 5, 5, generator=generator)
    table = torch.randn(40, 7, generator=generator)
    for change in changes(generator):
        tokens: Any = change({"ids": ids, "mask": mask})
        assert torch.equal(tokens["mask"], mask) and bool(torch.isin(tokens["ids"], ids).all())
        assert not torch.equal(tokens["ids"], ids)
        for x in (pictures, table):
            moved: Any = change(x)
            assert moved.shape == x.shape and moved.dtype == x.dtype and not torch.equal(moved, x)
            assert bool(torch.isfinite(moved).all())
        image: Any = change(pictures)
        assert float(image.min()) >= float(pictures.min()) - 1e-6 and float(image.max()) <= float(pictures.max()) + 1e-6


def test_windows_one_after_another_are_one():
    a, b = rows(5, 1), rows(3, 2)
    assert torch.equal(joined([a, b]).features, torch.cat([a.features, b.features])) and len(joined([a, b])) == 8
