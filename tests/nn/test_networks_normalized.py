"""The wrapper that owns normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from homeostat.core.errors import DtypeError, InputError, NonFiniteError, SpecError
from homeostat.core.fork import fork, versions
from homeostat.core.save import load, save
from homeostat.nn.normalized import Normalized
from homeostat.nn.resnet import ResNet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def plain(**options):
    return Normalized(nn.Identity(), MEAN, STD, **options)


def images(count=2):
    return torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@given(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_each_channel_is_shifted_and_scaled_in_the_images_dtype(dtype):
    x = images().to(dtype)
    out = plain()(x)
    assert out.dtype == dtype
    wanted = torch.stack([(x[:, c].double() - MEAN[c]) / STD[c] for c in range(3)], 1)
    assert float((out.double() - wanted).abs().max()) <= 8 * torch.finfo(dtype).eps


def test_float64_loses_nothing_to_float32_constants():
    x = images().double()
    wanted = (x - torch.tensor(MEAN, dtype=torch.float64)[:, None, None]) / torch.tensor(STD).double()[:, None, None]
    exact = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    out = plain().float().double()(x)
    assert float((out - exact).abs().max()) < 1e-14 < float((wanted - exact).abs().max())


def test_gradients_reach_the_images_divided_by_the_deviation():
    x = images().requires_grad_()
    plain()(x).sum().backward()
    assert torch.allclose(x.grad, (1 / torch.tensor(STD))[:, None, None].expand_as(x))


def test_it_adds_no_tensor_and_comes_back_from_disk_with_its_numbers(tmp_path):
    net = Normalized(ResNet(8, 5, 3, 4), MEAN, STD, slack=None).eval()
    assert {name.removeprefix("model.") for name in net.state_dict()} == set(net.model.state_dict())
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", verify=True).eval()
    assert (again.mean, again.std, again.slack) == (MEAN, STD, None)
    assert torch.equal(again(images()), net(images()))


@pytest.mark.parametrize("scale", [255, 10, 2.5])
def test_images_in_0_to_255_are_refused(scale):
    with pytest.raises(InputError, match=r"images span .* takes 0\.\.1\. Divide by 255"):
        plain()(images() * scale)


def test_images_that_were_normalised_already_are_refused():
    with pytest.raises(InputError, match="normalises by itself"):
        plain()((images() - 0.45) / 0.225)


@given(st.floats(-1, 2, width=32))
def test_values_within_one_unit_of_0_to_1_pass(value):
    assert plain()(torch.full((1, 3, 1, 1), value)).shape == (1, 3, 1, 1)


def test_the_slack_can_be_set():
    x = images() + 0.2
    plain(slack=0.2)(x)
    with pytest.raises(InputError, match="span"):
        plain(slack=0.1)(x)
    plain(slack=None)(1e6 * x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(value):
    x = images()
    x[1, 2, 0, 0] = value
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        plain()(x)


def test_integers_arrays_and_foreign_dtypes_are_refused():
    with pytest.raises(DtypeError, match=r"float\(\) / 255"):
        plain()((images() * 255).byte())
    with pytest.raises(DtypeError, match="ndarray"):
        plain()(np.zeros((1, 3, 2, 2), np.float32))
    net = Normalized(ResNet(8, 5, 3, 4), MEAN, STD)
    with pytest.raises(DtypeError, match=r"images are torch.float64 and the network is torch.float32"):
        net(images().double())


def test_autocast_may_mix_dtypes():
    net = Normalized(ResNet(8, 5, 3, 4), MEAN, STD).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(torch.isfinite(net(images().bfloat16())).all())


def test_nothing_is_changed_by_a_forward_pass():
    net = Normalized(ResNet(8, 5, 3, 4), MEAN, STD).eval()
    x = images()
    before = versions(net), x._version
    net(x)
    fork(net, own="*")(x)
    assert (versions(net), x._version) == before


def test_values_are_not_looked_at_where_they_cannot_be():
    x = images(3) * 255
    mapped = torch.vmap(lambda sample: plain()(sample[None])[0])(x)
    assert torch.allclose(mapped, plain(slack=None)(x), atol=1e-4)
    assert plain()(torch.zeros(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("mean", "std", "slack"),
    [
        ((0.5,), (0.2, 0.2), 1.0),
        ((), (), 1.0),
        ((0.5,), (0.0,), 1.0),
        ((math.nan,), (1.0,), 1.0),
        ((0.5,), (0.2,), -1.0),
    ],
)
def test_numbers_that_cannot_normalise_are_refused(mean, std, slack):
    with pytest.raises(SpecError):
        Normalized(nn.Identity(), mean, std, slack)
