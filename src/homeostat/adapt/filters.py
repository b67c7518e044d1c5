"""Which samples of a batch are worth learning from.

Samples of high entropy give gradients that harm, and samples whose prediction is like what was learnt before add
nothing. EATA, and the methods that build on it, keep those that are reliable and fresh:

    reliable: H_n < limit,      fresh: |cos(m, p_n)| < margin,      m <- 0.9 m + 0.1 mean of p over those kept,

where m is the running mean prediction; without one yet, all that are reliable are kept and m is their mean.

Reference: Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.online import Bag

MEAN = "probabilities"
"""Where `carry` keeps the running mean prediction."""


@dataclass(frozen=True)
class Kept:
    """What `reliable_and_fresh` found.

    Attributes:
        chosen: positions of the samples kept, in their order.
        reliable: how many were reliable, fresh or not.
    """

    chosen: Tensor
    reliable: int


@torch.no_grad()
def reliable_and_fresh(
    logits: Tensor, entropy: Tensor, carry: Bag, limit: float, margin: float, least: float = 0.0, keep: float = 0.9
) -> Kept:
    """Positions of the samples worth learning from; moves the running mean prediction in `carry`.

    Args:
        logits: `[batch, classes]`.
        entropy: of the samples, `[batch]`.
        carry: holds the running mean below `MEAN`, once there is one.
        limit: entropy below which a sample is reliable.
        margin: cosine with the running mean below which a prediction is fresh.
        least: entropy above which a sample still has something to teach; 0 for no such bound.
        keep: weight of the old mean.
    """
    started = MEAN in carry
    mean = carry[MEAN] if started else None
    wanted = (entropy < limit) & (entropy > least) if least > 0 else entropy < limit
    chosen = torch.nonzero(wanted).flatten()
    reliable, probabilities = len(chosen), logits[chosen].softmax(1)
    if mean is not None:
        fresh = F.cosine_similarity(mean[None], probabilities, dim=1).abs() < margin
        chosen, probabilities = chosen[fresh], probabilities[fresh]
    if len(chosen):
        new = probabilities.mean(0)
        carry[MEAN] = new if mean is None else keep * mean + (1 - keep) * new
    return Kept(chosen, reliable)
