"""Claims on disk: which files there are, which claims they hold, and a hash of the code that each depends on.

A claim file is read by its path and belongs to no package; files do not import each other. One that cannot be read does
not hide the others.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from homeostat.core import spec
from homeostat.core.errors import MissingPart, SpecError, UnknownName, nearest
from homeostat.core.outline import outline
from homeostat.core.reach import LIBRARY, code_digest, modules_of
from homeostat.evidence.claiming import TIERS, Claim
from homeostat.evidence.recorded import Statement, claims_folder


@dataclass(frozen=True)
class Found:
    """A claim and the file that holds it."""

    claim: Claim
    file: Path

    @property
    def statement(self) -> Statement:
        """What is claimed, as it is put on record."""
        one = self.claim
        return Statement(
            one.says, one.ours, one.baseline, one.metric, one.unit, one.better, one.least, one.tier,
            tuple(reader.to_config() for reader in one.data), one.tuned, one.shrunk,
        )  # fmt: skip

    def code(self) -> str:
        """Hash of the file and of all code that it reaches, that of things it only names in texts included."""
        return code_digest(sorted({*modules_of(self.claim.data), *_named(self.file)}), [self.file])


@dataclass(frozen=True)
class Broken:
    """A file that is no claim file, and why, in a line that names it."""

    file: Path
    why: str


@dataclass(frozen=True)
class Claims:
    """What a folder holds."""

    folder: Path
    found: tuple[Found, ...]
    broken: tuple[Broken, ...]

    def choose(self, names: Sequence[str] = (), tier: str | None = None) -> list[Found]:
        """Claims by id (`S037`) or full name (`S037/correlated`); all where no name is given.

        Raises:
            UnknownName: there is no such claim. SpecError: there is no such tier.
        """
        if tier is not None and tier not in TIERS:
            raise SpecError(f"there is no tier {tier!r}; it is one of {', '.join(map(repr, TIERS))}")
        known = {one.claim.id for one in self.found} | {one.claim.full_name for one in self.found}
        for name in names:
            if name not in known:
                hint = nearest(name, known) or f" There are: {', '.join(sorted({o.claim.id for o in self.found}))}."
                said = f" {len(self.broken)} files cannot be read." if self.broken else ""
                raise UnknownName(f"there is no claim {name} in {self.folder}.{hint}{said}")
        return [
            one for one in self.found
            if (not names or {one.claim.id, one.claim.full_name} & set(names)) and tier in (None, one.claim.tier)
        ]  # fmt: skip


def find_claims(folder: str | Path | None = None) -> Claims:
    """All claims of a folder, by id, in the order in which their file holds them.

    Args:
        folder: see `claims_folder`.

    Raises:
        MissingPart: there is no such folder.
    """
    place = claims_folder(folder)
    found, broken, names = list[Found](), list[Broken](), dict[str, Path]()
    for file in sorted(place.glob("[!_]*.py")):
        try:
            held = read_claims(file)
            for one in held:
                if (other := names.setdefault(one.claim.full_name, file)) != file:
                    raise SpecError(f"{file}: claim {one.claim.full_name} is in {other.name}, too; names are unique")
        except SpecError as error:
            broken.append(Broken(file, str(error)))
            continue
        found += held
    return Claims(place, tuple(sorted(found, key=lambda one: one.claim.id)), tuple(broken))


def read_claims(file: str | Path) -> list[Found]:
    """The claims of one file.

    Raises:
        MissingPart: there is no such file. SpecError: it cannot be read, or holds no claim; the text names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise MissingPart(f"there is no claim file {file}")
    try:
        module = _load(file)
    except Exception as error:
        line = next((step.lineno for step in reversed(traceback.extract_tb(error.__traceback__))
                     if Path(step.filename) == file), getattr(error, "lineno", None))  # fmt: skip
        where = f", line {line}" if line else ""
        said = " ".join(str(error).split()) or "no text"
        raise SpecError(f"{file}{where}: {type(error).__name__}: {said}; mend the claim file") from error
    held = [Found(value, file) for value in vars(module).values() if isinstance(value, Claim)]
    if not held:
        raise SpecError(f"{file} holds no claim; a claim is a function under @claim(...) from homeostat.evidence")
    twice = {one.claim.full_name for one in held}
    if len(twice) < len(held):
        raise SpecError(f"{file} holds two claims of one name; functions have names of their own")
    return held


def _load(file: Path) -> ModuleType:
    name = f"homeostat_claims_{file.stem}"
    made = importlib.util.spec_from_file_location(name, file)
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    # Dataclasses of the file look their module up.
    sys.modules[name] = module
    made.loader.exec_module(module)
    return module


def _named(file: Path) -> set[str]:
    """Modules of registered things that a file only names in a text, such as the layout of a `Network`."""
    words = {node.value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    known = {entry.name for entry in outline()}
    modules = {spec.find(word).__module__ for word in words & known}
    return {module for module in modules if module.partition(".")[0] == LIBRARY}
