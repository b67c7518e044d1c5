"""The loop in a user's own PyTorch loop, and over a user's loaders."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from homeostat.core.data import Batch
from homeostat.core.probe import read
from homeostat.core.world import World
from homeostat.loop import Loop, Plan
from homeostat.probe import Accuracy

PLAN = Plan(window=20)


def tensors(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=draws)
    return x, (x.sum(1) + 0.3 * torch.randn(count, generator=draws) > 0).long()


def trained() -> nn.Module:
    """A network trained as everybody trains one."""
    torch.manual_seed(0)
    net, loader = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        DataLoader(TensorDataset(*tensors(400, 0)), batch_size=40, shuffle=True),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(6):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net


def test_a_loader_is_a_world_and_a_stream(tmp_path):
    net, source = trained(), DataLoader(TensorDataset(*tensors(200, 1)), batch_size=32)
    x, y = tensors(190, 2)
    assert read([Accuracy()], net, World(held=source))[0].value > 0.8
    with Loop(net, World(source=source), [], tmp_path / "a", plan=PLAN) as loop:
        trace = loop.run(DataLoader(TensorDataset(x, y), batch_size=64), labels=5)
    with Loop(net, World(source=tensors(200, 1)), [], tmp_path / "b", plan=PLAN) as loop:
        straight = loop.run((x, y), labels=5)
    assert len(trace) == 10
    assert [e["accuracy"].value for e in trace] == [e["accuracy"].value for e in straight]


def test_serving_batch_by_batch_with_labels_that_come_late(tmp_path):
    net, (x, y) = trained(), tensors(100, 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with Loop(net, World(source=tensors(200, 1)), [], tmp_path / "store", plan=PLAN) as loop:
        for number, batch in enumerate(DataLoader(TensorDataset(x), batch_size=20)):
            ids = torch.arange(20 * number, 20 * number + 20)
            out = loop.predict(Batch(batch[0], id=ids))
            assert torch.allclose(out, net(batch[0]))
            loop.learn()
            loop.feedback(y[ids], ids)
        loop.step((x[:20], y[:20]))
        loop.step([x[20:40], y[20:40]])
        loop.step(x[40:60])
        assert loop.progress.at == 8
        seen = [
            row.content.get("labels", 0) for row in (*loop.store.rows("window"), *loop._rows) if row.kind == "window"
        ]
    assert sum(seen) == 100 + 40
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
