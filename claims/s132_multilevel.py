"""S132: train a transformer through a smaller one (Zou et al., ICLR 2024).

The paper saves about 20 % of the computation of BERT-Base and GPT-Base, and up to 51.6 % of BERT-Large's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from homeostat import Batch, Data, Run, Tensors, fork
from homeostat.core.data import UNKNOWN
from homeostat.core.task import Tokens
from homeostat.data import Glosses
from homeostat.evidence import claim
from homeostat.fit import Recipe, train
from homeostat.merge import coalesce, decoalesce, interpolate
from homeostat.nn import Adam, CausalTransformer

DATA = (
    Glosses(part="noun", tokenizer="bytes", length=65, shuffle=0, stop=24_000),
    Glosses(part="noun", tokenizer="bytes", length=65, shuffle=0, start=24_000, stop=24_256),
)
STEPS, EVERY, BATCH = 480, 20, 16
LARGE_RATE, SMALL_RATE, ALPHA = 2e-3, 4e-3, 0.25


def following(data: Data) -> Tensors:
    """Texts as a language model takes them: the label of a position is the next byte."""
    x: Any = data.load().x
    ids, mask = x["input_ids"], x["attention_mask"]
    return Tensors(ids[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, UNKNOWN))


def loss(net: nn.Module, batches: Mapping[str, Batch], run: Run) -> dict[str, torch.Tensor]:
    batch = batches["texts"]
    return {"loss": Tokens().loss(net(batch.x), batch.labels).mean()}


def held_loss(net: nn.Module, held: Tensors) -> float:
    with torch.no_grad():
        return float(loss(net, {"texts": held.load()}, Run())["loss"])


def step_cost(net: nn.Module, texts: Tensors) -> int:
    """Floating-point operations of a forward and a backward pass of one batch, counted."""
    with FlopCounterMode(display=False) as counter:
        loss(fork(net, own="*"), {"texts": next(texts.batches(BATCH))}, Run())["loss"].backward()
    return counter.get_total_flops()


def trained(
    net: nn.Module, texts: Tensors, held: Tensors | None, rate: float, steps: int, run: Run
) -> tuple[nn.Module, list[float]]:
    """The network after so many steps, and its held-out loss after every so many."""
    own, curve = fork(net, own="*").train(), list[float]()

    def after(step: int, per_epoch: int) -> None:
        if held is not None and (step + 1) % EVERY == 0:
            curve.append(held_loss(own, held))

    order = torch.randperm(len(texts), generator=run.rng("texts"))[: steps * BATCH]
    recipe = Recipe(optimizer=Adam(lr=rate, weight_decay=0.01, decoupled=True), batch=BATCH, clip=1.0)
    data: dict[str, Data] = {"texts": texts[order]}
    train(own, partial(loss, own), data, dict(own.named_parameters()), recipe, run=run, after=after)
    return own, curve


def steps_until(goal: float, curve: list[float]) -> float:
    """Steps until the curve is at the goal, between two looks on the line through them; all when it never is."""
    for number, now in enumerate(curve):
        if now <= goal:
            before = curve[number - 1] if number else now
            share = (before - goal) / (before - now) if before > now else 1.0
            return EVERY * (number + share) if number else float(EVERY)
    return float(EVERY * len(curve))


@claim(
    "S132",
    says="Through a network of half the width and half the depth, a transformer comes to the held-out loss that "
    "training from scratch ends at with a tenth less computation or better.",
    ours="V-cycle", baseline="from scratch", metric="floating-point operations until the same held-out loss",
    unit="share of training from scratch", better="lower", least=0.10, tier="long", data=DATA,
    tuned="the learning rate of each size, as the best of 1e-3, 2e-3 and 4e-3 for training it from scratch, on other "
    "glosses with seed 100; alpha and the shares of the stages are the authors'",
    shrunk="a transformer of width 64 and 4 blocks on the bytes of WordNet's glosses and 480 steps of 16 texts at a "
    "constant learning rate, in place of BERT and GPT-2 on Wikipedia; when the V-cycle does not get there within 480 "
    "steps of the large network, it is counted as if it had at the last of them",
)  # fmt: skip
def computation_to_the_same_loss(run: Run, train_texts: Data, held_texts: Data) -> dict[str, float]:
    texts, held = following(train_texts), following(held_texts)
    net = CausalTransformer(257, 64, width=64, depth=4, heads=4, seed=run.seed_for("network"))
    _, scratch = trained(net, texts, held, LARGE_RATE, STEPS, run)

    warm, _ = trained(net, texts, None, LARGE_RATE, STEPS // 20, run.replace(seed=run.seed_for("down")))
    start, maps = coalesce(warm)
    small, _ = trained(start, texts, None, SMALL_RATE, STEPS // 2, run.replace(seed=run.seed_for("up")))
    mixed = interpolate(warm, decoalesce(small, warm, maps), ALPHA)
    _, curve = trained(mixed, texts, held, LARGE_RATE, STEPS, run.replace(seed=run.seed_for("last")))

    ratio = step_cost(start, texts) / step_cost(net, texts)
    needed = STEPS // 20 + ratio * (STEPS // 2) + steps_until(scratch[-1], curve)
    # Held-out losses go up and down: training from scratch may have been there before it ended.
    return {"V-cycle": needed / steps_until(scratch[-1], scratch), "from scratch": 1.0}
