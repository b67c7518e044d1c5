from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from homeostat.core.errors import UnknownName
from homeostat.nn import domain_channels, middle_domains
from homeostat.nn.image_domains import DOMAINS


def images(height: int = 20, width: int = 17) -> Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_blur_and_edges_are_those_of_scipy_with_a_mirrored_border(sigma):
    x = images()
    made = middle_domains(x, sigma=sigma)
    grey = x.mean(1).numpy()
    for n in range(3):
        for c in range(3):
            blur = ndimage.gaussian_filter(x[n, c].numpy(), sigma, mode="mirror", truncate=4.0)
            assert np.allclose(made["blur"][n, c], blur, atol=1e-12)
            assert np.allclose(made["sharpen"][n, c], np.clip(2 * x[n, c].numpy() - blur, 0, 1), atol=1e-12)
        smooth = ndimage.gaussian_filter(grey[n], sigma, mode="mirror", truncate=4.0)
        across, down = (ndimage.sobel(smooth, axis=a, mode="mirror") for a in (1, 0))
        assert np.allclose(made["sobel"][n, 0], np.hypot(across, down), atol=1e-12)
        assert np.allclose(made["laplacian"][n, 0], ndimage.laplace(smooth, mode="mirror"), atol=1e-12)
        assert np.allclose(made["grey"][n, 0], grey[n], atol=1e-15)


def test_emboss_is_the_pixel_minus_a_neighbour_on_a_raised_ground():
    x = images()
    grey, made = x.mean(1), middle_domains(x, ("emboss",))["emboss"]
    for place, (down, along) in enumerate([(1, -1), (1, 0), (1, 1), (0, 1)]):
        for i, j in ((5, 5), (1, 15), (18, 1)):
            expected = (grey[:, i, j] - grey[:, i + down, j + along] + 128 / 255).clamp(0, 1)
            assert torch.allclose(made[:, place, i, j], expected, rtol=0, atol=1e-12)
    flat = middle_domains(torch.full((1, 1, 6, 6), 0.3), ("emboss", "sobel", "laplacian"))
    assert torch.allclose(flat["emboss"], torch.tensor(128 / 255)) and float(flat["sobel"].abs().max()) < 1e-6
    assert float(flat["laplacian"].abs().max()) < 1e-6, "the border makes no edges"


def test_haar_levels_worked_by_hand():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., :4, :] = 1.0
    made = middle_domains(x, ("wavelet",))["wavelet"]
    assert torch.allclose(made[0, 0], torch.tensor(4.0, dtype=torch.float64)), "eight is the sum of 64 over 8, halved"
    assert float(made[0, 1:3].abs().max()) == 0.0, "the edge lies between the blocks of the finer levels"
    assert torch.allclose(made[0, 3], torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_has_the_channels_that_are_promised(size, channels):
    made = middle_domains(torch.rand(2, channels, *size))
    assert list(made) == list(DOMAINS)
    for name, image in made.items():
        assert tuple(image.shape) == (2, domain_channels(name, channels), *size) and bool(image.isfinite().all())


def test_an_unknown_domain_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'emboss'"):
        middle_domains(images(), ("embos",))
