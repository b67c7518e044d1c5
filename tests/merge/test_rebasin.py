from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.errors import CheckpointError, MissingPart, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.save import save
from homeostat.core.weights import weights
from homeostat.core.world import World
from homeostat.merge import ReBasin, weight_match
from homeostat.nn import PermutationSpec, permutation_spec, renormalize
from homeostat.nn.resnet import ResNet


def images(count: int = 60) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def warmed(seed: int) -> nn.Module:
    """A residual network whose statistics fit the images."""
    net = ResNet(8, 3, 1, 8, seed=seed).train()
    with torch.no_grad():
        for _ in range(60):
            net(images())
    return net.eval()


def mixed(net: nn.Module, seed: int) -> tuple[PermutationSpec, nn.Module]:
    spec = permutation_spec(net, images(2))
    return spec, spec.permuted(net, spec.random(torch.Generator().manual_seed(seed)))


@pytest.mark.exact("S293")
@pytest.mark.parametrize("matching", ["weights", "activations"])
def test_orders_of_one_network_merge_into_that_network(matching):
    net, x = warmed(0), images()
    donors = {str(seed): mixed(net, seed)[1] for seed in (1, 2)}
    world = World(models=donors, source=x)
    merged = ReBasin(matching, mode="none")(net, world)
    for name, tensor in weights(net).items():
        assert torch.allclose(weights(merged)[name], tensor, atol=1e-6), name
    naive = torch.stack([weights(n)["conv1.weight"] for n in (net, *donors.values())]).mean(0)
    assert not torch.allclose(naive, net.conv1.weight, atol=0.05)
    with torch.no_grad():
        assert torch.allclose(ReBasin(matching)(net, world)(x), net(x), atol=1e-3)


@pytest.mark.exact("S293")
def test_equals_the_definition_step_by_step():
    a, b, x = warmed(0), warmed(1), images()
    world = World(models={"b": b}, source=(x, torch.zeros(60, dtype=torch.int64)))
    spec = permutation_spec(a, x[:2])
    aligned = spec.apply(weights(b), weight_match(a, b, spec))
    averaged = fork(a, own="*")
    with torch.no_grad():
        for name, tensor in averaged.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_((weights(a)[name] + aligned[name]) / 2)
    references = [a, spec.permuted(b, weight_match(a, b, spec))]
    for mode in ("none", "repair", "rescale", "reshift", "reset_bn"):
        wanted = averaged if mode == "none" else renormalize(averaged, references, x, mode)
        if mode == "reset_bn":
            wanted = renormalize(averaged, [], x, mode)
        made = ReBasin(mode=mode)(a, world)
        with torch.no_grad():
            assert torch.allclose(made(x), wanted(x), atol=1e-4), mode


def test_repair_gives_the_average_of_unlike_networks_its_variance_back():
    a, b, x = warmed(0), warmed(1), images()
    world = World(models={"b": b}, source=x)
    seen: dict[str, float] = {}
    for mode in ("none", "repair"):
        made = ReBasin(mode=mode)(a, world)
        made.layer3[0].bn2.register_forward_hook(lambda _, __, out, m=mode: seen.__setitem__(m, float(out.std())))
        with torch.no_grad():
            made(x)
    with torch.no_grad():
        one = [float(n.layer3[0].bn2.weight.abs().mean()) for n in (a, b)]
    assert seen["repair"] == pytest.approx(sum(one) / 2, rel=0.2) and seen["none"] < 0.8 * seen["repair"]


def test_keeps_all_promises_of_a_remedy():
    net = small_network()
    donors = {str(i): mixed(net, i)[1] for i in (1, 2)}
    check_remedy(ReBasin(), net, small_world().replace(models=donors))


def test_donors_in_files_merge_as_donors_in_memory(tmp_path):
    net = warmed(0)
    save(warmed(1), tmp_path / "b")
    lazy = ReBasin()(net, World(models={"b": tmp_path / "b"}, source=images()))
    direct = ReBasin()(net, World(models={"b": warmed(1)}, source=images()))
    assert all(torch.equal(p, q) for p, q in zip(lazy.parameters(), direct.parameters(), strict=True))


def test_what_cannot_be_merged_is_refused():
    net = warmed(0)
    with pytest.raises(MissingPart, match=r"models\.\*, source\.x"):
        ReBasin()(net, World())
    with pytest.raises(CheckpointError, match="do not fit the base"):
        ReBasin()(net, World(models={"b": ResNet(8, 3, 1, 4)}, source=images()))
    with pytest.raises(ModelError, match="no hidden channels"):
        plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        ReBasin()(plain, World(models={"b": plain}, source=images()))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ModelError, match="'rescale'"):
        ReBasin()(bare, World(models={"b": bare}, source=images()))
    assert isinstance(ReBasin(mode="rescale")(bare, World(models={"b": bare}, source=images())), nn.Sequential)
    with pytest.raises(SpecError, match="matching"):
        ReBasin(matching="guess")
