from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import ModelError
from homeostat.nn import MLP, CausalTransformer, SmallViT, resized, sizes_of, stack_of
from homeostat.nn.transformers_models import Transformers


def bert(**changes: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=6, **{**sizes, **changes})
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("net", [CausalTransformer(7, 6, 16, 3), SmallViT(size=8, width=16, depth=3)])
def test_a_network_is_built_again_in_another_size_with_its_other_arguments(net):
    other = resized(net.double(), width=8, heads=2, depth=5, seed=4)
    assert sizes_of(other) == (8, 2, 5) and stack_of(other) == "blocks" and len(other.blocks) == 5
    kept = {k: v for k, v in net.arguments().items() if k not in ("width", "heads", "depth", "seed")}
    assert {k: other.arguments()[k] for k in kept} == kept and other.seed == 4
    assert next(other.parameters()).dtype == torch.float64 and sizes_of(net) == (16, 4, 3)


def test_a_transformers_model_is_built_from_its_configuration_without_touching_the_global_generator():
    net = bert()
    state = torch.get_rng_state()
    other = resized(net, width=16, heads=4, depth=3)
    assert torch.equal(state, torch.get_rng_state())
    assert sizes_of(other) == (16, 4, 3) and stack_of(other) == "bert.encoder.layer"
    assert other.config.intermediate_size == 24 and net.config.intermediate_size == 12
    assert sizes_of(resized(Transformers(net), depth=1)).depth == 1


def test_networks_without_known_sizes_or_with_two_stacks_are_refused():
    with pytest.raises(ModelError, match="no width, heads and depth"):
        resized(MLP(4), depth=2)
    net = CausalTransformer(7, 6, 16, 2)
    net.more = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ModelError, match=r"there are 2 \(blocks, more\)"):
        stack_of(net)
    del net.more
    net.blocks[0].up = nn.Linear(16, 3)
    with pytest.raises(ModelError, match="there is none"):
        stack_of(net)
