"""Values that do not belong in a file: `$NAME` stands for an environment variable.

>>> import os
>>> os.environ["FED_EXAMPLE"] = "s3cret"
>>> from_environment("$FED_EXAMPLE", "the example"), from_environment("plain", "the example")
('s3cret', 'plain')
"""

from __future__ import annotations

import os

from homeostat.core.errors import MissingPart


def from_environment(value: str, who: str) -> str:
    """The value, or what the environment variable holds that it names.

    Args:
        value: text, or `$NAME`.
        who: who wants it, for the error.

    Raises:
        MissingPart: there is no such variable, or it is empty.
    """
    if not value.startswith("$"):
        return value
    if not (found := os.environ.get(value[1:], "")):
        raise MissingPart(f"{who} wants the environment variable {value[1:]}, which is not set: export it first")
    return found
