from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.adapt import EATA
from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.errors import ModelError
from homeostat.core.fork import versions
from homeostat.core.online import Online
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn.optimizers import Adam
from homeostat.tune import LoRA, LoRALayer, fold


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(5, 3), torch.randn(4, 5)),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), torch.randn(3, 2, 9, 9)),
        (nn.Conv1d(2, 4, 3, dilation=2, bias=False), torch.randn(3, 2, 12)),
    ],
)
def test_the_correction_is_what_the_equation_says(layer, x):
    tuned = LoRALayer(layer, rank=2, alpha=6.0)
    tuned.start(torch.Generator().manual_seed(0))
    assert torch.equal(tuned(x), layer(x))
    with torch.no_grad():
        tuned.up.normal_()
    by_hand = layer.weight + 3.0 * torch.einsum(
        "or...,ri...->oi...", tuned.up.flatten(1), tuned.down.flatten(1)
    ).view_as(layer.weight)
    moved = torch.func.functional_call(layer, {"weight": by_hand}, x)
    assert torch.allclose(tuned(x), moved, atol=1e-5)
    assert torch.allclose(fold(tuned)(x), tuned(x), atol=1e-5)
    assert torch.linalg.matrix_rank(tuned.correction().flatten(1), rtol=1e-5) <= 2


def test_only_the_corrections_train_and_the_base_stays_shared():
    net, world = small_network(), small_world()
    before = versions(net)
    tuned = LoRA(rank=2, convolutions=True)(net)
    after = Fit(recipe=Recipe(epochs=5, batch=16, optimizer=Adam(lr=0.02)))(tuned, world)
    assert versions(net) == before
    assert after[0].layer.weight.data_ptr() == net[0].weight.data_ptr()
    loss = [nn.functional.cross_entropy(m(world.source.load().x), world.source.load().y) for m in (tuned, after)]
    assert loss[1] < loss[0]


def test_a_lora_layer_inside_another_remedy_comes_back_and_continues(tmp_path):
    net, world = small_network(), small_world()
    tuned = Fit(recipe=Recipe(batch=16))(LoRA(rank=2, convolutions=True)(net), world)
    online = EATA(fisher_alpha=0.0, margin=1.0)(tuned, world)
    assert isinstance(online, Online)
    batches = [b.x for b in world.target.batches(12)]
    online.observe(batches[0])
    save(online, tmp_path / "a")
    back = load(tmp_path / "a")
    for x in batches[1:]:
        assert torch.equal(back.observe(x), online.observe(x))
    assert isinstance(back.model[0], LoRALayer)


def test_transformers_models_are_corrected_folded_and_rebuilt(tmp_path):
    transformers = pytest.importorskip("transformers")
    from homeostat.nn import Transformers

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    torch.manual_seed(0)
    net = Transformers(transformers.BertForSequenceClassification(config)).eval()
    x = {"input_ids": torch.randint(0, 30, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    tuned = LoRA(rank=2, layers=("*query", "*value"))(net)
    assert torch.equal(tuned(x), net(x))
    y = torch.tensor([0, 1, 2, 0])
    after = Fit(recipe=Recipe(epochs=3, batch=2, optimizer=Adam(lr=0.01)))(tuned, World(source=(x, y)))
    assert not torch.equal(after(x), net(x))
    save(after, tmp_path / "a")
    back = load(tmp_path / "a", verify=True)
    assert torch.equal(back(x), after(x))
    assert sum(isinstance(m, LoRALayer) for m in back.modules()) == 4
    assert torch.allclose(fold(back)(x), after(x), atol=1e-5)
    assert sum(p.numel() for p in back.parameters() if p.requires_grad) == 4 * 2 * 2 * 16


@pytest.mark.parametrize("remedy", [LoRA(rank=2), LoRA(rank=2, convolutions=True)])
def test_keeps_all_promises_of_a_remedy(remedy):
    check_remedy(remedy)


def test_layers_that_are_not_there_and_grouped_convolutions_are_refused():
    with pytest.raises(ModelError, match="no Linear layer matches"):
        LoRA(layers=("decoder.*",))(small_network())
    with pytest.raises(ModelError, match="one group"):
        LoRA(convolutions=True)(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))
    with pytest.raises(ModelError, match="no low-rank"):
        fold(small_network())
