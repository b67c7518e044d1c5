"""Outlier detectors of scikit-learn as probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from homeostat.core.check import check_probe, small_network, small_world
from homeostat.core.configfile import read_spec, write_spec
from homeostat.core.errors import InputError, SpecError, UnknownName
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import from_config
from homeostat.core.world import World
from homeostat.probe import OutlierShare, precedence_test

FOREST = {"n_estimators": 20}
DETECTORS = [
    OutlierShare(parameters=FOREST, on="x"),
    OutlierShare("sklearn.neighbors.LocalOutlierFactor", {"novelty": True, "n_neighbors": 10}, on="x"),
    OutlierShare("sklearn.svm.OneClassSVM", {"nu": 0.1}, on="x"),
    OutlierShare("sklearn.covariance.EllipticEnvelope", on="x"),
    OutlierShare("sklearn.neighbors.KernelDensity", on="x"),
    OutlierShare("sklearn.linear_model.SGDOneClassSVM", on="x"),
    OutlierShare(
        ("sklearn.preprocessing.StandardScaler", "sklearn.ensemble.IsolationForest"),
        {"isolationforest__n_estimators": 20, "standardscaler__with_mean": False},
        on="x",
    ),
]


def name(probe: OutlierShare) -> str:
    return probe.steps()[-1].rpartition(".")[2] + (" pipeline" if len(probe.steps()) > 1 else "")


def normal(count: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probe", DETECTORS, ids=name)
def test_every_detector_finds_what_is_far_out_and_leaves_alone_what_is_not(probe):
    far = probe(None, World(source=normal(400, 0), target=normal(100, 1) + 3))
    near = probe(None, World(source=normal(400, 0), target=normal(100, 1)))
    assert far.finding.detected and far.value > 0.2 and far.interval.low < far.value <= far.interval.high
    assert not near.finding.detected and near.value < 0.15
    far_scores, held = far.arrays["scores"], far.arrays["held"]
    assert far_scores.median() > held.median(), "larger is further out"


@pytest.mark.parametrize("probe", DETECTORS[:3] + DETECTORS[-1:], ids=name)
def test_the_promises_of_probes(probe):
    check_probe(probe, world=World(source=normal(200, 0), target=normal(60, 1), held=normal(60, 2)))


def test_the_threshold_is_the_sources_quantile_and_the_value_the_share_above_it():
    reading = OutlierShare(parameters=FOREST, on="x", reference=200)(
        None, World(source=normal(400, 0), target=normal(80, 1, 1.6))
    )
    held, scores = reading.arrays["held"].sort(descending=True).values, reading.arrays["scores"]
    assert len(held) == 100 and float(reading.arrays["threshold"]) == held[4]
    assert reading.value == float((scores > held[4]).double().mean())


def test_the_p_value_is_that_of_exchangeable_scores():
    draws = np.random.default_rng(0)
    threshold, window = np.sort(draws.random((50_000, 30)))[:, -2], draws.random((50_000, 20))
    above = (window > threshold[:, None]).sum(1)
    for count in (1, 3, 6):
        assert precedence_test(count, 20, 2, 30) == pytest.approx((above >= count).mean(), abs=0.01)
    assert precedence_test(0, 20, 2, 30) == 1.0


def test_false_alarms_come_no_more_often_than_stated():
    probe, alarms = OutlierShare("sklearn.neighbors.KernelDensity", on="x", min_effect=0.0), 0
    for seed in range(120):
        reading = probe(None, World(source=normal(120, 2 * seed), target=normal(40, 2 * seed + 1)))
        alarms += float(reading.finding.p_value or 0) <= 0.05
    assert alarms <= 12


def test_it_looks_at_the_networks_features():
    world = small_world()
    shifted = world.replace(held=(world.held.load().x + 2.0, world.held.load().y))
    probe = OutlierShare("sklearn.neighbors.KernelDensity")
    far, near = probe(small_network(), shifted), probe(small_network(), world)
    assert far.value == 1.0 and near.value < 0.2 and "features" in far.finding.text


def test_a_kit_that_was_saved_gives_the_same_reading_and_holds_no_code(tmp_path):
    probe, world = OutlierShare(parameters=FOREST, on="x"), World(source=normal(200, 0), target=normal(50, 1, 2.0))
    kit = probe.kit(None, world, run=Run(seed=4))
    save(kit, tmp_path / "kit")
    assert {file.name for file in (tmp_path / "kit").iterdir()} == {"model.json", "weights.safetensors"}
    first, second = probe(None, world, kit=kit), probe(None, world, kit=load(tmp_path / "kit"))
    assert torch.equal(first.arrays["scores"], second.arrays["scores"])
    other = probe(None, world, run=Run(seed=5))
    assert not torch.equal(first.arrays["scores"], other.arrays["scores"]), "the seed is the run's"


def test_it_is_a_spec_that_a_file_can_hold(tmp_path):
    for probe in DETECTORS:
        assert from_config(probe.to_config()) == probe and hash(probe) == hash(from_config(probe.to_config()))
    write_spec(DETECTORS[-1], tmp_path / "probe.yaml")
    assert read_spec(tmp_path / "probe.yaml", OutlierShare) == DETECTORS[-1]
    assert from_config({"OutlierShare": {"parameters": {"n_estimators": 7}}}).parameters == (("n_estimators", 7),)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"detector": "os.system"}, UnknownName, "is no path of scikit-learn"),
        ({"detector": "sklearn.ensemble._iforest.IsolationForest"}, UnknownName, "is no path of scikit-learn"),
        ({"detector": "sklearn.nowhere.Forest"}, UnknownName, "is no path of scikit-learn"),
        ({"detector": "sklearn.ensemble.IsolationForrest"}, UnknownName, "Did you mean 'IsolationForest'"),
        ({"detector": "sklearn.datasets.fetch_openml"}, UnknownName, "has no estimator"),
        ({"detector": "sklearn.linear_model.LogisticRegression"}, SpecError, "scores no new samples"),
        ({"detector": "sklearn.neighbors.LocalOutlierFactor"}, SpecError, "novelty=True"),
        ({"detector": ()}, SpecError, "empty"),
        ({"parameters": {"n_estimator": 3}}, SpecError, "Did you mean 'n_estimators'"),
        ({"parameters": {"max_features": object()}}, SpecError, "is a object"),
        (
            {"detector": ("sklearn.decomposition.PCA", "sklearn.svm.OneClassSVM"), "parameters": {"memory": "x"}},
            SpecError,
            "files that may hold code",
        ),
    ],
)  # fmt: skip
def test_what_is_no_detector_is_refused_when_the_probe_is_made(fields, error, said):
    with pytest.raises(error, match=said):
        OutlierShare(**fields)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="at least 40 samples"):
        OutlierShare(on="x")(None, World(source=normal(30, 0), target=normal(9, 1)))
    with pytest.raises(InputError, match=r"0\.99 quantile needs 200 rows"):
        OutlierShare(on="x", quantile=0.99)(None, World(source=normal(90, 0), target=normal(9, 1)))
    probe = OutlierShare(parameters={"max_samples": 3.5}, on="x")
    with pytest.raises(InputError, match="IsolationForest cannot be fitted"):
        probe(None, World(source=normal(90, 0), target=normal(9, 1)))
    kit = OutlierShare(on="x").kit(None, World(source=normal(90, 0)))
    with pytest.raises(InputError, match="prepared for 3 columns"):
        OutlierShare(on="x")(nn.Identity(), World(held=torch.zeros(9, 4)), kit=kit)
