"""Noise, color and digital corruptions against slow derivations with NumPy, SciPy, colorsys and Pillow.

The random numbers are taken from a `Draw` of the same seed and ids, so the two must agree to rounding.
"""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.shift import corruption as c

IDS = (5, 11)


def images(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Two 8-bit images: a smooth one and noise."""
    rng = np.random.default_rng(seed)
    noise = rng.random((2, channels, height, width))
    noise[0] = ndimage.gaussian_filter(noise[0], (0, 3, 3), mode="wrap")
    noise[0] = (noise[0] - noise[0].min()) / np.ptp(noise[0])
    return torch.tensor(np.round(noise * 255) / 255).float()


def draw() -> Draw:
    return Draw(4, torch.tensor(IDS))


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=0, atol=tolerance)


def test_noises_are_their_formulas():
    x = images(9, 12)
    a = x.double().numpy()
    n = draw().normal(3, 9, 12).double().numpy()
    close(c.gaussian_noise(x, draw(), 0.3), a + 0.3 * n)
    close(c.speckle_noise(x, draw(), 0.3), a + a * 0.3 * n)
    close(c.shot_noise(x, draw(), 25.0), draw().poisson(x * 25).numpy() / 25)
    u = draw().uniform(3, 9, 12).numpy()
    close(c.impulse_noise(x, draw(), 0.4), np.where(u < 0.2, 0.0, np.where(u < 0.4, 1.0, a)))


def test_noises_have_the_moments_of_their_distributions():
    x = torch.full((4, 3, 64, 64), 0.4)
    ids = Draw(0, torch.arange(4))
    shot = c.shot_noise(x, ids, 25.0)
    assert float(shot.mean()) == pytest.approx(0.4, abs=0.003)
    assert float(shot.var()) == pytest.approx(0.4 / 25, rel=0.03)
    salted = c.impulse_noise(x, ids, 0.2)
    assert float((salted == 1).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float((salted == 0).float().mean()) == pytest.approx(0.1, abs=0.005)


def test_brightness_adds_to_the_value_of_hsv():
    x = images(6, 7)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 0.4  # black and grey
    expected = x.double().numpy().copy()
    for b, i, j in np.ndindex(2, 6, 7):
        hue, saturation, value = colorsys.rgb_to_hsv(*expected[b, :, i, j])
        expected[b, :, i, j] = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.3))
    close(c.brightness(x, draw(), 0.3), expected)


@pytest.mark.parametrize(("factor", "offset"), [(0.3, 0.0), (2.0, 0.1), (20.0, 0.2)])
def test_saturate_scales_the_saturation_of_hsv(factor, offset):
    x = images(6, 7)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 0.4
    expected = x.double().numpy().copy()
    for b, i, j in np.ndindex(2, 6, 7):
        hue, saturation, value = colorsys.rgb_to_hsv(*expected[b, :, i, j])
        expected[b, :, i, j] = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor + offset), value)
    close(c.saturate(x, draw(), factor, offset), expected)


def test_contrast_pulls_each_channel_towards_its_mean():
    x = images(9, 8)
    a = x.double().numpy()
    mean = a.mean((2, 3), keepdims=True)
    close(c.contrast(x, draw(), 0.3), mean + 0.3 * (a - mean))


@pytest.mark.parametrize(("amplitude", "smoothness", "jitter"), [(0.1, 0.05, 0.0), (0.0, 0.0, 0.08), (0.05, 0.2, 0.07)])
def test_elastic_transform_is_an_affine_map_and_a_smooth_displacement(amplitude, smoothness, jitter):
    height, width = 24, 19
    x, numbers = images(height, width), draw()
    points = numbers.uniform(3, 2).double().numpy() * 2 - 1 if jitter else np.zeros((2, 3, 2))
    fields = [numbers.uniform(height, width).double().numpy() * 2 - 1 for _ in range(2)] if amplitude else []
    y, z = np.mgrid[:height, :width].astype(float)
    expected = []
    for b, a in enumerate(x.double().numpy()):
        arm, middle = min(height, width) // 3, np.array([height // 2, width // 2])
        still = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
        moved = still + points[b] * jitter * min(height, width)
        # Points are (x, y). `matrix` takes a moved point, with a 1 appended, back to its place at rest.
        matrix = np.linalg.solve(np.column_stack([moved, np.ones(3)]), still).T
        column, row = np.tensordot(matrix, np.stack([z, y, np.ones_like(y)]), 1)
        a = np.stack([ndimage.map_coordinates(channel, [row, column], order=1, mode="mirror") for channel in a])
        if fields:
            sigma = (smoothness * height, smoothness * width)
            along, down = (
                ndimage.gaussian_filter(f[b], sigma, mode="reflect", truncate=3) * amplitude * height for f in fields
            )
            where = [y + down, z + along]
            a = np.stack([ndimage.map_coordinates(channel, where, order=1, mode="reflect") for channel in a])
        expected.append(a)
    close(c.elastic_transform(x, draw(), amplitude, smoothness, jitter), np.stack(expected), 1e-5)


@pytest.mark.parametrize("scale", [0.95, 0.65, 0.6, 0.3, 0.25])
def test_pixelate_is_pillows_box_filter_to_the_bit(scale):
    x = images(37, 32)
    expected = []
    for a in (x * 255).round().to(torch.uint8).movedim(1, -1).numpy():
        small = Image.fromarray(a).resize((int(32 * scale), 37), Image.Resampling.BOX)
        small = small.resize((int(32 * scale), int(37 * scale)), Image.Resampling.BOX)
        expected.append(np.asarray(small.resize((32, 37), Image.Resampling.NEAREST)))
    actual = (c.pixelate(x, draw(), scale) * 255).round().to(torch.uint8).movedim(1, -1)
    assert (actual.numpy() == np.stack(expected)).all()


LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)  # ITU-T T.81, table K.1


@pytest.mark.parametrize("quality", [7, 25, 50, 80])
def test_jpeg_of_a_grey_image_is_the_quantised_cosine_transform(quality):
    x = images(24, 16, channels=1)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((LUMINANCE * scale + 50) // 100, 1, 255)
    expected = x.double().numpy() * 255
    for b, i, j in np.ndindex(2, 3, 2):
        block = expected[b, 0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        levels = np.round(fft.dctn(block - 128, norm="ortho") / table)
        block[:] = np.clip(np.round(np.asarray(fft.idctn(levels * table, norm="ortho")) + 128), 0, 255)
    actual = (c.jpeg_compression(x, draw(), quality) * 255).double().numpy()
    # The codec transforms in fixed point, so a coefficient next to a half may round the other way.
    assert (np.abs(actual - expected) <= 1.01).mean() > 0.95
    assert np.abs(actual - expected).mean() < 0.5


def test_jpeg_keeps_the_order_of_the_channels_and_of_the_images():
    x = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.8]])[:, :, None, None].expand(-1, -1, 16, 24)
    assert float((c.jpeg_compression(x, draw(), 90) - x).abs().max()) < 4 / 255
