"""What holds for every network, and what each one promises of itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from homeostat.core.data import Tensors
from homeostat.core.errors import CheckpointError, DtypeError, InputError, MissingPart, ModelError, SpecError
from homeostat.core.part import Part
from homeostat.core.save import load, save
from homeostat.core.taps import head
from homeostat.nn.causal_transformer import CausalTransformer
from homeostat.nn.mlp import MLP
from homeostat.nn.normalized import Normalized
from homeostat.nn.places import data_folder
from homeostat.nn.resnet import ResNet, cifar_resnet
from homeostat.nn.small_cnn import SmallCNN
from homeostat.nn.vit import SmallViT


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


TOKENS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[Callable[..., Part], Tensor]] = {
    "resnet": (lambda **k: ResNet(8, 5, 1, 4, **k), uniform(3, 1, 12, 12)),
    "resnet-group": (lambda **k: ResNet(14, 5, 3, 6, "group", **k), uniform(3, 3, 9, 9)),
    "cnn": (lambda **k: SmallCNN(5, 3, 9, 4, 2, **k), uniform(3, 3, 9, 9)),
    "cnn-batch": (lambda **k: SmallCNN(5, 3, 8, 4, 3, "batch", **k), uniform(3, 3, 8, 8)),
    "vit": (lambda **k: SmallViT(5, 1, 8, 4, 8, 2, 2, **k), uniform(3, 1, 8, 8)),
    "mlp": (lambda **k: MLP(12, 5, (7, 6), "gelu", "layer", **k), uniform(3, 3, 2, 2)),
    "mlp-batch": (lambda **k: MLP(12, 5, (7,), norm="batch", bias=False, **k), uniform(3, 12)),
    "linear": (lambda **k: MLP(12, 5, (), **k), uniform(3, 12)),
    "language": (lambda **k: CausalTransformer(11, 9, 8, 2, 2, **k), TOKENS),
    "normalized": (lambda **k: Normalized(ResNet(8, 5, 1, 4, **k), (0.3,), (0.4,)), uniform(3, 1, 12, 12)),
}
IMAGES = {name: NETWORKS[name] for name in NETWORKS if name != "language"}


@pytest.fixture(params=NETWORKS)
def case(request) -> tuple[Callable[..., Part], Tensor]:
    return NETWORKS[request.param]


def used(net: Part, x: Tensor) -> Part:
    """The network with BatchNorm statistics and norm layers that are not their starting values."""
    net.train()(x)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return net.eval()


def test_logits_have_a_row_a_sample_also_for_one(case):
    make, x = case
    net = make().eval()
    out = net(x)
    assert out.shape == ((3, 7, 11) if x is TOKENS else (3, 5)) and bool(torch.isfinite(out).all())
    assert torch.allclose(net(x[1:2]), out[1:2], atol=1e-6)


def test_saving_and_loading_gives_the_same_bits(case, tmp_path):
    make, x = case
    net = used(make(seed=3), x)
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", verify=True).eval()
    assert type(again) is type(net)
    assert torch.equal(again(x), net(x))
    original, found = net.arguments(), again.arguments()
    assert {k: v for k, v in found.items() if k != "model"} == {k: v for k, v in original.items() if k != "model"}


def test_a_checkpoint_of_another_width_is_refused(tmp_path):
    save(ResNet(8, 5, 1, 4), tmp_path / "net")
    (tmp_path / "net" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "net")


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before(case):
    make, _ = case
    first = make(seed=5).state_dict()
    torch.rand(17)
    second, third = make(seed=5).state_dict(), make(seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    matrices = [name for name in first if first[name].ndim > 1 and float(first[name].std()) > 0]
    assert matrices and all(not torch.equal(first[name], third[name]) for name in matrices)


def test_float64_is_computed_in_float64(case):
    make, x = case
    net = used(make(), x)
    single = net(x)
    double = net.double()(x if x is TOKENS else x.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), single, atol=1e-5)
    assert not torch.equal(double, single.double())


def test_bfloat16_stays_bfloat16_and_near(case):
    make, x = case
    net = used(make(), x)
    single = net(x).detach()
    out = net.bfloat16()(x if x is TOKENS else x.bfloat16()).detach()
    assert out.dtype == torch.bfloat16
    assert float((out.float() - single).abs().max()) < 0.1 * float(single.abs().max()) + 0.05


def test_every_weight_is_used(case):
    make, x = case
    net = make()
    weight = torch.randn(net(x).shape, generator=torch.Generator().manual_seed(2))
    (net(x) * weight).sum().backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0}
    # A constant added to every key shifts all scores of a query alike, and softmax does not see it.
    assert all(name.endswith("key.bias") for name in unused)


def test_the_last_linear_layer_makes_the_outputs(case):
    make, x = case
    net = make().eval()
    layer = net.get_submodule(head(net))
    assert isinstance(layer, nn.Linear) and layer.out_features == net(x).shape[-1]


@pytest.mark.parametrize("name", ["resnet-group", "cnn", "vit", "mlp", "normalized"])
def test_gradients_per_sample_by_vmap_are_those_one_by_one(name):
    make, x = NETWORKS[name]
    net = make().eval()
    weights = {k: v.detach() for k, v in net.named_parameters()}
    labels = torch.tensor([0, 1, 2])

    def loss(weights: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (sample[None],)), label[None])

    mapped = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, labels)
    for i in range(3):
        alone = torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), labels[i : i + 1]), list(net.parameters()))
        for name, value in zip(weights, alone, strict=True):
            assert torch.allclose(mapped[name][i], value, atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_it_can_be_differentiated_twice(name):
    make, x = NETWORKS[name]
    net = make().double()
    first = torch.autograd.grad(net(x.double()).pow(2).sum(), list(net.parameters()), create_graph=True)
    total = sum(g.pow(2).sum() for g in first)
    second = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)  # type: ignore[arg-type]
    assert any(g is not None and float(g.abs().sum()) > 0 for g in second)


@pytest.mark.parametrize("name", IMAGES)
def test_integers_an_empty_batch_and_wrong_shapes_are_refused(name):
    make, x = NETWORKS[name]
    net = make().eval()
    with pytest.raises(DtypeError, match="int64"):
        net((x * 255).long())
    with pytest.raises(InputError):
        net(x[:0])
    with pytest.raises(InputError, match="shape"):
        net(x[0, ..., :1])


@pytest.mark.parametrize("name", ["resnet", "cnn", "vit", "normalized"])
def test_wrong_channels_are_named_and_channels_last_is_recognised(name):
    make, x = NETWORKS[name]
    net = make().eval()
    wrong = x[:, :1].expand(-1, 5, -1, -1)
    with pytest.raises(InputError, match=f"5 channels .*{x.shape[1]} are wanted"):
        net(wrong)
    with pytest.raises(InputError, match="channels are last"):
        net(torch.rand(2, 12, 12, x.shape[1]))
    with pytest.raises(InputError, match=r"images\[None\]"):
        net(x[0])


def test_square_networks_refuse_other_sizes():
    for name in ("cnn", "vit"):
        make, x = NETWORKS[name]
        with pytest.raises(InputError, match="built for"):
            make()(F.pad(x, (0, 1)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ResNet(18), "6n \\+ 2"),
        (lambda: ResNet(2), "6n \\+ 2"),
        (lambda: ResNet(8, width=0), "width = 0"),
        (lambda: ResNet(8, norm="instance"), "'batch', 'group'"),
        (lambda: ResNet(8, norm="batsh"), "Did you mean 'batch'"),
        (lambda: SmallCNN(size=7), "halved 2 times"),
        (lambda: SmallCNN(norm="bath"), "Did you mean 'batch'"),
        (lambda: SmallViT(size=30), "multiple of patch"),
        (lambda: SmallViT(width=90), "multiple of heads"),
        (lambda: MLP(0), "inputs = 0"),
        (lambda: MLP(3, hidden=(4, 0)), r"hidden\[1\] = 0"),
        (lambda: MLP(3, activation="rely"), "Did you mean 'relu'"),
        (lambda: MLP(3, norm="group"), "none, batch, layer"),
        (lambda: CausalTransformer(0), "vocabulary = 0"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_what_can(make, said):
    with pytest.raises(SpecError, match=said.replace("halved 2 times", "can be halved 2 times")):
        make()


# --------------------------------------------------------------------------------------------------------- ResNet


def test_tensors_have_their_published_names_and_shapes():
    wanted = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64), "linear.bias": (10,)}
    norms = {"bn1": 16}
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            before = width // 2 if stage > 1 and block == 0 else width
            wanted[f"layer{stage}.{block}.conv1.weight"] = (width, before, 3, 3)
            wanted[f"layer{stage}.{block}.conv2.weight"] = (width, width, 3, 3)
            norms[f"layer{stage}.{block}.bn1"] = norms[f"layer{stage}.{block}.bn2"] = width
    for norm, width in norms.items():
        wanted |= {f"{norm}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        wanted[f"{norm}.num_batches_tracked"] = ()
    assert {name: tuple(t.shape) for name, t in ResNet(20).state_dict().items()} == wanted


@pytest.mark.parametrize(("depth", "weights"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_the_published_depths_have_the_published_numbers_of_weights(depth, weights):
    assert sum(p.numel() for p in ResNet(depth).parameters()) == weights


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    net = ResNet(8, width=4)
    block = net.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = uniform(2, 4, 6, 6)
    out = block(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_group_norm_means_no_batch_norm_and_no_word_between_samples():
    net = ResNet(8, in_channels=1, width=12, norm="group").train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    groups = [m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(groups) == 7 and set(groups) == {4, 8}  # as many of 8 as divide 12, 24 and 48 channels
    x = uniform(2, 1, 8, 8)
    assert torch.allclose(net(x)[:1], net(torch.cat([x[:1], 1 - x[1:]]))[:1], atol=1e-6)


FOLDER = data_folder() or Path("none")
WEIGHTS, CIFAR = FOLDER / "weights" / "resnet20-cifar10.safetensors", FOLDER / "cifar-10-batches-bin" / "test_batch.bin"


@pytest.mark.skipif(not (WEIGHTS.is_file() and CIFAR.is_file()), reason="HOMEOSTAT_DATA holds no CIFAR-10 and weights")
def test_published_weights_classify_real_images_and_noise_breaks_them():
    rows = torch.frombuffer(bytearray(CIFAR.read_bytes()[: 3073 * 500]), dtype=torch.uint8).reshape(-1, 3073)
    x, y = rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255, rows[:, 0].long()
    net = cifar_resnet(20)
    assert not net.training
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = float((net(x).argmax(1) == y).float().mean())
        noisy = float((net(x + 0.1 * noise).argmax(1) == y).float().mean())
    assert clean > 0.74 and noisy < 0.35, (clean, noisy)  # 0.80 and 0.18 over all images; 500 have an error of 0.02


def test_absent_weights_are_a_missing_part_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(MissingPart, match=r"resnet20-cifar10.safetensors.*pretrained=False"):
        cifar_resnet(20)
    net = cifar_resnet(20, pretrained=False)
    assert isinstance(net.model, ResNet) and net.mean == (0.485, 0.456, 0.406)


def test_weights_of_another_depth_or_truncated_ones_are_refused(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "resnet20-cifar10.safetensors"
    save_file(ResNet(14).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"resnet20.* missing \(layer1\.2"):
        cifar_resnet(20)
    save_file(ResNet(20, seed=9).state_dict(), path)
    assert torch.equal(cifar_resnet(20).model.conv1.weight, ResNet(20, seed=9).conv1.weight)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        cifar_resnet(20)


# ---------------------------------------------------------------------------------------------------- the others


def test_the_condensation_network_is_the_papers():
    net = SmallCNN()
    assert sum(p.numel() for p in net.parameters()) == 320_010  # conv 3 x (9 * c * 128 + 128), norms, 2048 * 10 + 10
    assert [m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)] == [128] * 3


def test_instance_norm_forgets_contrast():
    net = SmallCNN(5, 1, 8, 4, 1).double()
    nn.init.zeros_(net.blocks[0].conv.bias)
    x = uniform(2, 1, 8, 8).double()
    assert torch.allclose(net(1000 * x), net(100 * x), atol=1e-5)
    assert not torch.allclose(SmallCNN(5, 1, 8, 4, 1, "none").double()(2 * x), net(x), atol=1e-2)


def test_the_vision_transformer_sees_where_a_patch_is():
    net = SmallViT(5, 1, 8, 4, 8, 1, 2)
    x = uniform(1, 1, 8, 8)
    swapped = torch.cat([x[:, :, 4:], x[:, :, :4]], 2)
    assert not torch.allclose(net(x), net(swapped), atol=1e-4)
    nn.init.zeros_(net.position)
    assert torch.allclose(net(x), net(swapped), atol=1e-6)  # without positions, patches are a set


def test_attention_is_that_of_torch():
    from homeostat.nn.blocks import Attention

    layer, reference = Attention(8, 2, causal=True), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        parts = (layer.query, layer.key, layer.value)
        reference.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        reference.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        reference.out_proj.weight.copy_(layer.out.weight)
        reference.out_proj.bias.copy_(layer.out.bias)
    x = uniform(2, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    assert torch.allclose(layer(x), reference(x, x, x, attn_mask=mask, need_weights=False)[0], atol=1e-6)


def test_a_token_changes_nothing_before_it():
    net = CausalTransformer(11, 9, 8, 2, 2)
    other = TOKENS.clone()
    other[:, 4] = (other[:, 4] + 1) % 11
    change = (net(TOKENS) - net(other)).abs().amax((0, 2))
    assert not change[:4].any() and bool((change[4:] > 0).all())


def test_tokens_come_alone_or_in_a_mapping_and_padding_on_the_right_is_harmless():
    net = CausalTransformer(11, 9, 8, 2, 2)
    padded = F.pad(TOKENS, (0, 2))
    mapped = {"input_ids": padded, "attention_mask": F.pad(torch.ones_like(TOKENS), (0, 2))}
    assert torch.equal(net(mapped), net(padded))
    assert torch.allclose(net(mapped)[:, :7], net(TOKENS), atol=1e-6)
    assert len(Tensors(mapped)) == 3


@pytest.mark.parametrize(
    ("tokens", "kind", "said"),
    [
        (TOKENS.float(), DtypeError, "int64"),
        (TOKENS[0], InputError, r"\[batch, time\]"),
        (TOKENS[:0], InputError, "at least one"),
        (TOKENS + 1, InputError, r"0\.\.10"),
        (-TOKENS, InputError, "span -10"),
        (F.pad(TOKENS, (0, 3)), InputError, "at most 9"),
        ({"tokens": TOKENS}, DtypeError, "NoneType"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, kind, said):
    net = CausalTransformer(11, 9, 8, 1, 2)
    with pytest.raises(kind, match=said):
        net(tokens)


def test_starting_weights_keep_the_scale_through_depth():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    net = MLP(256, 256, (256,) * 8)
    out = net.layers(x).detach().pow(2).mean().sqrt()
    assert 0.3 < float(out) < 3.0  # ReLU and He's variance 2 / fan_in: the mean square stays 1, give or take
    assert math.isclose(float(net.layers.linear3.weight.detach().var()), 2 / 256, rel_tol=0.05)


def test_a_model_without_weights_for_its_head_cannot_be_used_as_one():
    with pytest.raises(ModelError, match="no linear layer"):
        head(nn.Sequential(nn.Flatten()))
