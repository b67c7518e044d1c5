"""Tables of pandas as data, with an encoding that is fitted once and kept.

What a network was trained on and what it is served must be encoded alike, so the encoding is fitted to the first table
and given to every later one. A numeric column becomes `(value - mean) / scale`, and where it had gaps a second column
that is 1 at a gap. A categorical one becomes a column a category that was there, and one for gaps where it had any.

- A gap in a numeric column is given the mean, that is 0.
- A category that was not there when the encoding was fitted has 0 in all its columns, so that probes of the inputs see
  a change and a network hears "none of those". So does a gap where there was none before.
- Both are counted in `unknown` and said in a warning. Nothing is dropped.

An encoding is a Spec: `write_spec` and `read_spec` keep it in a file beside the network. `encoding.frame` goes back
from tensors to columns, also after a shift changed them (within float32's precision, and whole numbers become floats).

>>> import pandas
>>> before = pandas.DataFrame({"age": [30, 50.0, None], "city": ["Bonn", "Rome", "Rome"], "buys": ["no", "yes", "no"]})
>>> table = frame(before, label="buys")
>>> table.encoding.columns(), table.classes
(('age', 'age is missing', 'city = Bonn', 'city = Rome'), ('no', 'yes'))
>>> table.load().x[0].tolist(), table.load().y.tolist()
([-1.0, 0.0, 1.0, 0.0], [0, 1, 0])
>>> later = frame(pandas.DataFrame({"city": ["Rome"], "age": [60]}), encoding=table.encoding)
>>> later.load().x.tolist(), later.to_frame().to_dict("records")
([[2.0, 0.0, 0.0, 1.0]], [{'age': 60.0, 'city': 'Rome'}])
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import DtypeError, InputError, SpecError, nearest
from homeostat.core.spec import Spec
from homeostat.data.columns import column_types, distinct, fractions, names_in, numbers, pandas_library

if TYPE_CHECKING:
    from pandas import DataFrame

MOST = 100
"""Categories of a column, at most, unless more are allowed."""


@dataclass(frozen=True)
class TableEncoding(Spec):
    """How a table's columns become numbers; `frame` fits one.

    Attributes:
        numeric, means, scales, holes: the numeric columns, and of each its mean, its standard deviation, and whether it
            had gaps and so has a column for them.
        categorical, categories, gaps: the categorical columns, their categories, and whether they had gaps.
        label, classes: the column of labels and its classes in order; no classes where it holds real numbers.
    """

    numeric: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    holes: tuple[bool, ...] = ()
    categorical: tuple[str, ...] = ()
    categories: tuple[tuple[Any, ...], ...] = ()
    gaps: tuple[bool, ...] = ()
    label: str = ""
    classes: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {len(self.numeric), len(self.means), len(self.scales), len(self.holes)}
        names = {len(self.categorical), len(self.categories), len(self.gaps)}
        if len(counts) > 1 or len(names) > 1 or not all(scale > 0 for scale in self.scales):
            raise SpecError("TableEncoding has not one mean, positive scale, list of categories and so on a column")

    def columns(self) -> tuple[str, ...]:
        """What the columns of x are."""
        found = []
        for name, holes in zip(self.numeric, self.holes, strict=True):
            found += [name, f"{name} is missing"][: 1 + holes]
        for name, categories, gaps in zip(self.categorical, self.categories, self.gaps, strict=True):
            found += [f"{name} = {category}" for category in categories] + [f"{name} is missing"][:gaps]
        return tuple(found)

    def frame(self, data: Data | Batch | Tensor) -> DataFrame:
        """Columns as they were in the table, of data, a batch or inputs `[rows, columns]`; labels where there are any.

        Raises:
            InputError: the inputs are not of this encoding.
        """
        pandas = pandas_library()
        batch = data if isinstance(data, Batch) else Batch(data) if isinstance(data, Tensor) else data.load()
        x, width = batch.x, len(self.columns())
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != width:
            found = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(f"this encoding has {width} columns, so inputs are [rows, {width}]; got {found}")
        rows, at, made = x.detach().cpu().double().numpy(), 0, dict[str, Any]()
        for name, mean, scale, holes in zip(self.numeric, self.means, self.scales, self.holes, strict=True):
            values = rows[:, at] * scale + mean
            made[name] = np.where(rows[:, at + 1] > 0.5, np.nan, values) if holes else values
            at += 1 + holes
        for name, categories, gaps in zip(self.categorical, self.categories, self.gaps, strict=True):
            part = rows[:, at : at + len(categories)]
            none = part.max(1) <= 0.5
            picked = zip(part.argmax(1), none, strict=True)
            made[name] = pandas.Series([None if no else categories[best] for best, no in picked], dtype=object)
            at += len(categories) + gaps
        if isinstance(batch.y, Tensor) and self.label:
            made[self.label] = self._labels_back(batch.y)
        return pandas.DataFrame(made)

    def _labels_back(self, y: Tensor) -> Any:
        if not self.classes:
            return y.detach().cpu().double().numpy()
        return [None if label == UNKNOWN else self.classes[label] for label in y.tolist()]

    def _encode(self, table: DataFrame) -> tuple[Tensor, Tensor | None, dict[str, int]]:
        absent = [name for name in (*self.numeric, *self.categorical) if name not in table.columns]
        if absent:
            hint = nearest(absent[0], [str(name) for name in table.columns])
            raise InputError(f"the table lacks the columns {', '.join(absent)}, which its encoding knows.{hint}")
        parts, unknown = [np.zeros((len(table), 0))], dict[str, int]()
        for name, mean, scale, holes in zip(self.numeric, self.means, self.scales, self.holes, strict=True):
            values = numbers(table[name], name)
            missing = np.isnan(values)
            parts.append(np.where(missing, 0.0, (values - mean) / scale)[:, None])
            if holes:
                parts.append(missing[:, None])
            elif missing.any():
                unknown[name] = int(missing.sum())
        for name, categories, gaps in zip(self.categorical, self.categories, self.gaps, strict=True):
            values, place = names_in(table[name], name), {category: i for i, category in enumerate(categories)}
            hot = np.zeros((len(table), len(categories) + 1))
            hot[np.arange(len(table)), [place.get(v, len(categories)) for v in values]] = 1.0
            missing = np.array([v is None for v in values], dtype=bool)
            strange = hot[:, -1] * ~missing if gaps else hot[:, -1]
            if strange.any():
                unknown[name] = int(strange.sum())
            parts.append(np.concatenate([hot[:, :-1], missing[:, None]], 1) if gaps else hot[:, :-1])
        x = torch.from_numpy(np.concatenate(parts, 1)).float()
        return x, self._labels(table), unknown

    def _labels(self, table: DataFrame) -> Tensor | None:
        if not self.label or self.label not in table.columns:
            return None
        if not self.classes:
            return torch.tensor(numbers(table[self.label], self.label), dtype=torch.float32)
        place = {name: i for i, name in enumerate(self.classes)}
        values = names_in(table[self.label], self.label)
        strange = sorted({str(v) for v in values if v is not None and v not in place})
        if strange:
            raise InputError(
                f"the label {', '.join(strange[:5])} was not there when the encoding was fitted; leave those rows out, "
                "or fit an encoding and a network anew"
            )
        return torch.tensor([UNKNOWN if v is None else place[v] for v in values], dtype=torch.int64)


class Table(Tensors):
    """A table's rows as data; x float32 `[rows, columns]`.

    Attributes:
        encoding: how columns became numbers; give it to `frame` for later tables.
        unknown: how many values of a column the encoding has no number for.
        classes: names of the classes in order, where the labels are such.
    """

    def __init__(self, encoding: TableEncoding, x: Tensor, y: Tensor | None, unknown: Mapping[str, int]):
        super().__init__(x, y)
        self.encoding, self.unknown, self.classes = encoding, dict(unknown), encoding.classes

    def to_frame(self) -> DataFrame:
        """Back to columns; what the encoding did not know is missing."""
        return self.encoding.frame(self)


def frame(
    table: Any,
    label: str | None = None,
    numeric: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    *,
    encoding: TableEncoding | None = None,
    most: int = MOST,
) -> Table:
    """A pandas DataFrame as data.

    Args:
        table: a row a sample.
        label: its column of labels. Texts, whole numbers and booleans become classes in sorted order, real numbers stay
            as they are; a missing one is an unknown label.
        numeric, categorical: the columns to take. Without either, all but the label are: numbers and booleans as
            numeric, texts and categories as categorical. With one of them, no others.
        encoding: of an earlier table, `table.encoding`; then nothing is fitted, further columns are left aside, and the
            label may be absent.
        most: categories of a column, at most.

    Raises:
        MissingExtra: pandas is not installed.
        DtypeError: it is no DataFrame, or a column holds neither numbers nor names.
        InputError: empty, no such column, infinite values, a label that is new, or more categories than `most`.
    """
    pandas = pandas_library()
    if not isinstance(table, pandas.DataFrame):
        hint = "; convert it: table.to_pandas()" if hasattr(table, "to_pandas") else ""
        raise DtypeError(f"a {type(table).__name__} is no pandas DataFrame{hint}")
    if len(table) == 0:
        raise InputError("the table has no rows; at least one is needed")
    if not table.columns.is_unique or not all(isinstance(name, str) for name in table.columns):
        raise InputError("a table's columns have one text each as their name; set table.columns")
    if encoding is None:
        encoding = _fit(table, label, numeric, categorical, most)
    elif not (label is None and numeric is None and categorical is None):
        raise InputError("an encoding knows the columns and the label; give it alone")
    x, y, unknown = encoding._encode(table)
    if unknown:
        said = ", ".join(f"{name} ({count})" for name, count in unknown.items())
        text = f"values that are new or missing, of {len(table)} rows: {said}. They are encoded as none of those known"
        warnings.warn(text, stacklevel=2)
    return Table(encoding, x, y, unknown)


def _fit(
    table: DataFrame, label: str | None, numeric: Sequence[str] | None, categorical: Sequence[str] | None, most: int
) -> TableEncoding:
    kinds = column_types()
    if numeric is None and categorical is None:
        rest = [name for name in table.columns if name != label]
        numeric = [name for name in rest if kinds.is_numeric_dtype(table[name])]
        categorical = [name for name in rest if name not in numeric]
        for name in categorical:
            if kinds.is_datetime64_any_dtype(table[name]) or kinds.is_timedelta64_dtype(table[name]):
                raise DtypeError(
                    f"column {name!r} holds times; turn it into numbers (an hour, an age in days), or name the columns "
                    "to take with numeric= and categorical="
                )
    numeric, categorical = list(numeric or ()), list(categorical or ())
    known = list(table.columns)
    for name in [*numeric, *categorical, *([] if label is None else [label])]:
        if name not in known:
            raise InputError(f"the table has no column {name!r}.{nearest(str(name), known)} It has: {', '.join(known)}")
    if len({*numeric, *categorical, label}) <= len(numeric) + len(categorical):
        raise InputError("a column is named twice, among numeric, categorical and label")
    if not numeric and not categorical:
        raise InputError("the table has no columns to learn from beside its label")
    values = [numbers(table[name], name) for name in numeric]
    for name, column in zip(numeric, values, strict=True):
        if np.isnan(column).all():
            raise InputError(f"column {name!r} has no value; leave it out")
    spreads = [float(np.nanstd(column)) for column in values]
    names = [names_in(table[name], name) for name in categorical]
    return TableEncoding(
        numeric=tuple(numeric), means=tuple(float(np.nanmean(column)) for column in values),
        scales=tuple(spread if spread > 0 else 1.0 for spread in spreads),
        holes=tuple(bool(np.isnan(column).any()) for column in values), categorical=tuple(categorical),
        categories=tuple(distinct(column, name, most) for name, column in zip(categorical, names, strict=True)),
        gaps=tuple(any(v is None for v in column) for column in names), label=label or "",
        classes=_classes(table, label),
    )  # fmt: skip


def _classes(table: DataFrame, label: str | None) -> tuple[Any, ...]:
    if label is None or (column_types().is_float_dtype(table[label]) and fractions(table[label])):
        return ()
    return distinct(names_in(table[label], label), label, 10_000)
