"""S131 EFT: a large network that was not tuned, with the change of a small one that was (Mitchell et al., ICLR 2024).

The paper puts the fine-tuning of a 7B network onto one of 70B and finds most of what tuning the large one would give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from homeostat import Data, Run, Tensors, World
from homeostat.core.data import UNKNOWN
from homeostat.core.task import Tokens
from homeostat.data import Glosses
from homeostat.evidence import claim
from homeostat.fit import Fit, Recipe
from homeostat.merge import EFT
from homeostat.nn import Adam, CausalTransformer

DATA = (Glosses(part="noun", tokenizer="bytes", length=65, shuffle=0, stop=30_000),)
PLANT = 17
"""`noun.plant` among the noun's classes."""
MIXED, STYLE, HELD, BATCH = 6_400, 1_600, 512, 16
TUNED = "the learning rates of the two bases, found for networks of these widths on other glosses with seed 100"
SHRUNK = (
    "transformers of width 64 with 3 blocks and of width 32 with 1 on the bytes of WordNet's glosses, fine-tuned on "
    "glosses of plants, in place of Llama-2 and dialogues; likelihood in place of judged helpfulness"
)


def following(data: Data, positions: torch.Tensor) -> Tensors:
    """Texts as a language model takes them: the label of a position is the next byte."""
    x: Any = data[positions].load().x
    ids, mask = x["input_ids"], x["attention_mask"]
    return Tensors(ids[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, UNKNOWN))


def tuned(net: nn.Module, texts: Tensors, rate: float, name: str, run: Run) -> nn.Module:
    recipe = Recipe(optimizer=Adam(lr=rate), batch=BATCH, clip=1.0)
    return Fit(recipe=recipe)(net, World(source=texts, task=Tokens()), run=run.replace(seed=run.seed_for(name)))


def nats(net: nn.Module, texts: Tensors) -> float:
    """Mean over texts of the loss of a byte: the logarithm of the perplexity."""
    batch = texts.load()
    with torch.no_grad():
        return float(Tokens().loss(net(batch.x), batch.labels).mean())


def perplexities(run: Run, glosses: Data) -> dict[str, float]:
    order = torch.randperm(len(glosses), generator=run.rng("glosses"))
    plants = glosses.all_labels()[order] == PLANT
    style, rest = order[plants], order[~plants]
    mixed = torch.cat([rest[: MIXED * 9 // 10], style[: MIXED // 10]])
    style = style[MIXED // 10 :]
    texts, change, held = (following(glosses, chosen) for chosen in (mixed, style[:STYLE], style[STYLE : STYLE + HELD]))
    large = CausalTransformer(257, 64, width=64, depth=3, seed=run.seed_for("large"))
    small = CausalTransformer(257, 64, width=32, depth=1, seed=run.seed_for("small"))
    large, reference = tuned(large, texts, 2e-3, "large", run), tuned(small, texts, 4e-3, "small", run)
    donor = tuned(reference, change, 2e-3, "change", run)
    emulated = EFT()(large, World(models={"tuned": donor, "reference": reference}))
    return {
        "EFT": nats(emulated, held),
        "large base": nats(large, held),
        "small tuned": nats(donor, held),
        "small base": nats(reference, held),
        "large tuned": nats(tuned(large, change, 1e-3, "whole", run), held),
    }


@claim(
    "S131",
    says="On texts of the kind that only the small network was fine-tuned on, the large network with the small one's "
    "change predicts the next byte better than without.",
    ours="EFT", baseline="large base", metric="log-perplexity", unit="nats", better="lower", least=0.05,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def better_than_the_large_base(run: Run, glosses: Data) -> dict[str, float]:
    return perplexities(run, glosses)


@claim(
    "S131",
    says="On texts of the kind that the small network was fine-tuned on, the large network with the small one's change "
    "predicts the next byte better than the small tuned one itself.",
    ours="EFT", baseline="small tuned", metric="log-perplexity", unit="nats", better="lower", least=0.02,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def better_than_the_small_tuned(run: Run, glosses: Data) -> dict[str, float]:
    return perplexities(run, glosses)
