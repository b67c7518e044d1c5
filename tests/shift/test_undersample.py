"""Undersampled frequencies."""

from __future__ import annotations

import torch

from homeostat.nn.fourier import to_image
from homeostat.shift import Compose, Corrupt, Undersample

IMAGES = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_everything_sampled_without_noise_is_the_image():
    batch = Undersample(acceleration=1.0)((IMAGES, torch.arange(40) % 3)).load()
    assert bool(batch.x["mask"].all()) and torch.allclose(to_image(batch.x["kspace"])[:, :1], IMAGES, atol=1e-5)
    assert torch.equal(batch.y[:, :1], IMAGES) and not bool(batch.y[:, 1].any())


def test_frequencies_that_are_not_sampled_are_0_and_noise_is_where_they_are():
    clean, noisy = (Undersample(noise=noise)(IMAGES).load() for noise in (0.0, 0.1))
    mask = clean.x["mask"]
    assert torch.equal(mask, noisy.x["mask"]) and mask.sum(1).unique().tolist() == [4]
    difference = (noisy.x["kspace"] - clean.x["kspace"]).permute(0, 3, 1, 2)
    assert not bool(difference[~mask].any()) and abs(float(difference[mask].std()) - 0.1) < 0.005
    assert clean.y is None


def test_it_comes_after_shifts_of_images():
    both = Compose((Corrupt("brightness", 5), Undersample(acceleration=1.0)))((IMAGES, IMAGES)).load()
    assert float((to_image(both.x["kspace"])[:, 0] - IMAGES[:, 0]).abs().mean()) > 0.1
