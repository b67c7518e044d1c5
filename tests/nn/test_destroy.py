from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from homeostat.core.errors import InputError
from homeostat.nn.destroy import Occluded, ShuffledPatches, ShuffledPixels


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_patches_keep_each_tile_whole_and_move_it_with_all_its_channels(parts, high, wide, channels, seed):
    x = torch.arange(3.0 * channels * parts * high * parts * wide).view(3, channels, parts * high, parts * wide)
    view = ShuffledPatches(parts)(x, draws(seed))

    def tiles(images: torch.Tensor, n: int) -> list:
        rows = range(0, parts * high, high)
        return [images[n, :, r : r + high, c : c + wide].tolist() for r in rows for c in range(0, parts * wide, wide)]

    for n in range(3):
        assert sorted(tiles(view, n)) == sorted(tiles(x, n))


def test_every_order_of_patches_is_as_likely_as_any_other_and_images_have_their_own():
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(24_000, 1, 2, 2)
    view = ShuffledPatches(2)(x, draws()).flatten(1)
    counts = torch.unique(view, dim=0, return_counts=True)[1]
    assert len(counts) == 24 and float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi-square, 23 degrees of freedom


def test_images_whose_size_is_no_multiple_keep_it_and_their_plain_color():
    x = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 3, 9, 7).contiguous()
    assert torch.allclose(ShuffledPatches(4)(x, draws()), x, atol=1e-6)
    assert ShuffledPatches(4)(x.bfloat16(), draws()).dtype == torch.bfloat16


def test_pixels_move_together_in_all_images_and_channels():
    x = torch.arange(25.0).view(1, 1, 5, 5) + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1) + torch.zeros(2, 3, 5, 5)
    view = ShuffledPixels()(x, draws())
    assert sorted(view[0, 0].flatten().tolist()) == x[0, 0].flatten().tolist()
    assert torch.equal(view[1, 2] - 100, view[0, 0]) and not torch.equal(view[0, 0], x[0, 0])


def test_a_window_is_filled_with_the_mean_of_the_whole_image():
    x = torch.rand(2, 3, 8, 8, generator=draws())
    view = Occluded()(x, draws())
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    assert torch.equal(view[:, :, ~inside], x[:, :, ~inside])
    assert torch.allclose(view[:, :, inside], x.mean((2, 3))[:, :, None].expand(2, 3, 16))


@pytest.mark.parametrize("view", [ShuffledPatches(), ShuffledPixels(), Occluded()])
def test_what_is_no_image_is_refused(view):
    with pytest.raises(InputError, match="float images"):
        view(torch.zeros(3, 4), draws())
    with pytest.raises(InputError, match="float images"):
        view(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), draws())


def test_too_small_an_image_is_refused():
    with pytest.raises(InputError, match="ask for fewer"):
        ShuffledPatches(4)(torch.zeros(1, 1, 8, 3), draws())
