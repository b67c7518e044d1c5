"""Fitted scikit-learn classifiers as networks."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from homeostat.core.errors import CheckpointError, DtypeError, InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.probe import read
from homeostat.core.save import content_hash, load, save
from homeostat.core.world import World
from homeostat.nn.estimator import Estimator
from homeostat.nn.identity import content_of
from homeostat.probe import ECE, NLL, Accuracy, SaerensEM

KINDS = [
    lambda: LogisticRegression(),
    lambda: GaussianNB(),
    lambda: RandomForestClassifier(8, random_state=0),
    lambda: HistGradientBoostingClassifier(max_iter=5, random_state=0),
    lambda: KNeighborsClassifier(3),
    lambda: DecisionTreeClassifier(random_state=0),
    lambda: make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=300, random_state=0)),
]


def blobs(count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return draws.normal(size=(count, 4)) + 2.0 * np.eye(3, 4)[y], y


X, Y = blobs()


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: str(make())[:24])
def test_outputs_are_the_estimators_log_probabilities_and_its_hash_follows_its_content(make):
    fitted = make().fit(X, Y)
    net = Estimator(fitted)
    out = net(torch.from_numpy(X))
    assert out.dtype == torch.float64 and bool(out.isfinite().all())
    assert torch.allclose(out.exp(), torch.from_numpy(fitted.predict_proba(X)), atol=3e-6)
    assert torch.allclose(out.exp().sum(1), torch.ones(90, dtype=torch.float64))
    assert net(torch.from_numpy(X).float().view(90, 2, 2)).dtype == torch.float32
    assert content_hash(net) == content_hash(Estimator(make().fit(X, Y))) == content_hash(fork(net))
    assert content_hash(net) != content_hash(Estimator(make().fit(X + 0.3 * (Y[:, None] == 1), Y)))
    assert content_hash(net) != content_hash(Estimator(fitted, floor=1e-5))


def test_the_hash_is_the_same_in_another_process():
    code = (
        "from sklearn.ensemble import RandomForestClassifier as F; import numpy as np\n"
        "from homeostat.nn.identity import content_of\n"
        "x = np.arange(40.).reshape(20, 2); y = ['a', 'b'] * 10\n"
        "print(content_of((F(4, random_state=1).fit(x, y), {'s', 't', 'u'})).hex())"
    )
    options = {"capture_output": True, "text": True, "check": True, "env": {"PYTHONPATH": ":".join(sys.path)}}
    said = {subprocess.run([sys.executable, "-c", code], **options).stdout for _ in range(2)}
    assert len(said) == 1


def test_content_tells_apart_what_looks_alike():
    loop: list = [1]
    loop.append(loop)
    different = [
        [1], (1,), [1.0], ["1"], [b"1"], [True], {1: 1}, {1}, np.array([1]), np.array([1.0]), np.array([[1]]), loop,
        np.array(["1"], dtype=object), np.random.RandomState(1), np.random.default_rng(1), np.sum, torch.tensor([1.5]),
        StandardScaler(), StandardScaler(with_mean=False), [[1]], [None], range(1), np.dtype("f4"), np.float32(1),
    ]  # fmt: skip
    assert len({content_of(value) for value in different}) == len(different)
    for value in different:
        assert content_of(copy.deepcopy(value)) == content_of(value)
    assert content_of({"a": 1, "b": 2}) == content_of({"b": 2, "a": 1})


def test_fitting_the_estimator_again_leaves_the_network_as_it_was():
    fitted = LogisticRegression().fit(X, Y)
    net, x = Estimator(fitted), torch.from_numpy(X)
    before, name = net(x), content_hash(net)
    fitted.fit(X[::-1], Y)
    assert torch.equal(net(x), before) and content_hash(net) == name


def test_a_checkpoint_is_loaded_over_the_same_estimator_and_no_other(tmp_path):
    net = Estimator(RandomForestClassifier(4, random_state=0).fit(X, Y))
    name = save(net, tmp_path / "net")
    back = load(tmp_path / "net", base=Estimator(RandomForestClassifier(4, random_state=0).fit(X, Y)), verify=True)
    assert content_hash(back) == name
    assert torch.equal(back(torch.from_numpy(X)), net(torch.from_numpy(X)))
    with pytest.raises(CheckpointError, match=r"made over another estimator.*load\(path, base=Estimator"):
        load(tmp_path / "net", base=Estimator(RandomForestClassifier(4, random_state=1).fit(X, Y)))
    with pytest.raises(CheckpointError, match=r"cannot build.*base=net"):
        load(tmp_path / "net")
    assert not any(b"sklearn" in file.read_bytes() for file in (tmp_path / "net").iterdir())
    inside = nn.Sequential(nn.Flatten(), net)
    save(inside, tmp_path / "inside")
    again = load(tmp_path / "inside", base=inside)
    assert torch.equal(again(torch.from_numpy(X)), net(torch.from_numpy(X)))


def test_probes_read_it_as_any_network():
    fitted = LogisticRegression().fit(X, Y)
    x, y = blobs(300, 1)
    many = np.flatnonzero((y == 0) | (np.arange(300) % 10 == 0))
    world = World(source=blobs(300, 2), held=(x, y), target=x[many])
    readings = {reading.name: reading for reading in read([Accuracy(), ECE(), NLL()], Estimator(fitted), world)}
    assert readings["accuracy"].value == pytest.approx(fitted.score(x, y))
    balance = SaerensEM()(Estimator(fitted), World(source=world.source, target=x[many]))
    truth = np.bincount(y[many], minlength=3) / len(many)
    assert balance.finding.detected and balance.arrays["prior"].numpy() == pytest.approx(truth, abs=0.08)


def test_classes_of_any_name_become_positions():
    net = Estimator(GaussianNB().fit(X, np.array(["cat", "dog", "owl"])[Y]))
    assert net.classes == ("cat", "dog", "owl")
    assert net.labels(["owl", None, "cat", float("nan")]).tolist() == [2, -100, 0, -100]
    assert net.labels(np.array(["dog"])).tolist() == [1]
    with pytest.raises(InputError, match="labels elk are none of the classes"):
        net.labels(["elk"])
    assert Estimator(GaussianNB().fit(X, Y * 5)).labels(torch.tensor([10, 0])).tolist() == [2, 0]


def test_an_estimator_that_was_fitted_to_a_frame_gets_its_names():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(X, columns=list("abcd"))
    net = Estimator(LogisticRegression().fit(table, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = net(torch.from_numpy(X))
    assert torch.allclose(out, Estimator(LogisticRegression().fit(X, Y))(torch.from_numpy(X)))


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (LogisticRegression(), ModelError, "is not fitted; call its fit"),
        (LogisticRegression, DtypeError, "is a class; give a fitted object"),
        (RidgeClassifier().fit(X, Y), ModelError, "CalibratedClassifierCV"),
        (StandardScaler().fit(X), ModelError, "no classes_; a classifier is wanted"),
        (nn.Linear(2, 2), DtypeError, "is no scikit-learn estimator"),
        (RandomForestClassifier(2).fit(X, np.stack([Y, Y], 1)), ModelError, "gives 2 answers a sample"),
        (make_pipeline(FunctionTransformer(lambda x: x), GaussianNB()).fit(X, Y), ModelError, "has no name to go by"),
    ],
)
def test_what_is_no_fitted_classifier_is_refused(wrong, error, said):
    with pytest.raises(error, match=said):
        Estimator(wrong)


def test_inputs_that_do_not_fit_are_refused():
    net = Estimator(GaussianNB().fit(X, Y))
    for x, error, said in (
        (torch.zeros(3, 5), InputError, "was fitted to 4 columns; got 5"),
        (torch.zeros(4), InputError, r"\[batch, columns\]"),
        ({"a": torch.zeros(3)}, DtypeError, "one tensor of inputs"),
    ):
        with pytest.raises(error, match=said):
            net(x)
    with pytest.raises(InputError, match="below 1 / 3 classes"):
        Estimator(GaussianNB().fit(X, Y), floor=0.5)
    assert net(torch.zeros(0, 4)).shape == (0, 3)


def test_a_pipeline_that_reads_strings_is_given_columns_again():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder

    from homeostat.data import frame

    table = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "town": np.array(["Bonn", "Rome", "Oslo"])[(Y + 1) % 3]})
    data = frame(table.assign(y=Y), label="y")
    encoder = make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough")
    pipeline = make_pipeline(encoder, LogisticRegression(max_iter=500)).fit(table, Y)
    net = Estimator(pipeline, rows=data.encoding.frame)
    expected = torch.from_numpy(pipeline.predict_proba(table)).float()
    assert torch.allclose(net(data.load().x).exp(), expected, atol=1e-4)
    assert Accuracy()(net, data).value == pytest.approx(pipeline.score(table, Y))
    assert content_hash(net) == content_hash(Estimator(pipeline, rows=data.encoding.frame))
    assert content_hash(net) != content_hash(Estimator(pipeline))
