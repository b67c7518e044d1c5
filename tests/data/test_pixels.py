"""8-bit images in memory."""

from __future__ import annotations

import pytest
import torch

from homeostat.core.data import UNKNOWN
from homeostat.core.errors import DtypeError, InputError
from homeostat.data.pixels import Pixels

PIXELS = torch.randint(256, (7, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def test_values_are_exactly_the_quotient_and_the_stored_bytes_stay():
    before = PIXELS.clone()
    batch = Pixels(PIXELS, LABELS).load()
    assert torch.equal(batch.x, PIXELS.to(torch.float32) / 255)
    batch.x.zero_()
    assert torch.equal(PIXELS, before)


def test_any_positions_come_in_the_order_asked_for():
    data = Pixels(PIXELS, LABELS, id=torch.arange(7) + 100)
    for positions in ([2, 3, 4], [5, 0, 5], [6], []):
        batch = data.fetch(torch.tensor(positions, dtype=torch.int64))
        assert torch.equal(torch.as_tensor(batch.x) * 255, PIXELS[positions].float())
        assert batch.id.tolist() == [100 + p for p in positions]


def test_batches_continue_from_any_start():
    data = Pixels(PIXELS, LABELS)
    ids = [batch.id.tolist() for batch in data.batches(3, start=2)]
    assert ids == [[2, 3, 4], [5, 6]]


def test_the_fingerprint_follows_the_content():
    same = Pixels(PIXELS.clone(), LABELS.clone())
    assert Pixels(PIXELS, LABELS).fingerprint() == same.fingerprint()
    other = PIXELS.clone()
    other[3, 0, 0, 0] += 1
    different = [Pixels(other, LABELS), Pixels(PIXELS), Pixels(PIXELS, LABELS, top=16), Pixels(PIXELS, LABELS.flip(0))]
    assert len({d.fingerprint() for d in (same, *different)}) == 5


def test_unknown_labels_pass_and_others_must_fit_the_classes():
    assert Pixels(PIXELS, torch.full((7,), UNKNOWN), ("a",)).load().y.tolist() == [UNKNOWN] * 7
    with pytest.raises(InputError, match=r"outside 0\.\.1: \[2\]"):
        Pixels(PIXELS, LABELS, ("a", "b"))
    with pytest.raises(InputError, match=r"\[-1\]"):
        Pixels(PIXELS, LABELS - 1)


def test_wrong_types_and_shapes_are_refused():
    with pytest.raises(DtypeError, match="uint8"):
        Pixels(PIXELS.float())
    with pytest.raises(InputError, match="channels, height, width"):
        Pixels(PIXELS[:, 0])
    with pytest.raises(InputError, match="7 samples"):
        Pixels(PIXELS, LABELS[:5])
    with pytest.raises(DtypeError, match="integers"):
        Pixels(PIXELS, LABELS.float())
    with pytest.raises(InputError, match="ids"):
        Pixels(PIXELS, id=torch.arange(3))
