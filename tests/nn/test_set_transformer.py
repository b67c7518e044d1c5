from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import InputError, SpecError
from homeostat.nn import DatasetEncoder, SetTransformer
from homeostat.nn.set_transformer import SetBlock


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_block_equals_its_equations_with_pytorchs_own_attention():
    block = SetBlock(8, 2).double()
    queries, keys = random(3, 4, 8), random(3, 5, 8, seed=1)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.query.weight, block.key.weight, block.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.query.bias, block.key.bias, block.value.bias]))
        attention.out_proj.weight.copy_(block.out.weight)
        attention.out_proj.bias.copy_(block.out.bias)
    h = nn.functional.layer_norm(queries + attention(queries, keys, keys)[0], (8,))
    wanted = nn.functional.layer_norm(h + block.down(block.up(h).relu()), (8,))
    assert torch.allclose(block(queries, keys), wanted)


@pytest.mark.parametrize("points", [0, 3])
def test_neither_order_nor_repetition_of_the_whole_set_matters_but_its_elements_do(points):
    net = SetTransformer(3, 4, width=8, points=points).double()
    x = random(2, 6, 3)
    out = net(x)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(net(x[:, order]), out) and torch.allclose(net(x.repeat(1, 2, 1)), out)
    assert not torch.allclose(net(x[:, :5]), out, atol=1e-3) and torch.allclose(net(x[1:]), out[1:])


def test_a_data_set_is_read_class_by_class_and_classes_have_their_place():
    net = DatasetEncoder(3, 2, outputs=5, width=8).double()
    x = random(1, 2, 4, 3)
    out = net(x)
    shuffled = torch.stack([x[0, 0].flip(0), x[0, 1]])[None]
    assert torch.allclose(net(shuffled), out)
    mixed = x.clone()
    mixed[0, 0, 0], mixed[0, 1, 0] = x[0, 1, 0], x[0, 0, 0]
    assert not torch.allclose(net(x.flip(1)), out, atol=1e-3) and not torch.allclose(net(mixed), out, atol=1e-3)


def test_bad_sets_and_widths_are_refused():
    net = SetTransformer(3, 4, width=8)
    for x in (torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.zeros(2, 5, 4)):
        with pytest.raises(InputError, match="sets have shape"):
            net(x)
    with pytest.raises(SpecError, match="multiple of heads"):
        SetTransformer(3, 4, width=6)
