"""Tables of pandas as data, and back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from homeostat.core.configfile import read_spec, write_spec
from homeostat.core.data import Batch
from homeostat.core.errors import DtypeError, InputError, MissingExtra, SpecError
from homeostat.core.spec import from_config
from homeostat.core.world import World
from homeostat.data import Table, TableEncoding, frame
from homeostat.probe import KS

pandas = pytest.importorskip("pandas", reason="pandas is not installed")
NAN = float("nan")


def people(count: int = 60, seed: int = 0):
    draws = np.random.default_rng(seed)
    return pandas.DataFrame(
        {
            "age": draws.integers(18, 80, count),
            "pay": np.where(draws.random(count) < 0.2, np.nan, draws.normal(3000, 900, count)),
            "city": draws.choice(["Bonn", "Rome", "Oslo"], count),
            "member": draws.random(count) < 0.5,
            "plan": pandas.Categorical(draws.choice(["a", "b"], count), categories=["b", "a", "never"]),
            "left": draws.choice(["no", "yes"], count),
        }
    )


def test_columns_become_numbers_as_they_are_meant():
    table = people()
    data = frame(table, label="left")
    assert isinstance(data, Table) and data.classes == ("no", "yes") and data.unknown == {}
    columns = data.encoding.columns()
    assert columns == (
        "age", "pay", "pay is missing", "member", "city = Bonn", "city = Oslo", "city = Rome", "plan = a", "plan = b",
    )  # fmt: skip
    x = dict(zip(columns, data.load().x.T, strict=True))
    assert x["age"].mean() == pytest.approx(0, abs=1e-6) and x["age"].std(unbiased=False) == pytest.approx(1, abs=1e-5)
    missing = torch.tensor(table["pay"].isna().tolist())
    assert bool((x["pay"][missing] == 0).all()) and torch.equal(x["pay is missing"], missing.float())
    assert torch.equal(x["city = Rome"], torch.tensor((table["city"] == "Rome").tolist()).float())
    assert data.load().y.tolist() == [["no", "yes"].index(v) for v in table["left"]]


def test_a_later_table_is_encoded_as_the_first_one_was():
    first = frame(people(), label="left")
    later = people(40, 1)
    data = frame(later[later.columns[::-1]].assign(more=1), encoding=first.encoding)
    column = data.encoding.columns().index("age")
    by_hand = (later["age"] - first.encoding.means[0]) / first.encoding.scales[0]
    assert data.load().x[:, column].numpy() == pytest.approx(by_hand.to_numpy(), abs=1e-5)
    assert data.load().y.shape == (40,)
    assert frame(later.drop(columns="left"), encoding=first.encoding).load().y is None
    assert frame(people(), encoding=first.encoding).fingerprint() == first.fingerprint()


def test_what_is_new_or_missing_is_said_counted_and_none_of_those_known():
    first = frame(people(), label="left")
    later = people(10, 2).astype({"age": float})
    later.loc[[0, 1], "city"] = ["Paris", None]
    later.loc[2, "age"] = NAN
    with pytest.warns(UserWarning, match=r"of 10 rows: age \(1\), city \(2\)\. They are encoded as none"):
        data = frame(later, encoding=first.encoding)
    assert data.unknown == {"age": 1, "city": 2}
    columns = data.encoding.columns()
    cities = [i for i, name in enumerate(columns) if name.startswith("city")]
    assert bool((data.load().x[:2][:, cities] == 0).all()) and data.load().x[2, columns.index("age")] == 0
    back = data.to_frame()
    assert back["city"].isna().tolist()[:3] == [True, True, False]


def test_a_new_category_is_a_change_that_a_probe_sees():
    source, now = people(300), people(120, 1)
    now.loc[now["city"] == "Rome", "city"] = "Paris"
    first = frame(source, label="left")
    with pytest.warns(UserWarning, match="city"):
        data = frame(now, encoding=first.encoding)
    reading = KS(on="x")(None, World(source=first, target=data))
    assert [first.encoding.columns()[i] for i in reading.finding.subjects] == ["city = Rome"]


def test_a_table_goes_there_and_back():
    table = people()
    data = frame(table, label="left")
    back = data.to_frame()[list(table.columns)]
    for name in ("age", "pay"):
        assert back[name].to_numpy() == pytest.approx(table[name].to_numpy(), rel=1e-5, nan_ok=True)
    for name in ("city", "plan", "left"):
        assert back[name].tolist() == table[name].tolist()
    assert (back["member"] > 0.5).tolist() == table["member"].tolist()
    part = data.encoding.frame(data[torch.tensor([3, 1])])
    assert part["city"].tolist() == table["city"].iloc[[3, 1]].tolist()
    assert "left" not in data.encoding.frame(data.load().x) and len(data.encoding.frame(Batch(data.load().x))) == 60
    with pytest.raises(InputError, match=r"has 9 columns, so inputs are \[rows, 9\]; got \(2, 3\)"):
        data.encoding.frame(torch.zeros(2, 3))


def test_an_encoding_survives_a_file(tmp_path):
    table = people().assign(code=np.arange(60) % 4)
    data = frame(table, label="left", numeric=["age", "pay"], categorical=["city", "code", "member"])
    write_spec(data.encoding, tmp_path / "encoding.yaml")
    encoding = read_spec(tmp_path / "encoding.yaml", TableEncoding)
    assert encoding == data.encoding == from_config(data.encoding.to_config())
    assert encoding.categories[1:] == ((0, 1, 2, 3), (False, True))
    assert frame(table, encoding=encoding).fingerprint() == data.fingerprint()


def test_labels_are_classes_or_real_numbers_and_may_be_missing():
    table = people(6)
    for labels, classes, y in (
        ([3, 1, 3, 1, 1, 7], (1, 3, 7), [1, 0, 1, 0, 0, 2]),
        (["b", None, "a", "b", "a", "a"], ("a", "b"), [1, -100, 0, 1, 0, 0]),
        ([2.0, NAN, 1.0, 1.0, 2.0, 2.0], (1, 2), [1, -100, 0, 0, 1, 1]),
        ([True, False] * 3, (False, True), [1, 0] * 3),
        ([0.5, 1.0, 2.0, 1.0, 1.0, 3.5], (), [0.5, 1.0, 2.0, 1.0, 1.0, 3.5]),
    ):
        data = frame(table.assign(left=labels), label="left")
        assert data.classes == classes and data.load().y.tolist() == y
        back = data.to_frame()["left"]
        assert back.isna().tolist() == [label == -100 for label in y]
    first = frame(table, label="left", numeric=["age"])
    with pytest.raises(InputError, match="the label maybe was not there when the encoding was fitted"):
        frame(table.assign(left="maybe"), encoding=first.encoding)


def test_nullable_columns_and_constant_ones_fit():
    table = pandas.DataFrame(
        {"a": pandas.array([1, None, 3], dtype="Int64"), "b": [5.0, 5.0, 5.0], "c": pandas.array(["u", None, "v"])}
    )
    data = frame(table)
    assert data.encoding.columns() == ("a", "a is missing", "b", "c = u", "c = v", "c is missing")
    assert data.load().x.tolist() == [[-1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        (lambda t: t.to_numpy(), {}, DtypeError, "no pandas DataFrame"),
        (lambda t: t[:0], {}, InputError, "no rows"),
        (lambda t: t.rename(columns={"age": 3}), {}, InputError, "one text each"),
        (lambda t: t, {"label": "lefts"}, InputError, "Did you mean 'left'"),
        (lambda t: t, {"numeric": ["age", "age"]}, InputError, "named twice"),
        (lambda t: t, {"numeric": ["age"], "label": "age"}, InputError, "named twice"),
        (lambda t: t[["left"]], {"label": "left"}, InputError, "no columns to learn from"),
        (lambda t: t, {"numeric": ["city"]}, DtypeError, "'city' holds no numbers.*categorical="),
        (lambda t: t.assign(age=np.inf), {}, InputError, "60 infinite values"),
        (lambda t: t.assign(age=NAN), {}, InputError, "'age' has no value"),
        (lambda t: t.assign(city=[f"c{i}" for i in range(60)]), {"most": 50}, InputError, "60 different values.*most="),
        (lambda t: t.assign(when=pandas.Timestamp(0)), {}, DtypeError, "'when' holds times"),
        (lambda t: t.assign(city=[[1]] * 60), {}, DtypeError, "'city' holds a list"),
    ],
)
def test_what_does_not_fit_is_refused(change, options, error, said):
    with pytest.raises(error, match=said):
        frame(change(people()), **options)


def test_an_encoding_is_given_alone_and_needs_its_columns():
    encoding = frame(people(), label="left").encoding
    with pytest.raises(InputError, match="give it alone"):
        frame(people(), label="left", encoding=encoding)
    with pytest.raises(InputError, match=r"lacks the columns city.*Did you mean 'town'|lacks the columns city"):
        frame(people().rename(columns={"city": "town"}), encoding=encoding)
    with pytest.raises(SpecError, match="not one mean, positive scale"):
        TableEncoding(numeric=("a",), means=(0.0,), scales=(0.0,), holes=(False,))


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'homeostat\[pandas\]'"):
        frame(3)
