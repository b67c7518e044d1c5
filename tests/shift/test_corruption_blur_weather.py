"""Blurs and weather against slow derivations with NumPy and SciPy, pixel by pixel where need be.

The random numbers are taken from a `Draw` of the same seed and ids, so the two must agree to rounding.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.shift import corruption as c
from homeostat.shift.blur import disk
from homeostat.shift.weather import frost_layer

IDS = (5, 11)
LUMA = np.array([0.299, 0.587, 0.114])


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


def nearly_all_close(actual: Tensor, expected: np.ndarray) -> None:
    """Equal but for a few values that fell on the other side of a grey level inside the computation."""
    difference = np.abs(actual.double().numpy() - expected)
    assert difference.max() < 2.1 / 255
    assert (difference > 1e-5).mean() < 0.02


def cut(x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(x * 255 + 1e-4), 0, 255) / 255


@pytest.mark.parametrize("sigma", [0.4, 1.0, 6.0])
def test_gaussian_blur_is_scipys(sigma):
    x = images(17, 20)
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    close(c.gaussian_blur(x, draw(), sigma), expected)


def disk_by_hand(radius: float, softness: float) -> np.ndarray:
    reach, smooth = (8, 1) if radius <= 8 else (int(radius), 2)
    grid = np.array(
        [[float(x * x + y * y <= radius**2) for x in range(-reach, reach + 1)] for y in range(-reach, reach + 1)]
    )
    bell = np.exp([-0.5 * (i / softness) ** 2 for i in range(-smooth, smooth + 1)])
    return ndimage.correlate(grid / grid.sum(), np.outer(bell, bell) / bell.sum() ** 2, mode="mirror")


@pytest.mark.parametrize(("radius", "softness"), [(0.4, 0.5), (1.5, 0.1), (3.0, 0.1), (8.0, 0.5), (10.0, 0.5)])
def test_defocus_blur_is_a_correlation_with_a_soft_disk(radius, softness):
    x, kernel = images(25, 30), disk_by_hand(radius, softness)
    expected = ndimage.correlate(x.double().numpy(), kernel[None, None], mode="mirror")
    close(c.defocus_blur(x, draw(), radius, softness), expected)
    assert float(disk(radius, softness).sum()) == pytest.approx(kernel.sum(), abs=1e-6)


@pytest.mark.parametrize(("sigma", "reach", "sweeps"), [(0.05, 1, 1), (0.7, 1, 2), (1.0, 2, 3), (1.5, 4, 2)])
def test_glass_blur_copies_one_pixel_after_the_other(sigma, reach, sweeps):
    height, width = 17, 14
    x = images(height, width)
    offsets = draw().integers(-reach, reach, sweeps, height - 2 * reach, width - 2 * reach, 2).numpy()
    expected = cut(ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest"))
    for b in range(2):
        for sweep in range(sweeps):
            moves = iter(offsets[b, sweep].reshape(-1, 2))
            for i in range(height - reach, reach, -1):
                for j in range(width - reach, reach, -1):
                    dx, dy = next(moves)
                    expected[b, :, i, j] = expected[b, :, i + dy, j + dx]
            assert next(moves, None) is None
    expected = ndimage.gaussian_filter(expected, (0, 0, sigma, sigma), mode="nearest")
    nearly_all_close(c.glass_blur(x, draw(), sigma, reach, sweeps), expected)


def trail_by_hand(x: np.ndarray, angle: float, radius: int, sigma: float) -> np.ndarray:
    """`x [channels, height, width]` blurred along `angle` in degrees, a pixel at a time."""
    _, height, width = x.shape
    weights = np.exp([-0.5 * (i / sigma) ** 2 for i in range(2 * radius + 1)])
    weights /= weights.sum()
    out = np.zeros_like(x)
    for i, j in np.ndindex(height, width):
        for step, weight in enumerate(weights):
            row = i + math.ceil(step * math.sin(math.radians(angle)) - 0.5)
            column = j + math.ceil(step * math.cos(math.radians(angle)) - 0.5)
            out[:, i, j] += weight * x[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
    return out


def test_motion_blur_is_a_trail_at_an_angle_of_its_own():
    x = images(13, 18)
    angles = draw().uniform().double().numpy() * 90 - 45
    expected = np.stack([trail_by_hand(a, b, 6, 1.5) for a, b in zip(x.double().numpy(), angles, strict=True)])
    close(c.motion_blur(x, draw(), 6, 1.5), expected)


def zoom_by_hand(x: np.ndarray, factor: float, trim: bool) -> np.ndarray:
    """The middle of `x [..., height, width]` enlarged by SciPy."""
    for axis in (-2, -1):
        side = x.shape[axis]
        kept = math.ceil(side / factor)
        middle = np.take(x, range((side - kept) // 2, (side - kept) // 2 + kept), axis)
        factors = [1.0] * x.ndim
        factors[axis] = factor
        x = np.asarray(ndimage.zoom(middle, factors, order=1, mode="nearest"))
        if trim:
            start = (x.shape[axis] - side) // 2
            x = np.take(x, range(start, start + side), axis)
    return x


@pytest.mark.parametrize("trim", [True, False])
def test_zoom_blur_is_the_mean_of_scipys_zooms(trim):
    x = images(32, 27)
    a, factors = x.double().numpy(), (1.0, 1.07, 1.25, 1.4)
    layers = [zoom_by_hand(a, f, trim)[:, :, :32, :27] for f in factors]
    close(c.zoom_blur(x, draw(), factors, trim), (a + sum(layers)) / 5)


@pytest.mark.parametrize("trim", [True, False])
def test_snow_is_a_trailing_layer_of_flakes_and_its_half_turn(trim):
    height, width = 20, 23
    x, numbers = images(height, width), draw()
    layers = (numbers.normal(height, width) * 0.3 + 0.4).double().numpy()
    angles = numbers.uniform().double().numpy() * 90 - 135
    expected = []
    for a, layer, angle in zip(x.double().numpy(), layers, angles, strict=True):
        layer = zoom_by_hand(layer, 2.5, trim)
        layer = np.clip(np.where(layer < 0.6, 0, layer), 0, 1)
        layer = trail_by_hand((cut(layer) if trim else layer)[None], angle, 4, 3.0)[0]
        layer = (cut(layer) if trim else np.round(layer * 255) / 255)[:height, :width]
        grey = np.tensordot(LUMA, a, 1)
        expected.append(0.7 * a + 0.3 * np.maximum(a, 1.5 * grey + 0.5) + layer + layer[::-1, ::-1])
    nearly_all_close(c.snow(x, draw(), 0.4, 0.3, 2.5, 0.6, 4, 3.0, 0.7, trim), np.stack(expected))


def clouds_by_hand(uniform: np.ndarray, side: int, decay: float) -> np.ndarray:
    """Diamond-square a point at a time, on a square whose edges meet."""
    cloud, numbers = np.zeros((side, side)), iter(uniform)
    step, amplitude = side, 100.0
    while step > 1:
        half, corners = step // 2, [(i, j) for i in range(0, side, step) for j in range(0, side, step)]
        for i, j in corners:
            around = [cloud[(i + a) % side, (j + b) % side] for a in (0, step) for b in (0, step)]
            cloud[i + half, j + half] = sum(around) / 4 + (2 * next(numbers) - 1) * amplitude**2
        for down, right in ((0, half), (half, 0)):
            for i, j in corners:
                y, x = i + down, j + right
                near = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                around = [cloud[p % side, q % side] for p, q in near]
                cloud[y, x] = sum(around) / 4 + (2 * next(numbers) - 1) * amplitude**2
        step, amplitude = half, amplitude / decay
    assert next(numbers, None) is None
    return (cloud - cloud.min()) / np.ptp(cloud)


def test_fog_is_diamond_square_clouds():
    x = images(11, 14) * 0.7
    numbers = draw().uniform(16 * 16 - 1).double().numpy()
    expected = []
    for a, n in zip(x.double().numpy(), numbers, strict=True):
        peak = a.max()
        expected.append((a + 1.5 * clouds_by_hand(n, 16, 1.7)[:11, :14]) * peak / (peak + 1.5))
    close(c.fog(x, draw(), 1.5, 1.7), np.stack(expected))


def test_a_sheet_of_frost_is_ridged_noise_a_pixel_at_a_time():
    height, width, grain = 7, 9, 5.0
    numbers = draw()
    table, angle, level = (
        t.double().numpy() for t in (numbers.uniform(5, 32, 32), numbers.uniform(5), numbers.uniform())
    )
    expected = np.zeros((2, 3, height, width))
    for b, y, x in np.ndindex(2, height, width):
        total = 0.0
        for octave in range(5):
            cell, turn = max(1.0, grain / 2**octave), angle[b, octave] * math.pi
            row = (y * math.cos(turn) - x * math.sin(turn)) / cell
            column = (x * math.cos(turn) + y * math.sin(turn)) / (3 * cell)
            i, j = math.floor(row), math.floor(column)
            p, q = (t * t * (3 - 2 * t) for t in (row - i, column - j))
            at = [table[b, octave, (i + a) % 32, (j + d) % 32] for a in (0, 1) for d in (0, 1)]
            noise = (at[0] * (1 - q) + at[1] * q) * (1 - p) + (at[2] * (1 - q) + at[3] * q) * p
            total += (1 - abs(2 * noise - 1)) ** 2
        shade = 0.42 + 0.44 * level[b] + (0.21 - 0.13 * level[b]) * (total - 0.47 * 5)
        expected[b, :, y, x] = np.clip([shade - 0.07, shade + 0.01, shade + 0.06], 0, 1)
    close(frost_layer(draw(), height, width, grain), expected, 2e-5)
    x = images(height, width)
    close(c.frost(x, draw(), 0.7, 0.6, grain), 0.7 * x.double().numpy() + 0.6 * expected, 2e-5)
    grey = images(height, width, 1)
    layer = np.tensordot(expected, LUMA, (1, 0))[:, None]
    close(c.frost(grey, draw(), 0.7, 0.6, grain), 0.7 * grey.double().numpy() + 0.6 * layer, 2e-5)


def test_frost_is_bluish_and_as_bright_and_varied_as_the_photographs_it_stands_for():
    for side, grain in ((96, 32.0), (32, 6.4)):
        sheets = frost_layer(Draw(0, torch.arange(200)), side, side, grain)
        red, green, blue = sheets.mean((0, 2, 3)).tolist()
        assert red < green < blue
        shade = sheets.mean(1)
        assert float(shade.mean()) == pytest.approx(0.64, abs=0.03)
        assert float(shade.mean((1, 2)).std()) == pytest.approx(0.13, abs=0.02)
        assert float(shade.std((1, 2)).mean()) == pytest.approx(0.09, abs=0.015)
