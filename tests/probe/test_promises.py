"""What holds for every probe: the shared pass, the kits, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from homeostat import probe as package
from homeostat.core.check import check_probe
from homeostat.core.data import Tensors
from homeostat.core.errors import DtypeError, InputError, MissingPart, ModelError, NonFiniteError, SpecError
from homeostat.core.probe import Outputs, Probe, measure, outputs, read
from homeostat.core.run import Run
from homeostat.core.task import MultiLabel
from homeostat.core.world import World
from homeostat.probe import (
    ATC,
    BBSE,
    ECE,
    KS,
    MMD,
    NLL,
    Accuracy,
    AverageConfidence,
    Brier,
    ChangePoint,
    ClassBalance,
    ClassifierTwoSample,
    Confidence,
    DifferenceOfConfidences,
    Entropy,
    FeatureShift,
    MacroF1,
    OutlierShare,
    SaerensEM,
    ShiftKind,
)

PROBES: Sequence[Probe] = [
    Accuracy(), NLL(), Brier(), ECE(), ECE(adaptive=True), MacroF1(), Entropy(), Confidence(), ClassBalance(),
    ClassBalance(against="source"), MMD(window=20), MMD(on="x"), MMD(on="outputs", window=10), KS(), KS(on="outputs"),
    KS(on="x"), ClassifierTwoSample(), ClassifierTwoSample(on="outputs", score="accuracy"), AverageConfidence(), ATC(),
    ATC(score="confidence"), ATC(split="calibration"), DifferenceOfConfidences(), BBSE(), BBSE(soft=True), SaerensEM(),
    FeatureShift(window=40, bootstraps=150),
    FeatureShift(statistic="knn", neighbors=10, expectation=5, bootstraps=20, level=0.3, window=40),
    ChangePoint(window=5), ChangePoint(on="confidence", window=5), ShiftKind(simulations=6),
    OutlierShare(parameters={"n_estimators": 20}), OutlierShare("sklearn.svm.OneClassSVM", on="outputs"),
    OutlierShare("sklearn.neighbors.LocalOutlierFactor", {"novelty": True}, on="x"),
]  # fmt: skip
CLASSIFIED = [p for p in PROBES if "out" in p.reads]
KITTED = [p for p in PROBES if p.prepares()]


def named(probe: Probe) -> str:
    changed = [f"{k}={v}" for k, v in probe.fields().items() if v != type(probe)().fields()[k]]
    return "-".join([type(probe).__name__, *changed])


def network(classes: int = 3, columns: int = 4) -> nn.Module:
    """Two layers whose outputs tell the classes of `world` apart."""
    net = nn.Sequential(nn.Linear(columns, 8), nn.ReLU(), nn.Linear(8, classes))
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.zero_()
        net[0].weight[:columns] = torch.eye(columns)  # type: ignore[union-attr,index,operator]
        net[2].weight[:, :classes] = 2 * torch.eye(classes)  # type: ignore[union-attr,index,operator]
    return net


def world(columns: int = 4, **changes: object) -> World:
    made = {}
    for number, name in enumerate(("source", "target", "calibration", "held")):
        generator = torch.Generator().manual_seed(number)
        y = torch.arange(60) % 3
        x = torch.randn(60, columns, generator=generator)
        x[torch.arange(60), y] += 2.0
        made[name] = Tensors(x, y)
    return World(**made).replace(**changes)


def model_for(probe: Probe) -> nn.Module | None:
    return network() if probe.reads & {"out", "features"} else None


def test_every_public_probe_is_in_these_tests():
    public = {n for n in package.__all__ if isinstance(c := getattr(package, n), type) and issubclass(c, Probe)}
    assert public == {type(p).__name__ for p in PROBES}


@pytest.mark.parametrize("probe", PROBES, ids=named)
def test_it_keeps_every_promise_of_a_probe(probe):
    check_probe(probe, network(), world())


def test_all_probes_share_one_forward_pass():
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.net(x)

    net, here = Counting(), world()
    kits: Mapping[Probe, nn.Module] = {p: kit for p in PROBES if (kit := p.kit(net, here)) is not None}
    calls.clear()
    together = read(PROBES, net, here, kits=kits)
    assert calls == [60]
    for probe, reading in zip(PROBES, together, strict=True):
        assert reading.value == read([probe], net, here, kits=kits)[0].value, named(probe)


@pytest.mark.parametrize("probe", CLASSIFIED, ids=named)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(probe, bad):
    net, here = network(), world()
    kit = probe.kit(net, here)
    seen = outputs(net, here.held, probe.reads)
    logits = seen.logits.clone()
    logits[3, 1] = bad
    spoilt = Outputs(logits, seen.y, seen.id, seen.x, seen.features)
    with pytest.raises(NonFiniteError, match=r"1 samples hold NaN or infinity"):
        measure([probe], spoilt, net, here, kits={probe: kit} if kit is not None else None)


@pytest.mark.parametrize("probe", [p for p in PROBES if p.reads & {"x", "features"}], ids=named)
def test_features_and_inputs_that_are_not_finite_are_refused(probe):
    net, here = network(), world()
    seen = outputs(net, here.held, probe.reads)
    part = "x" if "x" in probe.reads else "features"
    values = getattr(seen, part).clone()
    values[5, 2] = float("nan")
    spoilt = Outputs(seen.out, seen.y, seen.id, **{part: values})
    with pytest.raises(NonFiniteError, match=rf"the {part} hold NaN or infinity"):
        measure([probe], spoilt, net, here, kits={probe: probe.kit(net, here)})  # type: ignore[dict-item]


@pytest.mark.parametrize("probe", KITTED, ids=named)
def test_a_kit_for_other_classes_or_columns_is_refused(probe):
    wide = world(columns=5, source=None, calibration=None)
    kit = probe.kit(model_for(probe), world())
    net = network(5, 5) if model_for(probe) is not None else None
    data = wide.replace(held=wide.held.unlabelled() if wide.held is not None else None)
    if isinstance(probe, (MMD, KS, ClassifierTwoSample, OutlierShare)) and probe.on == "features":
        net = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3))
    with pytest.raises(InputError, match=r"prepared for \d+ (classes|columns|features); these data have \d+"):
        probe(net, data, kit=kit)


LEAST = {
    "NLL": 2, "Brier": 2, "ECE": 2, "Entropy": 2, "Confidence": 2, "ClassBalance": 2, "MMD": 2, "KS": 5,
    "ClassifierTwoSample": 20, "AverageConfidence": 2, "ATC": 2, "DifferenceOfConfidences": 2, "BBSE": 10,
    "SaerensEM": 10, "FeatureShift": 10, "ChangePoint": 10, "ShiftKind": 20,
}  # fmt: skip


@pytest.mark.parametrize("probe", [p for p in PROBES if type(p).__name__ in LEAST], ids=named)
def test_a_window_that_is_too_small_is_refused_with_the_number_needed(probe):
    net, here = model_for(probe), world()
    least = 11 if "knn" in named(probe) else LEAST[type(probe).__name__]
    kit, data = probe.kit(net, here), here.held
    assert data is not None
    with pytest.raises(InputError, match=rf"needs at least {least} .*got {least - 1}"):
        probe(net, here.replace(held=data[: least - 1]), kit=kit)
    if isinstance(probe, (BBSE, SaerensEM)):
        least = 30  # enough expected predictions for the test as well
    assert probe(net, here.replace(held=data[:least]), kit=kit).name


def test_one_labelled_sample_is_enough_for_accuracy_and_macro_f1():
    here = world().held
    assert here is not None
    assert {probe(network(), here[:1]).value for probe in (Accuracy(), MacroF1())} <= {0.0, 1.0}


@pytest.mark.parametrize("probe", KITTED, ids=named)
def test_a_world_without_the_source_is_refused_with_the_way_to_give_it(probe):
    bare = World(target=world().target)
    wanted = "calibration" if "calibration" in named(probe) else "source"
    with pytest.raises(
        MissingPart, match=rf"{type(probe).__name__} to prepare needs {wanted}\..*Give .*World\({wanted}="
    ):
        probe(model_for(probe), bare)


@pytest.mark.parametrize("probe", [MMD(window=20), KS(on="outputs"), ATC(), ClassBalance(against="source")], ids=named)
def test_preparing_without_a_model_is_refused(probe):
    with pytest.raises(MissingPart, match="model"):
        probe.kit(None, world())


@pytest.mark.parametrize("probe", CLASSIFIED, ids=named)
def test_other_tasks_and_shapes_are_refused(probe):
    seen, kit = outputs(network(), world().held, probe.reads), probe.kit(network(), world())
    y = seen.y if "y" in probe.reads else None
    with pytest.raises(InputError, match=r"one class per sample \(Classify\).* MultiLabel"):
        probe.measure(Outputs(seen.out, None if y is None else y, seen.id, task=MultiLabel()), World(), kit, Run())
    with pytest.raises(ModelError, match=r"logits \[samples, classes\] of at least 2 classes; got \(60, 1\)"):
        probe.measure(Outputs(seen.logits[:, :1], y, seen.id), World(), kit, Run())


@pytest.mark.parametrize("probe", [p for p in PROBES if "y" in p.reads], ids=named)
def test_labels_that_do_not_fit_are_refused(probe):
    seen = outputs(network(), world().held, {"out"})
    with pytest.raises(InputError, match=r"outside 0\.\.2: \[7\]"):
        probe.measure(Outputs(seen.out, torch.full((60,), 7), seen.id), World(), None, Run())
    with pytest.raises(DtypeError, match=r"class labels are integers"):
        probe.measure(Outputs(seen.out, torch.zeros(60), seen.id), World(), None, Run())
    with pytest.raises(MissingPart, match=r"none of these is known"):
        probe.measure(Outputs(seen.out, torch.full((60,), -100), seen.id), World(), None, Run())


def test_a_label_to_which_the_network_gives_no_chance_is_refused_by_name():
    logits = torch.tensor([[0.0, -float("inf"), 0.0]] * 4)
    with pytest.raises(NonFiniteError, match=r"4 labels have probability 0"):
        NLL().measure(Outputs(logits, torch.ones(4).long(), torch.arange(4)), World(), None, Run())


def test_a_sample_for_which_every_class_is_ruled_out_is_refused():
    logits = torch.zeros(4, 3)
    logits[2] = -float("inf")
    with pytest.raises(NonFiniteError, match=r"outputs of 1 samples hold NaN or infinity"):
        Entropy().measure(Outputs(logits, None, torch.arange(4)), World(), None, Run())


def test_inputs_that_are_no_one_tensor_are_refused_by_those_that_compare_inputs():
    tree = World(source={"a": torch.zeros(60, 2)}, target={"a": torch.zeros(60, 2)})
    for probe in (MMD(on="x"), KS(on="x"), ClassifierTwoSample(on="x"), FeatureShift()):
        with pytest.raises(InputError, match="one tensor of inputs"):
            probe(None, tree)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Accuracy(level=1.0), "Accuracy.level = 1.0, but it must be < 1"),
        (lambda: MMD(on="logits"), "MMD.on = 'logits', but it must be one of"),
        (lambda: MMD(window=1), "MMD.window = 1, but it must be >= 2"),
        (lambda: ECE(bins=0), "ECE.bins = 0, but it must be >= 1"),
        (lambda: ATC(score="entropie"), "Did you mean 'entropy'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("probe", KITTED, ids=named)
def test_kits_are_cached_in_the_scratch_folder_and_read_back(probe, tmp_path):
    said = []
    run = Run(scratch=tmp_path, watch=lambda event: said.append(event.name))
    net, here = model_for(probe), world()
    first = probe.kit(net, here, run=run)
    again = probe.kit(net, here, run=run)
    assert first is not None and again is not None and first is not again and said == []
    assert len(list((tmp_path / "kits").iterdir())) == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
