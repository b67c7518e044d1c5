"""What comes in wrong is refused at the door with a plain error of ours, and nothing is left half done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.adapt import EATA, BatchNormBlend, Tent
from homeostat.core.check import small_network, small_world
from homeostat.core.errors import (
    CheckpointError,
    DtypeError,
    HomeostatError,
    InputError,
    MissingPart,
    ModelError,
    NonFiniteError,
    SpecError,
    UnknownName,
)
from homeostat.fit import Fit
from homeostat.loop import Loop, Monitor, Plan
from homeostat.nn import Normalized, ResNet
from homeostat.probe import MMD, Accuracy
from homeostat.shift import Corrupt


def network() -> Normalized:
    return Normalized(ResNet(depth=8, in_channels=1, width=4, classes=3), (0.5,), (0.25,)).eval()


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (images()[0], InputError, "batch"),
        (images().expand(8, 3, 16, 16), InputError, "channel"),
        (images() * 255, InputError, "255"),
        ((images() * 255).byte(), DtypeError, "255"),
    ],
)
def test_images_of_the_wrong_shape_range_or_type(x, error, said):
    with pytest.raises(error, match=said):
        network()(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_teach_nothing(value):
    online, x = Tent()(network()), images()
    before = online.snapshot()
    x[2, 0, 3, 3] = value
    with pytest.raises(NonFiniteError, match="x holds 1 values that are NaN or infinite"):
        online.observe(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in online.snapshot().items())
    with pytest.raises(NonFiniteError, match="x holds 1 values"):
        hs.read([Accuracy()], network(), hs.World(held=(x, torch.zeros(8).long())))


def test_an_empty_stream_and_an_empty_batch():
    with pytest.raises(InputError, match=r"world\.target is empty"):
        hs.World(target=images(0))
    with pytest.raises(InputError, match="empty batch"):
        Tent()(network()).observe(images(0))


def test_a_window_smaller_than_the_statistics_need():
    with pytest.raises(InputError, match="at least 50 are needed to calibrate a monitor"):
        Monitor().begin(hs.outputs(network(), images(20)), hs.Bag())
    small = hs.World(source=torch.rand(3, 4), held=torch.rand(2, 4))
    with pytest.raises(InputError, match="at least"):
        MMD(on="x")(None, small)


def test_labels_outside_the_models_width():
    wrong = (images(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 9]))
    for call in (lambda: Fit()(network(), hs.World(source=wrong)), lambda: Accuracy()(network(), hs.World(held=wrong))):
        with pytest.raises(InputError, match=r"outside 0\.\.2: \[3, 9\]"):
            call()


def test_labels_that_are_floats():
    with pytest.raises(DtypeError, match="class labels are integers"):
        Accuracy()(network(), hs.World(held=(images(), torch.zeros(8))))


def test_a_model_of_the_wrong_width_and_one_that_is_no_classifier(tmp_path):
    world = small_world()
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(InputError, match=r"source\.y has labels outside 0\.\.1"):
        Loop(wide, world, [], tmp_path / "store")
    pictures = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(ModelError, match=r"\[batch, classes\]"):
        Loop(pictures, world, [], tmp_path / "store")
    assert contents(tmp_path) == []


def test_a_model_that_is_no_module_and_one_with_nan_weights():
    with pytest.raises(DtypeError, match=r"nn\.Module is wanted"):
        Tent()("resnet18")
    with pytest.raises(DtypeError, match="second argument is a World"):
        Tent()(small_network(), images())
    spoilt = small_network()
    with torch.no_grad():
        spoilt[0].weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        Tent()(spoilt)


def test_a_model_without_the_layers_a_remedy_needs():
    with pytest.raises(ModelError, match="BatchNorm"):
        BatchNormBlend()(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


@pytest.mark.parametrize("cut", ["weights.safetensors", "model.json"])
def test_a_truncated_checkpoint_is_named_and_stays_as_it_is(tmp_path, cut):
    hs.save(network(), tmp_path / "net")
    path = tmp_path / "net" / cut
    path.write_bytes(path.read_bytes()[:-40])
    before = {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()}
    with pytest.raises(CheckpointError, match=cut):
        hs.load(tmp_path / "net")
    assert {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()} == before


def test_foreign_checkpoints(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 pickled")
    with pytest.raises(CheckpointError, match="safetensors"):
        hs.load(tmp_path / "a.pt", base=network())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        hs.load(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match="not a homeostat checkpoint"):
        hs.load(tmp_path / "b")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'EATA'"):
        hs.find("EETA")
    with pytest.raises(UnknownName, match="gaussian_noise"):
        Corrupt("gausian_noise")
    with pytest.raises(AttributeError, match="has no attribute 'addapt'"):
        hs.addapt  # noqa: B018


def test_a_plan_with_a_misspelt_key_points_at_the_line(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("Plan:\n  window: 50\n  verfy: 3\n")
    with pytest.raises(SpecError, match=r"plan\.yaml, line 3: Plan has no field 'verfy'\. Did you mean 'verify'"):
        hs.read_spec(path, Plan)


def test_a_missing_part_of_the_world_says_how_to_give_it(tmp_path):
    with pytest.raises(MissingPart, match=r"EATA to prepare needs source\.x.*World\(source=x\)"):
        EATA()(network(), hs.World(), run=hs.Run(scratch=tmp_path))
    assert contents(tmp_path) == []


def test_all_of_it_can_be_caught_as_one_error_or_as_the_builtin():
    for error, builtin in ((InputError, ValueError), (DtypeError, TypeError), (MissingPart, LookupError)):
        assert issubclass(error, HomeostatError) and issubclass(error, builtin)
