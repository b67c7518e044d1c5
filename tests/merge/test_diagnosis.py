from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import InputError
from homeostat.core.fork import fork, versions
from homeostat.core.world import World
from homeostat.merge import (
    TaskArithmetic,
    cosine,
    diagnose,
    recovered,
    sign_conflict,
    subspace_alignment,
    task_vectors,
    variance_ratio,
)
from tests.merge.test_coefficients import donors_of, network


def added(base, donors, scale: float):
    return TaskArithmetic(scale=scale)(base, World(models=donors))


def test_cosines_by_hand_over_all_tensors_together():
    vectors = {"a": torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([[4.0], [-4.0], [2.0]])}
    reading = cosine(vectors)
    expected = torch.tensor([[1.0, (9 - 16) / 25, 0.8], [(9 - 16) / 25, 1.0, -0.8], [0.8, -0.8, 1.0]])
    assert torch.allclose(reading.arrays["cosine"].float(), expected)
    assert reading.value == pytest.approx((-7 / 25 + 0.8 - 0.8) / 3)


def test_sign_conflict_counts_only_what_two_donors_keep():
    rows = torch.tensor([[5.0, 4.0, -3.0, 0.1, 0.1], [5.0, -4.0, 0.1, 3.0, 0.1], [-0.1, -4.0, 3.0, 0.2, 9.0]])
    reading = sign_conflict({"a": rows[:, :2], "b": rows[:, 2:]}, density=0.6)
    # Kept: donor 0 has 0, 1, 2; donor 1 has 0, 1, 3; donor 2 has 1, 2, 4. Shared: 0, 1, 2, of which 1 and 2 differ.
    assert reading.value == pytest.approx(2 / 3) and reading.arrays["tensor"].tolist() == [0.5, 1.0]
    assert sign_conflict({"a": rows[:1].expand(3, -1)}, 0.6).value == 0.0
    assert sign_conflict({"a": torch.eye(3)}, 1.0).value == 0.0, "a weight of 0 keeps nothing"


def test_alignment_is_one_for_donors_in_the_sums_directions_and_zero_for_what_cancels():
    up, down, across = torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)
    up[0, 0], down[0, 0], across[1, 1] = 2.0, -2.0, 1.0
    reading = subspace_alignment({"w": torch.stack([up, down, across])})
    assert reading.arrays["donor"].tolist() == pytest.approx([0.0, 0.0, 1.0])
    assert subspace_alignment({"w": torch.stack([up, across])}).value == pytest.approx(1.0)
    # The small direction is left out when it is a relative error that is allowed: 1 / sqrt(5) of the sum.
    assert subspace_alignment({"w": torch.stack([up, across])}, error=0.5).arrays["donor"].tolist() == [1.0, 0.0]


def test_alignment_equals_projection_by_hand():
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(stack.sum(0), full_matrices=False)
    whole = stack.sum(0)
    for k in range(1, 6):
        approximation = left[:, :k] @ values[:k].diag() @ right[:k]
        if (whole - approximation).norm() <= 0.4 * whole.norm():
            break
    expected = [float((left[:, :k] @ left[:, :k].T @ d).norm() / d.norm()) for d in stack]
    assert 1 < k < 5
    assert subspace_alignment({"w": stack}, 0.4).arrays["donor"].tolist() == pytest.approx(expected)


def test_variance_collapses_for_the_average_of_two_opposite_networks_and_not_for_equal_ones():
    base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    one, opposite, other = fork(base, own="*"), fork(base, own="*"), fork(base, own="*")
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            opposite.get_parameter(name).copy_(-0.5 * parameter)
    x = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    donors, before = {"one": one, "opposite": opposite}, versions(one)
    reading = variance_ratio(added(base, donors, 0.5), donors, x)
    # theta = 0.25 theta_1: the first layer has 1/16 of the variance, where donors have (1 + 1/4) / 2 on average.
    assert reading.arrays["layer"][0].item() == pytest.approx(1 / 10, rel=1e-4)
    assert reading.finding.detected and reading.finding.subjects == ("2",)
    same = variance_ratio(added(base, {"a": one, "b": other}, 0.5), {"a": one, "b": one}, x)
    assert same.value == pytest.approx(1.0, rel=1e-4) and not same.finding.detected
    assert versions(one) == before and not one._forward_hooks


def test_a_diagnosis_is_one_of_everything_that_can_be_read():
    net = network(torch.float32)
    donors = donors_of(net)
    x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    readings = diagnose(net, donors, added(net, donors, 1 / 3), x, density=0.5)
    vectors = task_vectors(net, donors)
    assert [reading.name for reading in readings] == [
        "task vector cosine", "sign conflict", "subspace alignment", "variance ratio"
    ]  # fmt: skip
    assert readings[1].value == sign_conflict(vectors, 0.5).value
    # Independent changes: about orthogonal, and three signs all agree in a quarter of the cases.
    assert abs(readings[0].value) < 0.25 and 0.4 < readings[1].value < 0.75
    with pytest.raises(InputError, match="two donors"):
        diagnose(net, {"one": donors["donor0"]})
    with pytest.raises(InputError, match="give data"):
        diagnose(net, donors, added(net, donors, 0.5))


def test_recovered_is_zero_for_the_base_one_for_the_donor_and_negative_for_what_leaves_both():
    base, donor, lost = (nn.Linear(2, 2, bias=False) for _ in range(3))
    with torch.no_grad():
        # Answers are the sign of the second number, of the first, and the opposite of the donor's.
        base.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        donor.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        lost.weight.copy_(-donor.weight)
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    values = [recovered(base, net, {"a": donor}, {"a": x}) for net in (base, donor, lost)]
    assert [reading.value for reading in values] == [0.0, 1.0, -1.0]
    assert [reading.finding.detected for reading in values] == [False, True, False]
    assert recovered(donor, lost, {"a": donor}, {"a": x}).value == -1.0, (
        "a base that answers as the donor can only lose"
    )
    with pytest.raises(InputError, match="none of a"):
        recovered(base, donor, {"a": donor}, {"b": x})
