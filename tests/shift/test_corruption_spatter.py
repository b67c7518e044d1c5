"""Spatter and the integer image operations behind it, against derivations pixel by pixel."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.shift.spatter import canny, chamfer_distance, equalize, spatter

IDS = (5, 11, 12)
WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
GRAY = np.array([0.2989, 0.5870, 0.1140])


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Three 8-bit images of smooth blobs on black."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, height, width)), (0, 1.5, 1.5))
    return np.clip(np.where(noise < 0.05, 0, noise * 600), 0, 255).astype(np.int64)


def canny_by_hand(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Edges with angles in degrees and a flood from the strong ones."""
    dx = ndimage.correlate(image, np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]), mode="nearest")
    dy = ndimage.correlate(image, np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]), mode="nearest")
    size = np.pad(abs(dx) + abs(dy), 1)
    ridge = np.zeros(image.shape, bool)
    for i, j in np.ndindex(*image.shape):
        here = size[i + 1, j + 1]
        angle = math.degrees(math.atan2(abs(dy[i, j]), abs(dx[i, j])))
        if angle < 22.5:
            ridge[i, j] = here > size[i + 1, j] and here >= size[i + 1, j + 2]
        elif angle > 67.5:
            ridge[i, j] = here > size[i, j + 1] and here >= size[i + 2, j + 1]
        else:
            side = -1 if dx[i, j] * dy[i, j] < 0 else 1
            ridge[i, j] = here > size[i, j + 1 - side] and here > size[i + 2, j + 1 + side]
    size = size[1:-1, 1:-1]
    edges, todo = np.zeros(image.shape, bool), list(zip(*np.nonzero(ridge & (size > high)), strict=True))
    while todo:
        i, j = todo.pop()
        inside = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
        if inside and not edges[i, j] and ridge[i, j] and size[i, j] > low:
            edges[i, j] = True
            todo += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return edges


def distance_by_hand(edges: np.ndarray, limit: int) -> np.ndarray:
    """Dijkstra's shortest paths by chess moves."""
    cost = {1: 1.0, 2: 1.4, 5: 2.1969}
    moves = [(a, b) for a in range(-2, 3) for b in range(-2, 3) if a * a + b * b in cost]
    distance = np.full(edges.shape, float(limit))
    heap = [(0.0, i, j) for i, j in zip(*np.nonzero(edges), strict=True)]
    for _, i, j in heap:
        distance[i, j] = 0
    while heap:
        reached, i, j = heapq.heappop(heap)
        if reached > distance[i, j]:
            continue
        for a, b in moves:
            y, x, longer = i + a, j + b, reached + cost[a * a + b * b]
            if 0 <= y < edges.shape[0] and 0 <= x < edges.shape[1] and longer < distance[y, x]:
                distance[y, x] = longer
                heapq.heappush(heap, (longer, y, x))
    return distance


def equalize_by_hand(image: np.ndarray) -> np.ndarray:
    lowest = image.min()
    above = (image > lowest).sum()
    if above == 0:
        return image
    table = {
        v: round(float(np.float32(((image > lowest) & (image <= v)).sum()) * np.float32(255 / above)))
        for v in range(256)
    }
    return np.vectorize(table.get)(image)


def ints(image: np.ndarray) -> Tensor:
    return torch.tensor(image)


@pytest.mark.parametrize("seed", [0, 1])
def test_canny_finds_the_edges_of_the_slow_derivation(seed):
    images = blobs(26, 31, seed)
    edges = canny(ints(images), 50, 150).numpy()
    expected = np.stack([canny_by_hand(image, 50, 150) for image in images])
    assert expected.any() and (edges == expected).all()
    assert (expected != np.stack([canny_by_hand(image, 150, 150) for image in images])).any()  # weak edges matter


def test_the_outline_of_a_square_is_its_edge():
    image = torch.zeros(1, 12, 12, dtype=torch.int64)
    image[:, 4:8, 4:8] = 200
    edges = canny(image, 50, 150)[0]
    assert edges.any(0).nonzero().flatten().tolist() == edges.any(1).nonzero().flatten().tolist()
    assert not edges[:3].any() and not edges[9:].any() and not edges[5:7, 5:7].any()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_chamfer_distance_is_the_shortest_path_of_chess_moves(count):
    rng = np.random.default_rng(count)
    edges = np.zeros((2, 23, 57), bool)
    for image in edges:
        image[rng.integers(0, 23, count), rng.integers(0, 57, count)] = True
    actual = chamfer_distance(torch.tensor(edges), 20).numpy()
    expected = np.stack([distance_by_hand(image, 20) for image in edges])
    np.testing.assert_allclose(actual, expected, atol=20 * 2**-16)


def test_equalising_spreads_the_levels_and_leaves_a_flat_image():
    images = blobs(14, 15)
    images[2] = 37
    expected = np.stack([equalize_by_hand(image) for image in images])
    assert (equalize(ints(images)).numpy() == expected).all()
    assert expected[0].max() == 255 and expected[0].min() == 0 and (expected[2] == 37).all()


def liquid_by_hand(height: int, width: int, mean: float, deviation: float, sigma: float) -> np.ndarray:
    layer = Draw(4, torch.tensor(IDS)).normal(height, width).double().numpy() * deviation + mean
    return ndimage.gaussian_filter(layer, (0, sigma, sigma), mode="nearest", truncate=4.0)


def images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sigma", "threshold"), [(1.0, 0.69), (2.0, 0.68)])
def test_water_is_a_relief_of_the_rims_of_the_liquid(sigma, threshold):
    height, width = 30, 27
    liquid = liquid_by_hand(height, width, 0.65, 0.3, sigma)
    liquid = np.clip(np.floor(np.where(liquid < threshold, 0, liquid) * 255), 0, 255).astype(np.int64)
    shine = []
    for image in liquid:
        distance = distance_by_hand(canny_by_hand(image, 50, 150), 20)
        smooth = ndimage.uniform_filter(distance, 3, mode="mirror")
        even = equalize_by_hand(np.floor(smooth + 1e-4).astype(np.int64))
        relief = ndimage.correlate(even, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
        relief = np.clip(relief, 0, 255).astype(float)
        relief = np.round(ndimage.uniform_filter(relief, 3, mode="mirror"))
        shine.append(image * relief / (image * relief).max())
    shine = 0.6 * np.stack(shine)[:, None]
    x = images(height, width)
    actual = spatter(x, Draw(4, torch.tensor(IDS)), 0.65, 0.3, sigma, threshold, 0.6, False).double().numpy()
    np.testing.assert_allclose(actual, x.double().numpy() + shine * WATER[:, None, None], atol=1e-6)
    gray = images(height, width, 1)
    actual = spatter(gray, Draw(4, torch.tensor(IDS)), 0.65, 0.3, sigma, threshold, 0.6, False).double().numpy()
    np.testing.assert_allclose(actual, gray.double().numpy() + shine * (WATER @ GRAY), atol=1e-6)


def test_no_liquid_no_water():
    x = images(16, 16)
    assert torch.equal(spatter(x, Draw(4, torch.tensor(IDS)), 0.1, 0.01, 1.0, 0.69, 0.6, False), x)


@pytest.mark.parametrize("strength", [0.6, 1.5])
def test_mud_covers_where_the_liquid_is_dense(strength):
    height, width = 22, 25
    liquid = liquid_by_hand(height, width, 0.65, 0.3, 1.0)
    mask = ndimage.gaussian_filter((liquid > 0.65).astype(float), (0, strength, strength), mode="nearest")
    mask = np.where(mask < 0.8, 0, mask)[:, None]
    assert 0.05 < (mask > 0).mean() < 0.95
    for channels, color in ((3, MUD[:, None, None]), (1, MUD @ GRAY)):
        x = images(height, width, channels)
        actual = spatter(x, Draw(4, torch.tensor(IDS)), 0.65, 0.3, 1.0, 0.65, strength, True).double().numpy()
        np.testing.assert_allclose(actual, x.double().numpy() * (1 - mask) + mask * color, atol=1e-6)
