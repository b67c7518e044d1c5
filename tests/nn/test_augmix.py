from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.nn import augmix
from homeostat.nn.augmix import AugMix


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=draws(seed), dtype=torch.float64) * 255).round() / 255


ONE, UP = torch.tensor([1.0]).double(), torch.tensor([1.0]).double()


def test_contrast_goes_from_0_to_1_in_each_channel_and_a_plain_one_stays():
    x = torch.tensor([[0.2, 0.4, 0.6], [0.3, 0.3, 0.3]]).double().view(1, 2, 1, 3)
    expected = torch.tensor([[0.0, 0.5, 1.0], [0.3, 0.3, 0.3]]).double().view(1, 2, 1, 3)
    assert torch.allclose(augmix.stretch_contrast(x, ONE, UP), expected)


def test_a_histogram_becomes_even():
    x = (torch.arange(1024).double().view(1, 1, 32, 32) / 1023) ** 3
    even = augmix.equalize(x, ONE, UP)
    fair = torch.arange(1024).double() / 1023
    assert float((even.flatten() - fair).abs().max()) < 0.2 < float((x.flatten() - fair).abs().max())
    assert torch.equal(even.flatten(), even.flatten().sort().values)
    small = image(1, 3, 5, 5)  # 25 pixels cannot fill 255 steps
    assert torch.equal(augmix.equalize(small, ONE, UP), small)
    by_hand = torch.cat([torch.zeros(255), torch.full((255,), 10 / 255), torch.ones(1)]).double().view(1, 1, 1, 511)
    # step = (511 - 1) // 255 = 2; table[0] = 1 // 2, table[10] = (1 + 255) // 2, table[255] = (1 + 510) // 2
    assert torch.allclose(
        augmix.equalize(by_hand, ONE, UP)[0, 0, 0, [0, 300, 510]] * 255, torch.tensor([0.0, 128, 255]).double()
    )


def test_bright_pixels_are_inverted():
    x = torch.tensor([100.0, 230.0, 231.0, 255.0]).double().view(1, 1, 1, 4) / 255
    out = augmix.solarize(x, ONE, UP)  # limit 256 - floor(25.6) = 231
    assert torch.allclose(out.flatten() * 255, torch.tensor([100.0, 230.0, 24.0, 0.0]).double())


@pytest.mark.parametrize(("level", "bits"), [(1.0, 4), (2.5, 3), (10.0, 0)])
def test_only_the_upper_bits_stay(level, bits):
    x = image(1, 1, 8, 8)
    out = augmix.posterize(x, torch.tensor([level]).double(), UP)
    for before, after in zip((x * 255).round().flatten().tolist(), (out * 255).round().flatten().tolist(), strict=True):
        assert int(after) == int(before) >> (8 - bits) << (8 - bits)


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_move_whole_pixels_and_show_grey(sign):
    x, s = image(1, 2, 6, 9), torch.tensor([float(sign)]).double()
    level = torch.tensor([7.0]).double()  # 7 / 30 of 9 is 2.1, of 6 is 1.4
    along, down = augmix.shift_x(x, level, s), augmix.shift_y(x, level, s)
    grey = torch.full_like(x, 0.5)
    if sign > 0:
        assert torch.allclose(along, torch.cat([x[..., 2:], grey[..., :2]], 3))
        assert torch.allclose(down, torch.cat([x[..., 1:, :], grey[..., :1, :]], 2))
    else:
        assert torch.allclose(along, torch.cat([grey[..., :2], x[..., :-2]], 3))
        assert torch.allclose(down, torch.cat([grey[..., :1, :], x[..., :-1, :]], 2))


def test_a_quarter_turn_is_one():
    x = image(1, 2, 6, 6)
    level = torch.tensor([30.0]).double()
    assert torch.allclose(augmix.rotate(x, level, UP), torch.rot90(x, 1, (2, 3)), atol=1e-9)
    assert torch.allclose(augmix.rotate(x, level, -UP), torch.rot90(x, -1, (2, 3)), atol=1e-9)


def test_shears_move_each_row_or_column_by_its_place():
    x = torch.arange(64.0).double().view(1, 1, 1, 64).expand(1, 1, 20, 64) / 64
    out = augmix.shear_x(x, torch.tensor([5.0]).double(), UP)  # 0.15 (row + 0.5) pixels
    for row in (0, 7, 19):
        moved = (out - x)[0, 0, row, 4:40] * 64
        assert torch.allclose(moved, torch.full_like(moved, 0.15 * (row + 0.5)))
    turned = augmix.shear_y(x.transpose(2, 3), torch.tensor([5.0]).double(), UP)
    assert torch.allclose(turned, out.transpose(2, 3), atol=1e-12)


def test_images_have_draws_of_their_own_and_the_seed_decides():
    x = image(1, 3, 16, 16).expand(50, 3, 16, 16)
    views = AugMix()(x, draws(1))
    assert torch.equal(views, AugMix()(x, draws(1))) and not torch.equal(views, AugMix()(x, draws(2)))
    assert len({tuple(v.flatten().tolist()) for v in views}) == 50


def test_a_view_lies_within_what_it_is_mixed_of(monkeypatch):
    """Chains of 0 and 1 alone: the weights of each image add up to 1 and lie evenly on the simplex."""
    monkeypatch.setattr(augmix, "CHANGES", (lambda x, level, sign: torch.zeros_like(x), lambda x, level, sign: x))
    x = torch.ones(20_000, 1, 1, 1, dtype=torch.float64)
    view = AugMix(chains=2, depth=1, crop=0)(x, draws()).flatten()
    # m + (1 - m) W with m uniform; W is 0 or 1 with 1/4 each, else uniform. The mean is 1/2 + 1/2 * 1/2.
    assert abs(float(view.mean()) - 0.75) < 4 * 0.25 / math.sqrt(20_000)
    # P(view = 1) = P(W = 1) = 1/4
    assert abs(float((view > 1 - 1e-9).double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)


def test_without_changes_a_view_is_a_crop_and_a_flip(monkeypatch):
    monkeypatch.setattr(augmix, "CHANGES", (lambda x, level, sign: x,))
    x = image(1, 3, 6, 5)
    views = AugMix(crop=2)(x.expand(400, 3, 6, 5), draws())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))[0]
    crops = [padded[:, r : r + 6, c : c + 5] for r in range(5) for c in range(5)]
    crops += [c.flip(2) for c in crops]
    found = [[i for i, crop in enumerate(crops) if torch.allclose(view, crop)] for view in views]
    assert all(found) and len({i for one in found for i in one}) == 50


def test_dtype_stays_and_what_is_no_image_is_refused():
    assert AugMix()(image(2, 1, 8, 8).bfloat16(), draws()).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"0\.\.1; these span"):
        AugMix()(255 * image(2, 1, 8, 8), draws())
