from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import ModelError
from homeostat.nn import with_new_head


def test_a_new_head_reads_the_same_features_says_nothing_yet_and_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made, x = with_new_head(net, 5), torch.randn(6, 3).double()
    assert made(x).dtype == torch.float64 and torch.equal(made(x), torch.zeros(6, 5).double())
    with torch.no_grad():
        made[2].weight.copy_(torch.arange(20.0).view(5, 4))
        made[0].weight.add_(1)
    assert torch.allclose(made(x), made[1](made[0](x)) @ torch.arange(20.0).view(5, 4).double().T)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_network_that_is_one_linear_layer_is_replaced_and_others_are_refused():
    assert with_new_head(nn.Linear(3, 2), 7)(torch.randn(1, 3)).shape == (1, 7)
    with pytest.raises(ModelError, match="linear"):
        with_new_head(nn.Sequential(nn.ReLU()), 2)
