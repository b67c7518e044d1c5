from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chisquare
from torch import Tensor

from homeostat.core.errors import InputError, ModelError, NonFiniteError
from homeostat.nn import CausalTransformer, remainder, sample_tokens, speculative_sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Table:
    """The next token depends on the last two; counts its passes."""

    def __init__(self, vocabulary: int = 3, seed: int = 0, scale: float = 1.5):
        self.logits = scale * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator(seed)).double()
        self.passes = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
        return self.logits[before, tokens]

    def chance(self, prompt: list[int], text: tuple[int, ...]) -> float:
        """Of a whole continuation, token by token."""
        all_tokens, found = [*prompt, *text], 1.0
        for i in range(len(prompt), len(all_tokens)):
            row = self.logits[all_tokens[max(0, i - 2)], all_tokens[i - 1]].softmax(0)
            found *= float(row[all_tokens[i]])
        return found


def p_value(tokens: Tensor, target: Table, prompt: list[int], count: int) -> float:
    """Of a chi-squared test that the continuations are the target's."""
    texts = list(itertools.product(range(3), repeat=count))
    powers = 3 ** torch.arange(count - 1, -1, -1)
    seen = torch.bincount((tokens[:, len(prompt) :] * powers).sum(1), minlength=len(texts))
    expected = torch.tensor([target.chance(prompt, text) for text in texts], dtype=torch.float64)
    return float(chisquare(seen.numpy(), (expected * len(tokens) / expected.sum()).numpy()).pvalue)


@pytest.mark.exact("S131")
@pytest.mark.parametrize(("ahead", "seed"), [(1, 1), (2, 2), (3, 3), (7, 4)])
def test_speculative_texts_have_exactly_the_targets_joint_distribution(ahead, seed):
    target, draft, prompt = Table(seed=seed), Table(seed=seed + 10), [0, 2]
    rows = torch.tensor([prompt]).expand(60_000, 2)
    made = speculative_sample(target, draft, rows, 4, generator(seed), ahead)
    assert made.tokens.shape == (60_000, 6) and torch.equal(made.tokens[:, :2], rows)
    assert p_value(made.tokens, target, prompt, 4) > 0.01
    # The test would see a draft that is believed as it is.
    assert p_value(sample_tokens(draft, rows, 4, generator(seed)), target, prompt, 4) < 1e-9
    assert p_value(sample_tokens(target, rows, 4, generator(seed)), target, prompt, 4) > 0.01


def test_replacing_refused_tokens_by_the_targets_own_would_be_noticed(monkeypatch):
    monkeypatch.setattr("homeostat.nn.decoding.remainder", lambda wanted, guess: wanted)
    target, prompt = Table(seed=1), [0, 2]
    rows = torch.tensor([prompt]).expand(60_000, 2)
    made = speculative_sample(target, Table(seed=11), rows, 4, generator(1), 2)
    assert p_value(made.tokens, target, prompt, 4) < 1e-9


chances = st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any)


@pytest.mark.exact("S131")
@settings(max_examples=60)
@given(chances, chances)
def test_kept_and_replaced_tokens_together_have_the_targets_distribution(p, q):
    wanted, guess = (torch.tensor([c], dtype=torch.float64) / sum(c) for c in (p, q))
    kept = torch.minimum(wanted, guess)
    found = kept + (1 - kept.sum()) * remainder(wanted, guess)
    assert torch.allclose(found, wanted, atol=1e-15)


def test_a_draft_equal_to_the_target_is_always_kept_and_saves_passes():
    target, prompt = Table(), torch.tensor([[0, 1]]).expand(20, 2)
    made = speculative_sample(target, Table(), prompt, 9, generator(), ahead=2)
    assert made.kept == 1.0 and made.passes == 3 == target.passes
    worst = Table()
    worst.logits = torch.where(worst.logits == worst.logits.amin(-1, keepdim=True), 50.0, 0.0)
    slow = speculative_sample(Table(scale=30.0), worst, prompt, 9, generator(), ahead=2)
    assert slow.kept < 0.3 and slow.passes > 5


def test_transformers_draw_the_same_for_the_same_generator_and_never_pass_their_length():
    large, small = CausalTransformer(7, 10, 16, 2), CausalTransformer(7, 10, 8, 1)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    runs = [speculative_sample(large, small, prompt, 8, generator(3), ahead=5) for _ in range(2)]
    assert torch.equal(runs[0].tokens, runs[1].tokens) and runs[0].tokens.shape == (2, 11)
    with pytest.raises(InputError, match="at most 10"):
        speculative_sample(large, small, prompt, 9, generator())


def test_bad_prompts_counts_and_models_are_refused():
    net, good = Table(), torch.tensor([[0, 1]])
    for prompt in (good[0], good.float(), good[:, :0], [[0, 1]]):
        with pytest.raises(InputError, match="integer tokens"):
            sample_tokens(net, prompt, 1, generator())
    with pytest.raises(InputError, match="count = 0"):
        speculative_sample(net, net, good, 0, generator())
    with pytest.raises(InputError, match="ahead = 0"):
        speculative_sample(net, net, good, 1, generator(), 0)
    with pytest.raises(ModelError, match="vocabulary"):
        sample_tokens(lambda t: torch.zeros(1, 3), good, 1, generator())
    with pytest.raises(NonFiniteError, match="NaN"):
        sample_tokens(lambda t: torch.full((*t.shape, 3), torch.nan), good, 1, generator())
