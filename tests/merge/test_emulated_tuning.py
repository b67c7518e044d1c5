from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.errors import CheckpointError, InputError, ModelError, NonFiniteError, SpecError
from homeostat.core.fork import fork
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.merge import EFT, Emulated, emulate
from homeostat.nn import CausalTransformer

TEXTS = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))


def language(seed: int, width: int = 8, depth: int = 1, scale: float = 3.0) -> CausalTransformer:
    net = CausalTransformer(5, 12, width, depth, seed=seed).eval()
    with torch.no_grad():
        net.linear.weight.mul_(scale)
        net.tokens.weight.mul_(20)
    return net


def plain_emulation(base: list[float], tuned: list[list[float]], reference: list[float], weights: list[float]) -> list:
    """From probabilities, with powers and no logarithms."""
    raised = [
        b * math.prod((t[y] / reference[y]) ** w for t, w in zip(tuned, weights, strict=True))
        for y, b in enumerate(base)
    ]
    return [value / sum(raised) for value in raised]


chances = st.lists(st.integers(1, 9), min_size=4, max_size=4).map(lambda c: [v / sum(c) for v in c])


@pytest.mark.exact("S131")
@settings(max_examples=40)
@given(
    chances, st.lists(st.tuples(chances, st.sampled_from([-1.0, 0.0, 0.3, 1.0, 2.0])), min_size=1, max_size=3), chances
)
def test_equals_products_of_powers_of_probabilities(base, pairs, reference):
    tuned, weights = [t for t, _ in pairs], [w for _, w in pairs]
    logits = [torch.tensor(c, dtype=torch.float64).log() for c in (base, reference, *tuned)]
    # A constant that a network adds to its logits must not matter.
    found = emulate(logits[0] + 5, [t - 3 for t in logits[2:]], logits[1] + 1, weights)
    assert torch.allclose(found.exp(), torch.tensor(plain_emulation(base, tuned, reference, weights)).double())


@pytest.mark.exact("S131")
def test_hand_worked_and_its_limits():
    base, tuned, reference = (torch.tensor(p).log() for p in ([0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.4, 0.4, 0.2]))
    # 0.5 * 1/2, 0.25 * 3/2, 0.25 * 1 = 0.25, 0.375, 0.25
    assert torch.allclose(emulate(base, [tuned], reference, [1.0]).exp(), torch.tensor([2 / 7, 3 / 7, 2 / 7]))
    assert torch.allclose(emulate(base, [tuned], reference, [0.0]), base)
    assert torch.allclose(emulate(base, [reference], reference, [1.0]), base)
    assert torch.allclose(emulate(reference, [tuned], reference, [1.0]), tuned)
    assert torch.allclose(emulate(base, [tuned, base], base, [0.0, 1.0]), base)


@pytest.mark.exact("S131")
def test_only_the_nucleus_of_the_base_is_reweighted():
    base, tuned, reference = (torch.tensor(p).log() for p in ([0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.2, 0.4, 0.4]))
    # The nucleus of 0.7 is tokens 1 and 2: 0.1, 0.6 / 4, 0.3 / 4
    found = emulate(base, [tuned], reference, [1.0], top_p=0.7).exp()
    assert torch.allclose(found, torch.tensor([0.1, 0.15, 0.075]) / 0.325)
    assert torch.allclose(emulate(base, [tuned], reference, [1.0], 0.6).exp(), torch.tensor([0.1, 0.15, 0.3]) / 0.55)
    whole = emulate(base, [tuned], reference, [1.0], 1.0).exp()
    assert torch.allclose(whole, torch.tensor([0.4, 0.15, 0.075]) / 0.625)


def test_what_the_base_rules_out_stays_out_and_what_only_the_reference_rules_out_is_refused():
    cut = torch.tensor([0.0, 0.0, -math.inf])
    found = emulate(cut, [cut], cut, [1.0])
    assert torch.allclose(found.exp(), torch.tensor([0.5, 0.5, 0.0]))
    assert emulate(torch.zeros(3), [cut], torch.zeros(3), [1.0])[2] == -math.inf
    with pytest.raises(NonFiniteError, match="rules out"):
        emulate(torch.zeros(3), [torch.zeros(3)], cut, [1.0])


def test_the_remedy_keeps_all_promises_with_and_without_a_reference():
    def near(seed: int) -> nn.Module:
        net = fork(small_network(), own="*")
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.1)
        return net

    tuned = {"one": near(1), "two": near(2)}
    check_remedy(EFT(), small_network(), small_world().replace(models=tuned))
    check_remedy(EFT((0.7, 0.6), 0.9), small_network(), small_world().replace(models={**tuned, "reference": near(3)}))


def test_the_remedy_weighs_in_the_worlds_order_and_reads_weights_from_files(tmp_path):
    base, one, two, reference = (language(seed) for seed in range(4))
    world = World(models={"reference": reference, "one": one, "two": two})
    found = EFT((0.25, 0.75))(base, world)(TEXTS)
    wanted = emulate(base(TEXTS), [one(TEXTS), two(TEXTS)], reference(TEXTS), [0.25, 0.75])
    assert torch.equal(found, wanted)
    assert torch.equal(EFT()(base, world)(TEXTS), EFT((0.5, 0.5))(base, world)(TEXTS))
    save(one, tmp_path / "one")
    lazy = EFT()(base, World(models={"one": tmp_path / "one"}))
    assert torch.allclose(lazy(TEXTS), one(TEXTS).log_softmax(-1), atol=1e-5)
    with pytest.raises(CheckpointError, match=r"world\.models\['one'\]"):
        EFT()(language(0, width=16), World(models={"one": tmp_path / "one"}))


def test_networks_of_other_sizes_are_composed_saved_and_loaded(tmp_path):
    large, tuned, small = language(0, 16, 2), language(1), language(2)
    emulated = EFT(top_p=0.9)(large, World(models={"tuned": tuned, "reference": small}))
    save(emulated, tmp_path / "made")
    assert torch.equal(load(tmp_path / "made")(TEXTS), emulated(TEXTS))


def chance(net: nn.Module, prompt: list[int], text: tuple[int, ...]) -> float:
    scores = net(torch.tensor([[*prompt, *text]])).detach().double().log_softmax(-1)[0]
    return math.exp(sum(float(scores[len(prompt) + i - 1, token]) for i, token in enumerate(text)))


@pytest.mark.exact("S131")
def test_drawn_texts_have_exactly_the_emulated_distribution_and_take_fewer_passes():
    tuned = language(1)
    small = fork(tuned, own="*")
    with torch.no_grad():
        small.linear.weight.add_(torch.randn(5, 8, generator=torch.Generator().manual_seed(9)))
    emulated = Emulated(language(0, 16, 2), tuned, small)
    prompt, count = [1, 3], 3
    rows = torch.tensor([prompt]).expand(20_000, 2)
    texts = list(itertools.product(range(5), repeat=count))
    expected = torch.tensor([chance(emulated, prompt, text) for text in texts], dtype=torch.float64)
    assert abs(float(expected.sum()) - 1) < 1e-6

    def p_value(tokens: Tensor) -> float:
        place = (tokens[:, 2:] * torch.tensor([25, 5, 1])).sum(1)
        seen = torch.bincount(place, minlength=125)
        often = expected * len(tokens) >= 5  # rarer texts are counted together
        both = [
            torch.cat([t[often], t[~often].sum()[None]]).numpy() for t in (seen, expected / expected.sum() * 20_000)
        ]
        return float(chisquare(*both).pvalue)

    generator = torch.Generator().manual_seed(2)
    made = emulated.draw(rows, count, generator, ahead=2)
    assert p_value(made.tokens) > 0.01 and 0 < made.kept < 1
    assert p_value(emulated.draw(rows, count, generator, speculative=False).tokens) > 0.01
    assert p_value(Emulated(tuned, tuned, small).draw(rows, count, generator).tokens) < 1e-9
    same = Emulated(small, tuned, small).draw(rows[:4], 8, generator, ahead=3)
    assert same.passes == 2 and same.kept == 1.0


def test_misfits_are_refused():
    base, other = language(0), CausalTransformer(6, 12, 8, 1)
    with pytest.raises(ModelError, match=r"tuned\[0\] gives \(3, 6, 6\), the base \(3, 6, 5\)"):
        EFT()(base, World(models={"tuned": other}))(TEXTS)
    with pytest.raises(SpecError, match="1 weights for 2"):
        Emulated(base, nn.Sequential(base, base))
    with pytest.raises(InputError, match="no tuned network"):
        EFT()(base, World(models={"reference": base}))
    with pytest.raises(SpecError, match="top_p"):
        EFT(top_p=0.0)
    with torch.no_grad():
        other.norm.bias[0] = torch.nan
    with pytest.raises(NonFiniteError):
        EFT()(base, World(models={"tuned": other}))
