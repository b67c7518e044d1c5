"""Losses without labels: what a batch of logits says of itself, and of another network's.

All take logits `[batch, classes]`, work on softmax(logits) and give one number a sample, in nats; with
p = softmax(z), q = softmax(t):

- entropy           H(p) = - sum_k p_k log p_k
- cross-entropy     CE(q -> p) = - sum_k q_k log p_k, of the student z towards the target t
- symmetric         (1 - alpha) CE(q -> p) + alpha CE(p -> q)
- likelihood ratio  - sum_k p_k log(p_k / (1 - p_k)), which goes on pulling where entropy is nearly flat

Nothing is detached here: whether a target is fixed is the caller's to say.

>>> sure, unsure = torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2)
>>> float(softmax_entropy(sure)), round(float(softmax_entropy(unsure)), 4)
(0.0, 0.6931)
>>> round(float(soft_cross_entropy(sure, unsure)), 4)
0.6931

References: Wang et al., Symmetric cross entropy for robust learning with noisy labels, ICCV 2019; Mummadi et al.,
Test-time adaptation to distribution shift by confidence maximization and input transformation, 2021 (likelihood
ratio); Khosla et al., Supervised contrastive learning, NeurIPS 2020; Zhang et al., MEMO, NeurIPS 2022 (marginal
entropy).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "batch classes"]
EachSample = Float[Tensor, " batch"]


def softmax_entropy(logits: Logits) -> EachSample:
    """`H(softmax(logits))`, 0 to log(classes)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def soft_cross_entropy(target: Logits, logits: Logits) -> EachSample:
    """`CE(softmax(target) -> softmax(logits))`."""
    return -(target.softmax(1) * logits.log_softmax(1)).sum(1)


def symmetric_cross_entropy(target: Logits, logits: Logits, alpha: float = 0.5) -> EachSample:
    """Cross-entropy in both directions; `alpha` is the weight of that towards the logits."""
    return (1 - alpha) * soft_cross_entropy(target, logits) + alpha * soft_cross_entropy(logits, target)


def soft_likelihood_ratio(logits: Logits, clip: float = 0.99, eps: float = 1e-5) -> EachSample:
    """Negative log-odds of the prediction, weighted by itself; probabilities are cut off at `clip`."""
    p = logits.softmax(1).clamp(max=clip)
    return -(p * (p / (1 - p) + eps).log()).sum(1)


def marginal_entropy(logits: Float[Tensor, "views batch classes"]) -> EachSample:
    """Entropy of the mean of the views' probabilities; low where all views agree and are sure."""
    log_mean = logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
    return -(log_mean * log_mean.exp()).sum(1)


def contrastive_loss(embeddings: Float[Tensor, "views batch width"], temperature: float = 0.1) -> Float[Tensor, ""]:
    """How well the views of a sample find each other among all views of all samples.

    Rows are scaled to length 1; for every one the positives are the other views of its sample, everything else is
    negative: the mean over rows of - mean over positives of log(exp(s_pos / T) / sum over all others of exp(s / T)).
    """
    views, batch = embeddings.shape[:2]
    unit = F.normalize(embeddings.flatten(0, 1), dim=1)
    same = torch.eye(batch, dtype=torch.bool, device=unit.device).repeat(views, views)
    own = torch.eye(views * batch, dtype=torch.bool, device=unit.device)
    log_p = (unit @ unit.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)
    return -log_p.masked_fill(~same | own, 0.0).sum() / (views * batch * (views - 1))
