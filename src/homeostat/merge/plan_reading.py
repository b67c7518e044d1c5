"""A merge plan's YAML, read and checked: what is not known, not supported or not right, all of it with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from homeostat.core.configfile import LARGEST, _line, read_yaml
from homeostat.core.errors import InputError, SpecError, nearest
from homeostat.merge.checkpoints import WRITTEN
from homeostat.merge.dialect import FOREIGN, KNOWN, SETTINGS, TRUTHS, Known
from homeostat.merge.plan_parts import Plan, Slice, Source
from homeostat.merge.settings import wrong_with

KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "name",
)  # fmt: skip

ELSEWHERE = {
    "chat_template": "put the template into the base's tokenizer files, which are copied",
    "modules": "merge each module by a plan of its own, with models: or slices:",
    "merges": "write each merge as a file of its own",
}
"""Keys that mergekit has and this has not, with what to do."""

Path_ = tuple[str | int, ...]


def read_plan(path: str | Path) -> Plan:
    """Read a merge plan.

    Raises:
        InputError: the file cannot be read. SpecError: something in it is wrong or not supported; all of it is told.
    """
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST // 1_000_000} MB; a merge plan is wanted")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; a merge plan in YAML is wanted") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        content, root = read_yaml(text)
    except yaml.YAMLError as error:
        if "another document" in str(error) or "single document" in str(error):
            raise SpecError(f"{path.name}: it holds several plans; write each as a file of its own") from None
        mark = getattr(error, "problem_mark", None)
        said = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path.name}{said}: this is not YAML: {getattr(error, 'problem', error)}") from None
    except SpecError as error:
        raise SpecError(f"{path.name}, {error}") from None
    reader = _Reader(content if isinstance(content, dict) else {})
    if not isinstance(content, dict):
        reader.wrong((), "a plan is a mapping with merge_method, and with models or slices")
    plan = reader.read(path.parent)
    if reader.found:
        told = [f"line {_line(root, at)}: {text}" for at, text in reader.found]
        raise SpecError(f"{path.name}, {told[0]}" if len(told) == 1 else f"{path.name}: {'; '.join(told)}")
    assert plan is not None
    return plan


class _Reader:
    """Reads a plan and keeps what is wrong."""

    def __init__(self, content: dict[str, Any]):
        self.content = content
        self.found: list[tuple[Path_, str]] = []
        self.notes: dict[str, None] = {}

    def wrong(self, at: Path_, text: str) -> None:
        self.found.append((at, text))

    def read(self, folder: Path) -> Plan | None:
        content = self.content
        for key in content:
            if key in ELSEWHERE and content[key] is not None:
                self.wrong((key,), f"{key} is not supported; {ELSEWHERE[key]}")
            elif key not in KEYS and key not in ELSEWHERE:
                self.wrong((key,), f"{key} is not known.{nearest(str(key), KEYS)}")
        known = self.method()
        base = None if content.get("base_model") is None else self.model(("base_model",), content["base_model"])
        if ("models" in content) == ("slices" in content) and content:
            self.wrong((), "a plan has either models or slices")
        dtype = self.dtype()
        self.tokenizer(base)
        if known is None:
            return None
        parameters = self.parameters((), content.get("parameters"), known)
        slices = self.slices(known, base) if "slices" in content else self.models(known, base)
        if known.base == "needed" and base is None and not all(one.base for one in slices):
            self.wrong(("merge_method",), f"{content['merge_method']} needs a base_model")
        whole = "slices" not in content
        return Plan(
            content["merge_method"], known, base, slices, parameters, dtype, whole, list(self.notes), content, folder
        )

    def method(self) -> Known | None:
        name = self.content.get("merge_method")
        if name in KNOWN:
            return KNOWN[name]
        if name is None:
            if self.content:
                self.wrong((), f"a plan names its merge_method: {', '.join(KNOWN)}")
        elif name in FOREIGN:
            self.wrong(("merge_method",), f"merge_method {name} is not supported; there are {', '.join(KNOWN)}")
        else:
            hint = nearest(str(name), KNOWN) or f" There are {', '.join(KNOWN)}"
            self.wrong(("merge_method",), f"merge_method {name!r} is not known.{hint}")
        return None

    def dtype(self) -> str | None:
        found = None
        for key in ("dtype", "out_dtype"):
            value = self.content.get(key)
            if value is not None and value not in WRITTEN:
                self.wrong((key,), f"{key} {value} is not one of {', '.join(WRITTEN)}.{nearest(str(value), WRITTEN)}")
            found = value or found
        return found

    def tokenizer(self, base: str | None) -> None:
        source, at = self.content.get("tokenizer_source"), ("tokenizer_source",)
        about = self.content.get("tokenizer")
        if isinstance(about, dict):
            for key in about:
                if key != "source" and about[key]:
                    self.wrong(("tokenizer", key), f"tokenizer.{key} is not supported; edit the tokenizer afterwards")
            source, at = about.get("source", source), ("tokenizer", "source")
        elif about is not None:
            self.wrong(("tokenizer",), "tokenizer is a mapping with source")
        if source == "union":
            self.wrong(
                at, "a tokenizer of all models is not supported; bring them to one vocabulary first, or use base"
            )
        elif source not in (None, "base") and source != base:
            self.wrong(at, "the tokenizer is the base's, whose files are copied; another one is not supported")

    def model(self, at: Path_, value: Any) -> str:
        if isinstance(value, dict):
            inner = value.get("model", value)
            if value.get("lora") or (isinstance(inner, dict) and inner.get("revision")):
                self.wrong(at, "an adapter or a revision of a model is not supported; give a folder with the network")
            value = inner.get("path") if isinstance(inner, dict) else inner
        if not isinstance(value, str) or not value:
            self.wrong(at, "a model is the path of its folder")
            return ""
        if "+" in value and not Path(value).expanduser().exists():
            self.wrong(at, f"{value} is a network with an adapter; add the adapter to the network first (see peft)")
        return value

    def parameters(self, at: Path_, given: Any, known: Known, one: bool = False) -> dict[str, Any]:
        at = (*at, "parameters")
        if given is None:
            return {}
        if not isinstance(given, dict):
            self.wrong(at, "parameters are a mapping")
            return {}
        taken = {}
        for name, setting in given.items():
            if name not in SETTINGS:
                self.wrong((*at, name), f"the parameter {name} is not known.{nearest(str(name), SETTINGS)}")
                continue
            mine = (known.each if one else {**known.shared, **known.each}).keys()
            if name not in mine or name == "int8_mask":
                where = " of a model" if one and name in known.shared else ""
                self.notes[f"{name}{where} has no effect with {self.content['merge_method']}"] = None
                continue
            wrong = list(wrong_with(setting, bool if name in TRUTHS else float))
            for path, text in wrong:
                self.wrong((*at, name, *path), f"{name}: {text}")
            if not wrong:
                taken[name] = setting
        return taken

    def models(self, known: Known, base: str | None) -> list[Slice]:
        sources = self.sources(("models",), self.content.get("models"), known, layers=False)
        names = [source.model for source in sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            self.wrong(("models",), f"{twice[0]} comes twice; give it once, with the sum of the weights")
        if base is not None and base not in names and self.content["merge_method"] == "linear":
            # A base that is not among the models has its say like any of them, by the settings of all.
            sources.append(Source(base))
        self.count(("models",), sources, known, base)
        return [Slice(sources, base)]

    def slices(self, known: Known, base: str | None) -> list[Slice]:
        given, made = self.content["slices"], []
        if not isinstance(given, list) or not given:
            self.wrong(("slices",), "slices are a list")
            return []
        for number, one in enumerate(given):
            at: Path_ = ("slices", number)
            if not isinstance(one, dict):
                self.wrong(at, "a slice is a mapping with sources")
                continue
            for key in one:
                if key not in ("sources", "base_model", "parameters"):
                    self.wrong((*at, key), f"{key} of a slice is not supported")
            sources = self.sources((*at, "sources"), one.get("sources"), known, layers=True)
            own = self.model((*at, "base_model"), one["base_model"]) if one.get("base_model") else base
            if len({b - a for a, b in (s.layers for s in sources if s.layers)}) > 1:
                self.wrong(at, "all sources of a slice have the same number of layers")
            if own is not None and known.base == "needed" and own not in [source.model for source in sources]:
                self.wrong(at, f"the base model {own} is not among the sources of this slice; add it, with its layers")
            self.count(at, sources, known, own)
            made.append(Slice(sources, own, self.parameters(at, one.get("parameters"), known)))
        return made

    def sources(self, at: Path_, given: Any, known: Known, layers: bool) -> list[Source]:
        if not isinstance(given, list) or not given:
            self.wrong(at, f"{at[-1]} are a list of models")
            return []
        made = []
        for number, one in enumerate(given):
            here, one = (*at, number), {"model": one} if isinstance(one, str) else one
            if not isinstance(one, dict) or "model" not in one:
                self.wrong(here, "a model is given as {model: its folder}")
                continue
            wanted = ("model", "parameters", "layer_range") if layers else ("model", "parameters")
            for key in one:
                if key not in wanted:
                    self.wrong((*here, key), f"{key} is not known here.{nearest(str(key), wanted)}")
            span = _span(one.get("layer_range")) if layers else None
            if layers and span is None:
                self.wrong(
                    here, "a source needs its layer_range, such as [0, 16]: the first and the one after the last"
                )
            parameters = self.parameters(here, one.get("parameters"), known, True)
            made.append(Source(self.model((*here, "model"), one["model"]), parameters, span))
        return made

    def count(self, at: Path_, sources: list[Source], known: Known, base: str | None) -> None:
        models = [s for s in sources if known.base == "model" or s.model != base]
        name = self.content["merge_method"]
        if sources and not known.least <= len(models) <= known.most:
            beside = "" if known.base == "model" else " beside the base"
            wanted = f"{known.least} or more" if len(models) < known.least else f"{known.most} at most"
            self.wrong(at, f"{name} takes {wanted}{beside}; there are {len(models)}")


def _span(given: Any) -> tuple[int, int] | None:
    match given:
        case [int(first), int(stop)] if 0 <= first < stop:
            return first, stop
    return None


def as_read(content: Mapping[str, Any], folder: Path) -> Plan:
    """A plan that was read already, or was written in Python.

    Raises:
        SpecError: something in it is wrong or not supported; all of it is told.
    """
    reader = _Reader(dict(content))
    plan = reader.read(folder)
    if reader.found:
        told = [f"{'.'.join(map(str, at)) or 'the plan'}: {text}" for at, text in reader.found]
        raise SpecError("; ".join(told))
    assert plan is not None
    return plan
