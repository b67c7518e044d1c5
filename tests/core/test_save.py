from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from homeostat.core.data import Tensors
from homeostat.core.delta import delta
from homeostat.core.errors import CheckpointError, HomeostatError, StoreError, UnknownName
from homeostat.core.fork import fork
from homeostat.core.online import Bag
from homeostat.core.part import build, recipe
from homeostat.core.save import _swap, content_hash, load, save
from homeostat.core.weights import Weights, carried, fingerprint, weights
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn.norms import blend_batchnorm
from homeostat.tune import LoRA, fold


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def tuned(net: nn.Module) -> nn.Module:
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    return Fit(recipe=Recipe(epochs=2, batch=4))(LoRA(rank=2, convolutions=True)(net), World(source=Tensors(x, y)))


def test_parts_put_into_a_foreign_network_come_back_over_that_network(tmp_path):
    net, x = Foreign().eval(), torch.randn(5, 1, 8, 8)
    made = blend_batchnorm(tuned(net), blend=0.3)
    name = save(made, tmp_path / "a")
    back = load(tmp_path / "a", base=net, verify=True)
    assert torch.equal(back(x), made(x)) and content_hash(back) == name
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in made.parameters()]
    with pytest.raises(CheckpointError, match="base=net"):
        load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="base is a Linear"):
        load(tmp_path / "a", base=nn.Linear(2, 2))


def test_torch_layers_need_no_base(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 2, (3, 1), stride=2), nn.GroupNorm(1, 2), nn.GELU(), nn.Flatten(), nn.LazyLinear(3)
    )
    net(torch.zeros(1, 1, 7, 7))
    save(net, tmp_path / "a")
    x = torch.randn(2, 1, 7, 7)
    assert torch.equal(load(tmp_path / "a")(x), net(x))


def test_foreign_layers_inside_a_sequence_are_found_in_the_base(tmp_path):
    net, x = nn.Sequential(Foreign(), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.randn(2, 1, 8, 8)
    save(net, tmp_path / "a")
    assert torch.equal(load(tmp_path / "a", base=net)(x), net(x))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    class Tied(Foreign):
        def __init__(self):
            super().__init__()
            self.again = self.head

    net = Tied()
    save(net, tmp_path / "a")
    assert "again.weight" not in Weights(tmp_path / "a")
    back = load(tmp_path / "a", base=net)
    assert back.again.weight is back.head.weight  # type: ignore[union-attr]


def test_building_from_a_recipe_draws_no_random_numbers():
    described = recipe(nn.Sequential(nn.Linear(3, 3)))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build(described)
    assert torch.equal(torch.rand(1), expected)


def test_state_lies_in_its_own_file_and_is_not_weights(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    net.add_module("carry", Bag({"moment.0.weight": torch.ones(3)}))
    assert set(weights(net)) == {"0.weight", "0.bias"} and set(carried(net)) == {"carry.moment/0/weight"}
    before = fingerprint(net)
    net.get_submodule("carry")["moment.0.weight"] = torch.zeros(5)  # type: ignore[index]
    assert fingerprint(net) == before
    save(net, tmp_path / "a")
    assert (tmp_path / "a" / "carry.safetensors").is_file()
    assert carried(load(tmp_path / "a"))["carry.moment/0/weight"].shape == (5,)


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        save(nn.Linear(1, 1), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    net = nn.Linear(2, 2)
    name = save(net, tmp_path / "a")
    monkeypatch.setattr("homeostat.core.save.write_synced", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(nn.Linear(2, 2), tmp_path / "a")
    monkeypatch.undo()
    assert content_hash(load(tmp_path / "a", verify=True)) == name
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path, monkeypatch):
    name = save(nn.Linear(2, 2), tmp_path / "a")
    kept, calls = Path.rename, []

    def killed(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(nn.Linear(2, 2), tmp_path / "a")
    monkeypatch.undo()
    assert not (tmp_path / "a").exists()
    assert content_hash(load(tmp_path / "a", verify=True)) == name


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        save(nn.Linear(1, 1), tmp_path / "file" / "a")


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json"])
def test_a_truncated_file_is_named(tmp_path, file):
    save(nn.Linear(20, 20), tmp_path / "a")
    path = tmp_path / "a" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=file):
        load(tmp_path / "a")


def test_changed_weights_fail_the_content_hash(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "a")
    save(nn.Linear(2, 2), tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").rename(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="does not match its hash"):
        load(tmp_path / "a", verify=True)


def test_all_misfits_of_foreign_weights_are_listed_at_once(tmp_path):
    save(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), tmp_path / "a")
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a" / "weights.safetensors", base=other)
    for said in (
        "2 missing (2.weight, 2.bias)",
        "2 unknown (1.",
        "1 of another shape (0.weight is (3, 2), (3, 4) wanted)",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("node", "error"),
    [
        ({"part": "os.system", "args": {}}, UnknownName),
        ({"part": "SGD", "args": {}}, CheckpointError),
        ({"torch": "modules.Linear", "args": {}}, CheckpointError),
        ({"transformers": "pipeline", "config": {}}, CheckpointError),
        ({"foreign": "os.path"}, CheckpointError),
        ("Linear", CheckpointError),
    ],
)
def test_nothing_named_in_a_recipe_is_imported(node, error):
    if isinstance(node, dict) and "transformers" in node:
        pytest.importorskip("transformers")
    with pytest.raises(error):
        build(node)


def test_a_checkpoint_from_the_future_is_refused(tmp_path):
    save(nn.Linear(1, 1), tmp_path / "a")
    note = json.loads((tmp_path / "a" / "model.json").read_text())
    (tmp_path / "a" / "model.json").write_text(json.dumps({**note, "format": 99}))
    with pytest.raises(CheckpointError, match="upgrade"):
        load(tmp_path / "a")


def test_a_delta_holds_what_changed_and_applies_bit_for_bit():
    net, x = Foreign().eval(), torch.randn(5, 1, 8, 8)
    after = tuned(net)
    change = delta(net, after)
    assert {n.split(".")[-1] for n in change.changed} == {
        "down",
        "up",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert change.kept["head.layer.weight"] == "head.weight"
    assert torch.equal(change.apply(net)(x), after(x))
    with pytest.raises(CheckpointError, match="taken from weights"):
        change.apply(Foreign())


def test_a_delta_of_nothing_is_empty_and_a_difference_is_after_minus_before():
    net = Foreign()
    assert not delta(net, fork(net)).changed
    after = fork(net, own="head.bias")
    with torch.no_grad():
        after.head.bias += 2
    assert list(delta(net, after).difference(net)) == ["head.bias"]
    assert torch.allclose(delta(net, after).difference(net)["head.bias"], torch.tensor(2.0))


def test_lazy_weights_read_shards_and_name_what_is_missing(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "a")
    found = Weights(tmp_path / "a")
    assert set(found) == {"weight", "bias"} and found["weight"].shape == (2, 2)
    with pytest.raises(CheckpointError, match="Did you mean 'weight'"):
        found["wieght"]
    with pytest.raises(HomeostatError, match="no safetensors"):
        Weights(tmp_path / "nowhere")


def test_folded_corrections_give_plain_layers_with_the_same_outputs(tmp_path: Path):
    net, x = Foreign().eval(), torch.randn(5, 1, 8, 8)
    after = tuned(net)
    plain = fold(after)
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert torch.allclose(plain(x), after(x), atol=1e-5)


def test_a_checkpoint_that_another_process_puts_there_meanwhile_is_replaced(tmp_path, monkeypatch):
    one, other, real, seen = nn.Linear(3, 3), nn.Linear(3, 3), Path.exists, []
    save(one, tmp_path / "net")
    name = save(other, tmp_path / "staging")

    def late(path, **options):
        if path.name == "net" and not seen:
            return bool(seen.append(path))  # looked before it was there
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", late)
        _swap(tmp_path / "staging", tmp_path / "net")
    assert seen and content_hash(load(tmp_path / "net", base=one)) == name
