"""Merges written down: plans in YAML in mergekit's words.

    merge_method: ties
    base_model: nets/base
    models:
      - model: nets/maths
        parameters: {density: [1.0, 0.5], weight: 1.0}
      - model: nets/code
        parameters: {density: 0.5, weight: {filter: mlp, value: 0.3}}
    parameters: {normalize: true, lambda: 0.8, weight: 1.0}
    dtype: bfloat16

`slices` in place of `models` takes layers from where it likes, also to stack them. What is not supported is said, all
of it, with its line. Numbers are computed in float32 whatever `dtype` is, which is what is written; thresholds, votes
and normalisation are mergekit's (`dialect`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.core.errors import HomeostatError
from homeostat.core.run import Run
from homeostat.merge.checkpoints import as_dtype, called, open_all
from homeostat.merge.dialect import NEEDED, Scaled
from homeostat.merge.jobs import Job, carry_out
from homeostat.merge.layers import comes_first, stack_of, where
from homeostat.merge.merging import Copy, Group, Merge
from homeostat.merge.opening import Checkpoint
from homeostat.merge.plan_parts import Plan, Slice
from homeostat.merge.plan_reading import as_read, read_plan
from homeostat.merge.preflight import BUFFERS, Preflight, Row
from homeostat.merge.reports import MergeReport
from homeostat.merge.settings import evaluate
from homeostat.merge.writing import SHARD

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configurations call the number of layers."""


def merge_plan(
    plan: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
    shard: int = SHARD,
    threads: int = 2,
    overwrite: bool = False,
    resume: bool = True,
    sync: bool = True,
    dry_run: bool = False,
    run: Run = Run(),
) -> MergeReport:
    """Merge checkpoints as a plan says.

    Args:
        plan: a YAML file, or what one holds. Paths are read from the file's folder, or from where we are.
        dtype: to write, in place of the plan's.
        out, ignore, shard, threads, overwrite, resume, sync, dry_run, run: as of `merge_checkpoints`.

    Raises:
        SpecError: the plan is wrong, or asks for what is not supported; all of it is told. And what
        `merge_checkpoints` raises.
    """
    read = as_read(plan, Path.cwd()) if isinstance(plan, Mapping) else read_plan(plan)
    job = job_of(read, dtype, ignore)
    return carry_out(
        job, out, shard=shard, threads=threads, overwrite=overwrite, resume=resume, sync=sync, dry_run=dry_run, run=run
    )


def job_of(plan: Plan, dtype: str | None = None, ignore: Sequence[str] = ()) -> Job:
    """What a plan asks for, tensor by tensor; all that does not fit is told at once."""
    models = list(dict.fromkeys(_models(plan)))
    labels = dict(zip(models, called(models), strict=True))
    inputs = open_all({labels[model]: plan.find(model) for model in models})
    return _Planner(plan, labels, inputs, as_dtype(dtype or plan.dtype)).job(ignore)


def _models(plan: Plan) -> Iterator[str]:
    yield from ([plan.base] if plan.base else [])
    for one in plan.slices:
        yield from ([one.base] if one.base else [])
        yield from (source.model for source in one.sources)


class _Planner:
    def __init__(self, plan: Plan, labels: Mapping[str, str], inputs: Mapping[str, Checkpoint], dtype: Any):
        self.plan, self.labels, self.inputs = plan, labels, inputs
        self.flight = Preflight(inputs, dtype)
        self.stacks = {label: stack_of(held.names()) for label, held in inputs.items()}
        self.work: dict[Merge, list[Group]] = defaultdict(list)
        self.missing: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.refused: dict[str, list[str]] = defaultdict(list)
        self.order: list[str] = []
        self.layers: list[tuple[str, int]] = []

    def job(self, ignore: Sequence[str]) -> Job:
        plan = self.plan
        if plan.whole:
            self._whole(plan.slices[0])
        else:
            self._sliced()
        for (name, model), tensors in self.missing.items():
            of = f" of {model}" if model else ""
            self.flight.problems[f"the parameter {name}{of} is not given, and {plan.method} needs it, for"] += tensors
        for text, tensors in self.refused.items():
            self.flight.problems[f"{text}, for"] += tensors
        lends = self.labels[plan.base or plan.slices[0].sources[0].model]
        self.flight.check_rest([n for n in self.inputs if n != lends], lends, ignore, layers=plan.whole)
        self.flight.refuse()
        work = [(method, sorted(groups, key=lambda g: g.name)) for method, groups in self.work.items()]
        base, record = self.inputs[lends], {"plan": plan.content, "models": {}}
        record["models"] = {label: str(held.path) for label, held in self.inputs.items()}
        config = {} if plan.whole else self._config(base)
        notes = [*plan.notes, *self.flight.said()]
        return Job(work, base, self.inputs, self.flight.dtype, config, record, notes, self.order)

    def _whole(self, one: Slice) -> None:
        lends = self.labels[one.base or one.sources[0].model]
        held = self.inputs[lends]
        for name in held.names():
            at = self.stacks[lends].at(name)
            statistics = name.endswith(BUFFERS) and self.plan.method != "linear"
            if statistics or not held.tensors.places[name].dtype.is_floating_point:
                self._keep(Copy(), self.flight.copied(Row(name, (lends, name))))
            else:
                self._tensor(one, name, at, [name] * len(one.sources))

    def _sliced(self) -> None:
        for number, one in enumerate(self.plan.slices):
            if not self._reaches(one):
                continue
            lends = self.labels[one.base if one.base in [s.model for s in one.sources] else one.sources[0].model]
            mine, labels = self.stacks[lends], self._labels(one)
            if number == 0:
                self._outer(one, [n for n in mine.outer if comes_first(n)])
            begins = [source.layers[0] for source in one.sources if source.layers]
            first, stop = next(s.layers for s in one.sources if s.layers and self.labels[s.model] == lends)
            for offset in range(stop - first):
                for rest in mine.within.get(first + offset, ()):
                    names = [self.stacks[n].name(b + offset, rest) for n, b in zip(labels, begins, strict=True)]
                    self._tensor(one, mine.name(len(self.layers), rest), where(offset, stop - first), names)
                self.layers.append((labels[0], begins[0] + offset))
            if number == len(self.plan.slices) - 1:
                self._outer(one, [n for n in mine.outer if not comes_first(n)])

    def _outer(self, one: Slice, names: list[str]) -> None:
        for name in names:
            self._tensor(one, name, 0.0, [name] * len(one.sources))

    def _reaches(self, one: Slice) -> bool:
        for source in one.sources:
            there = self.stacks[self.labels[source.model]].count
            if source.layers and source.layers[1] > there:
                told = f"{self.labels[source.model]} has {there} layers, so there is no layer_range"
                self.flight.problems[told].append(str(list(source.layers)))
                return False
        return True

    def _labels(self, one: Slice) -> list[str]:
        return [self.labels[source.model] for source in one.sources]

    def _tensor(self, one: Slice, name: str, at: float, names: Sequence[str]) -> None:
        """Plan a tensor.

        Args:
            one: the slice that it is of.
            name: in the result.
            at: how far its layer is among the slice's.
            names: what it is called in each source.
        """
        known = self.plan.known
        shared = {
            key: self._setting(key, usual, (one.parameters, self.plan.parameters), name, at)
            for key, usual in known.shared.items()
        }
        chosen = [i for i, source in enumerate(one.sources) if known.base == "model" or source.model != one.base]
        each = [
            {
                key: self._setting(
                    key, usual, (one.sources[i].parameters, one.parameters, self.plan.parameters), names[i], at,
                    self.labels[one.sources[i].model],
                )
                for key, usual in known.each.items()
            }
            for i in chosen
        ]  # fmt: skip
        if any(value is NEEDED for values in (shared, *each) for value in values.values()):
            return
        refs = [(self.labels[source.model], names[i]) for i, source in enumerate(one.sources)]
        own = next((refs[i] for i, s in enumerate(one.sources) if s.model == one.base), None)
        if own is None and one.base is not None and known.base != "model":
            own = (self.labels[one.base], name)
        origin = self._origin(own or refs[chosen[0]], name)
        if origin is None:
            return
        try:
            method, kept = known.make(shared, each, self.inputs[origin[0]].tensors.places[origin[1]].count)
            donors = [refs[chosen[i]] for i in kept]
            if own is None and known.base == "possible":
                donors = donors[1:]
            if donors:
                method.check(len(donors))
        except HomeostatError as error:
            self.refused[str(error)].append(name)
            return
        row = Row(name, origin, tuple(donors))
        if not donors and not _alone(method):
            method = Copy()
        group = self.flight.merged(row) if donors else self.flight.copied(row)
        if group is not None and not (group.dtype.is_floating_point and group.count):
            method, group = Copy(), self.flight.copied(row)
        if group is not None:
            self._keep(method, group)

    def _origin(self, ref: tuple[str, str], name: str) -> tuple[str, str] | None:
        found = self.inputs[ref[0]].find(ref[1])
        if found is None:
            self.flight.problems[f"{ref[0]} lacks"].append(ref[1])
            return None
        return ref[0], found

    def _keep(self, method: Merge, group: Group) -> None:
        self.work[method].append(group)
        self.order.append(group.name)

    def _setting(
        self, key: str, usual: Any, places: Sequence[dict[str, Any]], name: str, at: float, of: str = ""
    ) -> Any:
        for place in places:
            if key in place and (found := evaluate(place[key], name, at)) is not None:
                return found
        if usual is NEEDED:
            self.missing[key, of].append(name)
        return usual

    def _config(self, base: Checkpoint) -> dict[str, Any]:
        """The number of layers, and lists that have an entry for each."""
        changed = dict[str, Any]()
        inner = {key: value for key, value in base.config.items() if isinstance(value, dict)}
        for name, part in {"": dict(base.config), **inner}.items():
            key = next((k for k in LAYER_COUNTS if k in part), None)
            if key is None:
                continue
            count, made = part[key], {**part, key: len(self.layers)}
            for listed in [k for k, v in part.items() if isinstance(v, list) and len(v) == count and count > 1]:
                found = [self._entry(label, name, listed, layer, count) for label, layer in self.layers]
                if None not in found:
                    made[listed] = found
            changed |= {name: made} if name else {k: v for k, v in made.items() if v != part.get(k)}
        return changed

    def _entry(self, label: str, part: str, key: str, layer: int, count: int) -> Any:
        config: Any = self.inputs[label].config
        held = (config.get(part) or {} if part else config).get(key)
        return held[layer] if isinstance(held, list) and layer < len(held) else None


def _alone(method: Merge) -> bool:
    """Whether a method makes something of the base alone."""
    return isinstance(method, Scaled | Copy)
