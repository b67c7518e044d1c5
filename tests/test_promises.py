"""Every registered shift, probe and remedy through the public checks: one matrix for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from homeostat.adapt import (
    CEMA,
    DRM,
    EATA,
    MEMO,
    PETAL,
    RMT,
    BatchNormBlend,
    ConditionalUnrolled,
    CoTTA,
    CrossDomainEnsemble,
    LabelShiftAdapter,
    PeriodicReset,
    Repeated,
    RoTTA,
    SlidingWindow,
    Tent,
    ViDA,
    VisualDomainPrompt,
)
from homeostat.continual import ACIL
from homeostat.core import spec
from homeostat.core.check import check_probe, check_remedy, check_shift, small_network, small_world
from homeostat.core.fork import fork
from homeostat.core.method import Chain, Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.place import home, placed, there
from homeostat.core.probe import Probe
from homeostat.core.save import content_hash
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.curate import DCC
from homeostat.data import ByteTokenizer, Strings
from homeostat.fit import Fit, Recipe
from homeostat.merge import ATLAS, D2NWG, SWS, AdaMerging, Merge, MultiLevel, ReBasin, Teleport
from homeostat.nn import SmallViT
from homeostat.nn.mlp import MLP
from homeostat.nn.unrolled import Denoiser
from homeostat.probe import BBSE, FeatureShift, ShiftKind
from homeostat.robust import PGD, TRADES, BatchPoisoning
from homeostat.shift import Compose, Corrupt, Gradual, LabelShift, Mixed, Phases, Rotate, TextShift, Undersample
from homeostat.trust import RCT, RSCP
from homeostat.tune import LoRA


def donors() -> World:
    net, made = small_network(), {}
    for seed in range(2):
        other = fork(net, own="*")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        made[f"donor{seed}"] = other
    return small_world().replace(models=made)


def with_a_cloud() -> World:
    strong = small_network()
    with torch.no_grad():
        strong[5].weight *= 2
    return small_world().replace(models={"cloud": strong})


def zoo() -> World:
    """A network for each of the parts."""
    named = zip(small_world().parts, donors().models.values(), strict=True)
    return small_world().replace(models=dict(named))


def with_a_teacher() -> World:
    return small_world().replace(models={"teacher": small_network()})


def skewed() -> World:
    world = small_world()
    assert world.source is not None
    kept = torch.tensor([i for i in range(48) if i % 3 == 0 or i % 12 == 1 or i % 6 == 2])
    return world.replace(source=world.source[kept])


REMEDIES: dict[str, list[Remedy]] = {
    "ACIL": [ACIL(expand=32), ACIL(expand=32, form="recursive")],
    "CEMA": [CEMA(), CEMA(high=1.0, div_margin=1.1, batch=8, replay=20, replay_from=12)],
    "Chain": [Chain((BatchNormBlend(), Tent())), Chain((LoRA(rank=2), Fit(recipe=Recipe(batch=16))))],
    "D2NWG": [
        D2NWG(
            own=("5.*",),
            layer="5",
            width=8,
            latent=4,
            diffusion_steps=5,
            shots=4,
            candidates=2,
            **dict.fromkeys(("vae", "align", "diffuse"), Recipe(epochs=2)),
        )
    ],
    "CrossDomainEnsemble": [
        CrossDomainEnsemble(("direct", "emboss", "wavelet"), recipe=Recipe(batch=16)),
        CrossDomainEnsemble(("blur", "sobel"), merge="average", distortions=(), recipe=Recipe(batch=16)),
    ],
    "DRM": [
        DRM(recipe=Recipe(batch=16)),
        DRM(steer="entropy", learn="heads", recipe=Recipe(batch=16)),
        DRM(weight="similarity", steer="templates", recipe=Recipe(batch=16)),
    ],
    "ConditionalUnrolled": [ConditionalUnrolled(iterations=2, levels=3, recipe=Recipe(batch=16))],
    "Fit": [
        Fit(recipe=Recipe(batch=16)),
        Fit(objective=TRADES(eps=0.05, steps=2), recipe=Recipe(batch=16)),
        Fit(objective=RCT(draws=2), own="5.*", freeze_stats=True, recipe=Recipe(batch=32)),
    ],
    "LabelShiftAdapter": [
        LabelShiftAdapter(recipe=Recipe(batch=16)),
        LabelShiftAdapter(EATA(margin=1.0), balanced=0.5),
        LabelShiftAdapter(PeriodicReset(Tent(), every=2), recipe=Recipe(batch=16)),
    ],
    "LoRA": [LoRA(rank=2, convolutions=True)],
    "MultiLevel": [MultiLevel(**dict.fromkeys(("down", "up", "last"), Recipe(batch=16)))],
    "PeriodicReset": [
        PeriodicReset(Tent(), every=2),
        PeriodicReset(SlidingWindow(EATA(margin=1.0), size=5), every=3),
    ],
    "RMT": [RMT(warmup=60, batch=20), RMT(w_src=0.0, w_con=0.0, warmup=0)],
    "RoTTA": [RoTTA(), RoTTA(capacity=8, frequency=5)],
    "VisualDomainPrompt": [VisualDomainPrompt(), VisualDomainPrompt(statistics="batch")],
    "ViDA": [ViDA(rank_high=8, views=3, recipe=Recipe(batch=24))],
    "ReBasin": [ReBasin(), ReBasin(matching="activations", mode="rescale"), ReBasin(mode="reset_bn")],
    "RSCP": [RSCP(draws=8)],
    "Teleport": [Teleport(), Teleport("sharpness", False, directions=1, steps=2), Teleport("curvature", steps=2)],
    "Repeated": [Repeated(Tent(), steps=2), Repeated(PETAL(views=2, threshold=1.1), steps=2)],
    "SWS": [SWS(stages=(2, 1), recipe=Recipe(batch=16))],
    "SlidingWindow": [SlidingWindow(Tent(), size=5), SlidingWindow(RMT(warmup=40, batch=20), size=7)],
}
PROBES: dict[str, list[Probe]] = {
    "BBSE": [BBSE(soft=True)],
    "FeatureShift": [FeatureShift(bootstraps=200, window=48, reference=200)],
}
SHIFTS: dict[str, list[Shift]] = {
    "Compose": [Compose((Corrupt("contrast"), LabelShift())), Compose((Corrupt("gaussian_noise"),) * 2)],
    "Corrupt": [Corrupt("gaussian_noise"), Corrupt("glass_blur", 5), Corrupt("spatter", 2)],
    "DCC": [DCC(ipc=3, outer=2, warm_outer=1, steps=2, epochs=1, width=4, depth=2, batch=8)],
    "Gradual": [Gradual(Corrupt("fog", 2))],
    "LabelShift": [LabelShift(), LabelShift((1.0, 2.0, 0.5), size=60)],
    "Mixed": [Mixed((Corrupt("contrast"), Rotate(10.0)))],
    "Phases": [Phases((Corrupt("fog", 1), LabelShift()))],
}


def table() -> World:
    generator = torch.Generator().manual_seed(0)
    source, target, held = (torch.randn(count, 4, generator=generator) for count in (300, 100, 100))
    return World(source=source, target=target, held=held)


def scans() -> World:
    """Undersampled frequencies of the small images."""
    return World(
        **{name: Undersample(acceleration=2.0)(getattr(small_world(), name)) for name in ("source", "target", "held")},
        task=Regress(),
    )


MODELS: dict[str, nn.Module] = {
    "ConditionalUnrolled": Denoiser(width=4, depth=2),
    "MultiLevel": SmallViT(3, in_channels=1, size=8, width=8, depth=2),
    "SWS": SmallViT(3, in_channels=1, size=8, width=8, depth=3),
    "Teleport": MLP(64, 3, (8, 6), seed=3).eval(),
}
"""For remedies that take no classifier, or not the small one."""
CHEAPER: dict[str, Any] = {
    "ATLAS": ATLAS(epochs=1),
    "AdaMerging": AdaMerging(steps=20),
    "CoTTA": CoTTA(views=3),
    "MEMO": MEMO(views=2),
    "PETAL": PETAL(views=3),
    "ShiftKind": ShiftKind(simulations=6),
}
"""For the strict device, on which each operation takes a hundred times longer."""
WORLDS = {
    "CEMA": with_a_cloud,
    "ConditionalUnrolled": scans,
    "D2NWG": zoo,
    "EFT": donors,
    "FeatureShift": table,
    "LabelShiftAdapter": skewed,
    **dict.fromkeys(("FisherMerge", "RegMean", *(cls.__name__ for cls in spec.registered(Merge))), donors),
    "SWS": with_a_teacher,
    "ATLAS": donors,
    "AdaMerging": donors,
    "ReBasin": donors,
}


def cases(kind: type, made: dict) -> list:
    found = []
    for cls in spec.registered(kind):
        if not getattr(cls, "__abstractmethods__", None) and cls.__module__.startswith("homeostat."):
            found += made.get(cls.__name__) or [cls()]
    return [pytest.param(case, id=f"{type(case).__name__}-{i}") for i, case in enumerate(found)]


@pytest.mark.parametrize("remedy", cases(Remedy, REMEDIES))
def test_remedies_keep_their_promises(remedy: Remedy):
    name = type(remedy).__name__
    check_remedy(remedy, MODELS.get(name), WORLDS.get(name, small_world)())


@pytest.mark.parametrize("probe", cases(Probe, PROBES))
def test_probes_keep_their_promises(probe: Probe):
    check_probe(probe, world=WORLDS.get(type(probe).__name__, small_world)())


@pytest.mark.parametrize("remedy", cases(Remedy, REMEDIES))
def test_remedies_keep_their_promises_on_another_device_and_give_what_they_give_on_the_cpu(remedy: Remedy, strict):
    remedy = CHEAPER.get(type(remedy).__name__, remedy)
    name = type(remedy).__name__
    world, net = WORLDS.get(name, small_world)(), MODELS.get(name, small_network())
    away = placed(net, strict.NAME)
    check_remedy(remedy, away, world, dtypes=())
    x = next(world.target.batches(8))
    here, far = remedy(net, world), remedy(away, world)
    assert torch.equal(home(far(there(x.x, far))), here(x.x))
    if isinstance(here, Online):
        for batch in list(world.target.unlabelled().batches(12)):
            assert torch.equal(home(far.observe(batch.to(strict.NAME))), here.observe(batch))
    assert content_hash(far) == content_hash(here)


@pytest.mark.parametrize("probe", cases(Probe, PROBES))
def test_probes_keep_their_promises_on_another_device_and_read_what_they_read_on_the_cpu(probe: Probe, strict):
    probe = CHEAPER.get(type(probe).__name__, probe)
    world, net = WORLDS.get(type(probe).__name__, small_world)(), small_network()
    check_probe(probe, placed(net, strict.NAME), world)
    wants = probe.reads & {"out", "features"}
    here, far = (probe(model if wants else None, world) for model in (net, placed(net, strict.NAME)))
    assert (here.value, here.interval, here.finding) == (far.value, far.interval, far.finding)


@pytest.mark.parametrize("shift", [PGD(steps=3), PGD(norm="2", steps=3), BatchPoisoning(steps=3)])
def test_shifts_that_attack_a_network_find_it_on_another_device(shift: Shift, strict):
    data, net = small_world().target, small_network()
    here, far = (shift(data, model=model).load() for model in (net, placed(net, strict.NAME)))
    assert torch.equal(here.x, far.x) and torch.equal(here.y, far.y)


@pytest.mark.parametrize("shift", cases(Shift, SHIFTS))
def test_shifts_keep_their_promises(shift: Shift):
    texts = Strings([f"the quick brown fox {i} jumps over lazy dogs" for i in range(40)], [i % 3 for i in range(40)])
    data = texts.tokenized(ByteTokenizer(), 48) if isinstance(shift, TextShift) else None
    check_shift(shift, data, model=small_network())


def test_the_first_rows_of_the_catalogue_are_registered_by_id():
    ids = {cls.card.id for cls in spec.registered(object) if getattr(cls, "card", None)}
    assert {"S001", "S022", "S037", "S058", "S094", "S110", "S168", "S174", "S249", "S290"} <= ids


def test_every_remedy_has_a_card_and_a_docstring_with_its_fields():
    for cls in spec.registered((Remedy, Probe, Shift)):
        if cls.__module__.startswith("homeostat.") and not getattr(cls, "__abstractmethods__", None):
            assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), cls


def test_a_network_without_what_a_remedy_needs_is_refused_with_the_reason():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="BatchNorm"):
        BatchNormBlend()(plain)
