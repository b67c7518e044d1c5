from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.check import check_remedy, small_world
from homeostat.core.data import Tensors
from homeostat.core.errors import CheckpointError, InputError, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.task import Tokens
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.merge import LevelMaps, MultiLevel, coalesce, decoalesce, interpolate, v_cycle
from homeostat.nn import MLP, Adam, CausalTransformer, ResNet, SmallViT

TOKENS = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
SHORT = {name: Recipe(optimizer=Adam(lr=1e-3), batch=16) for name in ("down", "up", "last")}


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor at random, so that none hides behind zeros and ones."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * 0.5)
    return net


def language(width: int = 16, depth: int = 2, heads: int = 4, classes: int = 7, seed: int = 0) -> CausalTransformer:
    return shaken(CausalTransformer(classes, 6, width, depth, heads).double(), seed)  # type: ignore[return-value]


def head_map(groups: list[list[int]], size: int) -> Tensor:
    """F by the definition: an identity of the head's size for every member of a group, rows divided by their sum."""
    made = torch.zeros(len(groups) * size, sum(map(len, groups)) * size, dtype=torch.float64)
    for row, group in enumerate(groups):
        for column in group:
            made[row * size : (row + 1) * size, column * size : (column + 1) * size] = torch.eye(size)
    return made / made.sum(1, keepdim=True)


def rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(1, keepdim=True)


@pytest.mark.exact("S132")
@pytest.mark.parametrize("groups", [[[0, 2], [1, 3]], [[0, 1], [2, 3]], [[3], [0, 1, 2]]])
def test_coalescing_equals_the_matrix_products_of_the_paper_tensor_by_tensor(groups):
    net, depth = language(), [[0], [1]]
    small, maps = coalesce(net, groups, depth, embedding=2.0)
    F, F4 = head_map(groups, 4), head_map(groups, 16)
    assert maps.width == tuple(map(tuple, groups))
    before, after = net.state_dict(), small.state_dict()
    assert torch.allclose(after["tokens.weight"], before["tokens.weight"] @ F.T * 2)
    assert torch.allclose(after["positions.weight"], before["positions.weight"] @ F.T * 2)
    for name in ("query", "key", "value", "out"):
        name = f"blocks.1.attention.{name}"
        assert torch.allclose(after[f"{name}.weight"], F @ before[f"{name}.weight"] @ rows(F.T))
        assert torch.allclose(after[f"{name}.bias"], F @ before[f"{name}.bias"])
    assert torch.allclose(after["blocks.0.up.weight"], F4 @ before["blocks.0.up.weight"] @ rows(F.T))
    assert torch.allclose(after["blocks.0.down.weight"], F @ before["blocks.0.down.weight"] @ rows(F4.T))
    assert torch.allclose(after["blocks.0.norm2.weight"], F @ before["blocks.0.norm2.weight"])
    assert torch.allclose(after["linear.weight"], before["linear.weight"] @ rows(F.T))
    assert torch.equal(after["linear.bias"], before["linear.bias"])


@pytest.mark.exact("S132")
def test_widening_equals_the_matrix_products_of_the_paper_tensor_by_tensor():
    net, groups = language(), [[0, 2], [1, 3]]
    _, maps = coalesce(net, groups, "keep", embedding=2.0)
    small = language(width=8, heads=2, seed=3)
    T, T4 = rows(head_map(groups, 4).T), rows(head_map(groups, 16).T)
    before, after = small.state_dict(), decoalesce(small, net, maps).state_dict()
    assert torch.allclose(after["tokens.weight"], before["tokens.weight"] @ T.T * 0.5)
    assert torch.allclose(after["blocks.1.up.weight"], T4 @ before["blocks.1.up.weight"] @ rows(T.T))
    assert torch.allclose(after["blocks.1.down.weight"], T @ before["blocks.1.down.weight"] @ rows(T4.T))
    assert torch.allclose(after["blocks.1.norm1.bias"], T @ before["blocks.1.norm1.bias"])
    assert torch.allclose(after["linear.weight"], before["linear.weight"] @ rows(T.T))


@pytest.mark.exact("S132")
def test_blocks_of_a_group_are_averaged_and_come_back_as_copies():
    net = language(depth=4)
    small, maps = coalesce(net, "keep", [[0, 3], [1, 2]])
    before, after = net.state_dict(), small.state_dict()
    for name in ("attention.key.weight", "norm1.bias", "down.weight"):
        wanted = (before[f"blocks.0.{name}"] + before[f"blocks.3.{name}"]) / 2
        assert torch.allclose(after[f"blocks.0.{name}"], wanted)
    back = decoalesce(small, net, maps).state_dict()
    for large, number in enumerate((0, 1, 1, 0)):
        assert torch.equal(back[f"blocks.{large}.up.weight"], after[f"blocks.{number}.up.weight"])


@pytest.mark.parametrize("net", [language(), shaken(SmallViT(in_channels=1, size=8, width=16, depth=2).double())])
def test_a_widened_network_computes_what_the_small_one_does_and_coalesces_to_it(net):
    small, maps = coalesce(net, "half", "keep")
    shaken(small, 5)
    wide = decoalesce(small, net, maps)
    x = TOKENS if isinstance(net, CausalTransformer) else torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(wide(x), small(x), atol=1e-12)
    again, _ = coalesce(wide, "half", "keep")
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(again.parameters(), small.parameters(), strict=True))


def test_going_back_and_forth_is_the_identity_for_uneven_groups_and_scaled_embeddings():
    net = language(depth=3)
    small, maps = coalesce(net, [[0], [1, 2, 3]], [[0, 2], [1]], embedding=3.0)
    again, _ = coalesce(decoalesce(small, net, maps), maps.width, maps.depth, embedding=3.0)
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(again.parameters(), small.parameters(), strict=True))


def test_outputs_as_many_as_the_width_are_not_taken_for_it():
    net = language(width=16, classes=16)
    small, _ = coalesce(net)
    assert small.linear.weight.shape == (16, 8) and small.tokens.weight.shape == (16, 8)


def test_embeddings_that_are_the_output_layer_are_summed_as_the_official_code_does():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=6,
    )  # fmt: skip
    net = transformers.BertForMaskedLM(config)
    small, maps = coalesce(net)
    word = net.bert.embeddings.word_embeddings.weight
    assert maps.embedding == 2.0
    assert torch.allclose(small.bert.embeddings.word_embeddings.weight, word[:, :4] + word[:, 4:], atol=1e-6)
    assert small.cls.predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight


@pytest.mark.exact("S132")
def test_interpolation_is_the_weighted_mean_with_its_ends():
    a, b = language(seed=1), language(seed=2)
    mixed = interpolate(a, b, 0.25)
    for p, q, r in zip(mixed.parameters(), a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, 0.75 * q + 0.25 * r)
    assert all(map(torch.equal, interpolate(a, b, 0.0).parameters(), a.parameters()))
    assert all(map(torch.allclose, interpolate(a, b, 1.0).parameters(), b.parameters()))


def twin_gradients(net: nn.Module) -> float:
    """Largest difference of the gradients of the two copies of each hidden unit of a perceptron."""
    nn.functional.cross_entropy(net(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
    gradient = net.get_parameter("blocks.0.up.weight").grad
    assert gradient is not None
    return float((gradient[:32] - gradient[32:]).abs().max())


def test_without_interpolation_copies_have_equal_gradients_and_interpolation_parts_them():
    net = language()
    small, maps = coalesce(net)
    projected = decoalesce(small, net, maps)
    assert twin_gradients(interpolate(net, projected, 1.0)) < 1e-14
    assert twin_gradients(interpolate(net, projected, 0.25)) > 1e-4


def test_depth_is_not_brought_back_exactly():
    net = language(depth=4)
    small, maps = coalesce(net, "keep", "half")
    assert (decoalesce(small, net, maps)(TOKENS) - small(TOKENS)).abs().max() > 0.1


def test_a_v_cycle_visits_the_levels_in_order_and_leaves_the_given_network_alone():
    net, seen = language(width=16, depth=4), []
    before = [p.clone() for p in net.parameters()]

    def train(model: nn.Module, level: int, stage: str) -> nn.Module:
        seen.append((model.width, model.depth, level, stage))
        return shaken(fork(model, own="*"), level)

    final = v_cycle(net, train, levels=3)  # type: ignore[arg-type]
    wanted = [(16, 4, 0, "down"), (8, 2, 1, "down"), (4, 1, 2, "up"), (8, 2, 1, "up"), (16, 4, 0, "last")]
    assert seen == wanted and sum(p.numel() for p in final.parameters()) == sum(p.numel() for p in before)
    assert all(map(torch.equal, net.parameters(), before))


def test_the_remedy_keeps_all_promises_and_trains_a_language_model():
    check_remedy(MultiLevel(**SHORT), SmallViT(3, 1, 8, 4, 16, 2), small_world())
    texts = torch.arange(6).repeat(64, 1) % 7
    world = World(source=Tensors(texts[:, :-1], texts[:, 1:]), task=Tokens())
    net = CausalTransformer(7, 6, 16, 2)
    trained = MultiLevel(**{**SHORT, "last": Recipe(optimizer=Adam(lr=1e-2), batch=16, epochs=5)})(net, world)
    loss = [float(Tokens().loss(m(texts[:1, :-1]).detach(), texts[:1, 1:])) for m in (net, trained)]
    assert loss[1] < 0.5 < math.log(7) * 0.9 < loss[0]


@pytest.mark.parametrize("net", [MLP(4), ResNet(8)])
def test_networks_without_blocks_are_refused(net):
    with pytest.raises(ModelError, match="give such a transformer"):
        coalesce(net)


def test_what_is_not_known_to_go_with_the_width_is_refused_by_name():
    class Odd(CausalTransformer, register=False):
        def __init__(self, kind: str, width: int = 16, depth: int = 2, heads: int = 4):
            super().__init__(7, 6, width, depth, heads)
            self.kind = kind
            if kind == "fused":
                self.extra = nn.Linear(width, 3 * width)
            elif kind == "matrix":
                self.extra = nn.Parameter(torch.zeros(5, width))
            elif kind == "statistics":
                self.extra = nn.BatchNorm1d(width, affine=False)
            else:
                self.extra = nn.Linear(width + 1, 2)

    for kind, said in (
        ("fused", "queries, keys and values"), ("matrix", "extra of a Odd"), ("statistics", r"buffer extra\.running"),
        ("plus", r"extra\.weight goes from"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            coalesce(Odd(kind))


def test_wrong_groups_shares_and_levels_are_refused():
    net = language(depth=3)
    with pytest.raises(InputError, match="3 blocks cannot be halved"):
        coalesce(net)
    for groups in ([[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3], []]):
        with pytest.raises(InputError, match="once"):
            coalesce(net, groups, "keep")
    with pytest.raises(InputError, match="'half' or 'keep'"):
        coalesce(net, "double", "keep")  # type: ignore[arg-type]
    small, maps = coalesce(net, "half", "keep")
    for other in (language(depth=4), language(depth=3, heads=2)):
        with pytest.raises(InputError, match="maps are of other networks"):
            decoalesce(small, other, maps)
    with pytest.raises(InputError, match=r"share in 0\.\.1"):
        interpolate(net, net, 1.5)
    with pytest.raises(CheckpointError, match=r"no tokens\.weight of shape"):
        interpolate(net, language(width=8))
    with pytest.raises(InputError, match="at least 2 levels"):
        v_cycle(net, lambda m, level, stage: m, levels=1)
    with pytest.raises(SpecError, match="levels"):
        MultiLevel(levels=1)
    assert LevelMaps(((0, 1),), ((0,),)).averages().tolist() == [[0.5, 0.5]]
