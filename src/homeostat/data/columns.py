"""Reading a column of pandas: as numbers, or as names.

>>> import pandas
>>> numbers(pandas.Series([1, None]), "age").tolist(), names_in(pandas.Series(["a", None]), "city")
([1.0, nan], ['a', None])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homeostat.core.errors import DtypeError, InputError, MissingExtra


def fractions(column: Any) -> bool:
    """Whether real numbers are more than whole numbers with gaps between them."""
    values = numbers(column, str(column.name))
    return bool((values[~np.isnan(values)] % 1 != 0).any()) or not bool(np.isnan(values).any())


def numbers(column: Any, name: str) -> np.ndarray:
    """Float64 with NaN for gaps."""
    try:
        values = column.to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"column {name!r} holds no numbers ({error}); name it in categorical=") from None
    if np.isinf(values).any():
        raise InputError(f"column {name!r} holds {int(np.isinf(values).sum())} infinite values; clean them")
    return values


def names_in(column: Any, name: str) -> list[Any]:
    """Texts, numbers or booleans, and None for gaps."""
    values = [v.item() if isinstance(v, np.generic) else v for v in column.astype(object).tolist()]
    made = [None if gap else v for v, gap in zip(values, column.isna().tolist(), strict=True)]
    if column_types().is_float_dtype(column) and all(v is None or v % 1 == 0 for v in made):
        made = [None if v is None else int(v) for v in made]  # whole numbers that became floats beside a gap
    strange = next((v for v in made if not (v is None or isinstance(v, (str, int, float)))), None)
    if strange is not None:
        raise DtypeError(f"column {name!r} holds a {type(strange).__name__}; texts or numbers are wanted")
    return made


def distinct(values: list[Any], name: str, most: int) -> tuple[Any, ...]:
    found = sorted({v for v in values if v is not None}, key=lambda v: (isinstance(v, str), v))
    if not found:
        raise InputError(f"column {name!r} has no value; leave it out")
    if len(found) > most:
        raise InputError(
            f"column {name!r} has {len(found)} different values, as names and numbers of samples have; leave it out, "
            f"or allow more than {most} with most="
        )
    return tuple(found)


def column_types() -> Any:
    """The tests of column types that pandas has."""
    return pandas_library().api.types


def pandas_library() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingExtra("tables need pandas: pip install 'homeostat[pandas]'") from None
    return pandas
