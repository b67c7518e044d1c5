"""Sampling texts from a language model, also with a cheap model that proposes and a dear one that disposes.

A model here is anything that turns tokens `[batch, time]` into logits or log-probabilities `[batch, time, vocabulary]`
of the next token, with no look ahead, such as `CausalTransformer`.

`speculative_sample` draws from the target's distribution p exactly, whatever the draft q is. The draft writes up to
`ahead` tokens, one after another; the target then reads all of them in one pass and goes through them in order. Token
d, drawn from q(.), is kept with probability min(1, p(d) / q(d)); the first that is not kept is replaced by one drawn
from

    r(x) = max(0, p(x) - q(x)) / sum_y max(0, p(y) - q(y))

and drafting starts again behind it. When all are kept, the target's pass gives one more. A kept or replaced token has
the distribution min(p, q) + (1 - sum_y min(p, q)) r = p. How much the draft resembles the target decides the number
of target passes alone: between 1 and 1 / (ahead + 1) for each token.

Every pass reads the whole text; nothing is kept between passes.

>>> from homeostat.nn.causal_transformer import CausalTransformer
>>> large, small = CausalTransformer(5, 12, 16, 2), CausalTransformer(5, 12, 8, 1)
>>> made = speculative_sample(large, small, torch.tensor([[1, 2]]), 8, torch.Generator().manual_seed(0))
>>> made.tokens.shape, made.passes < 8
(torch.Size([1, 10]), True)

References: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023; Chen et al.,
Accelerating Large Language Model Decoding with Speculative Sampling, 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.core.errors import InputError, ModelError, NonFiniteError
from homeostat.core.place import home, there

Model = nn.Module | Callable[[Tensor], Tensor]
Tokens = Int[Tensor, "batch time"]


class Drafted(NamedTuple):
    """What `speculative_sample` made.

    Attributes:
        tokens: prompts and what follows, `[batch, prompt + count]`.
        passes: passes of the target over the batch.
        kept: share of the draft's tokens that the target kept.
    """

    tokens: Tensor
    passes: int
    kept: float


@torch.no_grad()
def sample_tokens(model: Model, prompt: Tokens | Any, count: int, generator: torch.Generator) -> Tokens:
    """Continue each prompt by `count` tokens, drawn one after another.

    Args:
        model: see the module's docstring.
        prompt: int64 `[batch, time]`, at least one token each.
        count: new tokens.
        generator: on the CPU.
    """
    tokens = _checked(prompt, count)
    for _ in range(count):
        tokens = torch.cat([tokens, _draw(_next(model, tokens)[:, -1], generator)[:, None]], 1)
    return tokens


@torch.no_grad()
def speculative_sample(
    target: Model, draft: Model, prompt: Tokens | Any, count: int, generator: torch.Generator, ahead: int = 4
) -> Drafted:
    """Continue each prompt by `count` tokens, distributed exactly as the target's, with fewer passes of it.

    Args:
        target: whose distribution it is.
        draft: proposes; over the same tokens.
        prompt: int64 `[batch, time]`, at least one token each.
        count: new tokens.
        generator: on the CPU.
        ahead: tokens that the draft proposes before the target looks.
    """
    start = _checked(prompt, count)
    if ahead < 1:
        raise InputError(f"the draft proposes at least one token; got ahead = {ahead}")
    end, everyone = start.shape[1] + count, torch.arange(len(start))
    tokens = torch.cat([start, start.new_zeros(len(start), count)], 1)
    known, passes, proposed, kept = torch.full((len(start),), start.shape[1]), 0, 0, 0
    while bool((known < end).any()):
        guesses = list[Tensor]()
        for step in range(ahead):
            place = (known + step).clamp(max=end - 1)
            chances = _next(draft, tokens[:, : int(place.max())])[everyone, place - 1]
            writing = known + step < end
            tokens[everyone[writing], place[writing]] = _draw(chances, generator)[writing]
            guesses.append(chances)
        reach = int((known + ahead).clamp(max=end - 1).max())
        chances, passes = _next(target, tokens[:, :reach]), passes + 1
        going = known < end
        for guess in guesses:
            place = known.clamp(max=end - 1)
            wanted, token = chances[everyone, place - 1], tokens[everyone, place]
            keep = torch.rand(len(start), generator=generator, dtype=torch.float64) * guess[everyone, token]
            keep = keep < wanted[everyone, token]
            instead = _draw(remainder(wanted, guess), generator)
            tokens[everyone[going], place[going]] = torch.where(keep, token, instead)[going]
            proposed, kept = proposed + int(going.sum()), kept + int((going & keep).sum())
            known = known + going.long()
            going = going & keep & (known < end)
        place = known.clamp(max=end - 1)
        more = _draw(chances[everyone, place - 1], generator)
        tokens[everyone[going], place[going]] = more[going]
        known = known + going.long()
    return Drafted(tokens, passes, kept / max(1, proposed))


def remainder(
    wanted: Float[Tensor, "batch vocabulary"], guess: Float[Tensor, "batch vocabulary"]
) -> Float[Tensor, "batch vocabulary"]:
    """r: what a refused token is replaced by; `wanted` itself where the two are equal and nothing is refused."""
    left = (wanted - guess).clamp(min=0)
    total = left.sum(1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=torch.finfo(left.dtype).tiny), wanted)


def _checked(prompt: Any, count: int) -> Tensor:
    if not isinstance(prompt, Tensor) or prompt.ndim != 2 or 0 in prompt.shape or prompt.is_floating_point():
        raise InputError("a prompt is integer tokens [batch, time] with at least one each")
    if count < 1:
        raise InputError(f"at least one token is to be made; got count = {count}")
    return home(prompt.long())


def _next(model: Model, tokens: Tensor) -> Tensor:
    """Probabilities of the next token at every position, in double precision."""
    out = home(model(there(tokens, model) if isinstance(model, nn.Module) else tokens))
    if not isinstance(out, Tensor) or out.ndim != 3 or out.shape[:2] != tokens.shape:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(
            f"the model gave {found} for tokens {tuple(tokens.shape)}; [batch, time, vocabulary] is wanted"
        )
    chances = out.double().softmax(-1)
    if bool(chances.isnan().any()):
        raise NonFiniteError("the model's logits hold NaN or infinity; look at its weights")
    return chances


def _draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(chances, 1, generator=generator)[:, 0]
