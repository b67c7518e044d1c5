"""The sensor: the frozen network's outputs and features, read once for the same data."""

from __future__ import annotations

import torch
from torch import nn

from homeostat.core.data import Tensors
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.loop.sensor import Sensor


class Counted(nn.Linear):
    """A linear layer that counts its passes."""

    passes = 0

    def forward(self, input):
        type(self).passes += 1
        return super().forward(input)


def data(seed: int = 0) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    return Tensors(torch.randn(70, 5, generator=g), torch.randint(3, (70,), generator=g))


def test_data_from_before_are_read_once_and_again_when_they_or_the_network_change(tmp_path):
    torch.manual_seed(0)
    net, said = nn.Sequential(nn.Linear(5, 4), Counted(4, 3)), list[str]()
    run = Run(scratch=tmp_path, watch=lambda event: said.append(event.name))
    Counted.passes = 0
    first = Sensor(net, Classify()).read_kept(data(), "source", run)
    assert Counted.passes == 1
    second = Sensor(net, Classify()).read_kept(data(), "source", run)
    assert Counted.passes == 1, "read from the folder"
    assert torch.equal(first.logits, second.logits) and torch.equal(first.labels, second.labels)
    assert torch.equal(first.id, second.id) and torch.equal(first.features, second.features)
    Sensor(net, Classify()).read_kept(data(1), "source", run)
    with torch.no_grad():
        net[1].bias += 1
    third = Sensor(net, Classify()).read_kept(data(), "source", run)
    assert Counted.passes == 3 and torch.allclose(third.logits, first.logits + 1)
    for path in (tmp_path / "outputs").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    fourth = Sensor(net, Classify()).read_kept(data(), "source", run)
    assert Counted.passes == 4 and torch.equal(fourth.logits, third.logits)
    assert said == ["outputs unreadable, computed again"]


def test_a_folder_that_cannot_be_written_keeps_nothing_and_stops_nothing(tmp_path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    said = list[str]()
    run = Run(scratch=tmp_path, watch=lambda event: said.append(event.name))
    found = Sensor(nn.Linear(5, 3), Classify()).read_kept(data(), "source", run)
    assert len(found) == 70 and said == ["outputs not kept"]
