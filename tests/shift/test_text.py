"""Noise in texts: exact cases at rate 0 and 1, what each kind keeps, seeded by the text's id."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st

from homeostat.core.data import Joined, Tensors
from homeostat.core.errors import DtypeError, SpecError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import ByteTokenizer
from homeostat.data.strings import Strings
from homeostat.shift import CharacterNoise, TextShift, WordNoise
from homeostat.shift.schedule import Tagged
from homeostat.shift.text import NEIGHBORS

SHIFTS = [
    *(CharacterNoise(0.4, kind) for kind in ("any", "swap", "delete", "insert", "replace")),
    *(WordNoise(0.4, kind) for kind in ("any", "swap", "delete", "double")),
]
texts = st.text(st.characters(codec="utf-8"), max_size=30)
sentences = st.lists(st.text("abcXYZ019.,", min_size=1, max_size=5), min_size=1, max_size=8).map(" ".join)
rates = st.floats(0, 1)
seeds = st.integers(0, 2**32)


def noisy(shift: TextShift, text: str, seed: int = 0) -> str:
    return shift(Strings([text]), run=Run(seed=seed)).texts[0]


def length(text: str) -> int:
    return len(text.split())


# ----------------------------------------------------------------------------------------------------- every shift


@pytest.mark.parametrize("shift", SHIFTS, ids=repr)
@given(text=texts, seed=seeds)
def test_rate_0_is_the_identity_for_any_text(shift, text, seed):
    assert noisy(shift.replace(rate=0.0), text, seed) == text


def test_rate_0_keeps_white_space_of_every_kind():
    for text in ("", "  ", " two  spaces ", "a\n\tb\r\n", "x\u00a0y"):
        assert noisy(WordNoise(0.0), text) == noisy(CharacterNoise(0.0), text) == text


@pytest.mark.parametrize("shift", SHIFTS, ids=repr)
def test_a_text_is_changed_by_its_id_and_the_seed_and_not_by_its_place(shift):
    lines = [f"the quick brown fox {i} jumps over lazy dogs" for i in range(12)]
    given_texts = Strings(lines, id=range(50, 62))
    whole = shift(given_texts).texts
    order = [7, 0, 11, 3]
    assert shift(given_texts[order]).texts == tuple(whole[i] for i in order)
    assert shift(given_texts).texts == whole
    assert shift(given_texts, run=Run(seed=1)).texts != whole
    assert shift(Strings(lines, id=range(12))).texts != whole


@pytest.mark.parametrize("shift", SHIFTS, ids=repr)
def test_labels_ids_and_classes_stay_and_the_given_texts_too(shift):
    before = ("one red apple", "two green pears", "three more")
    given_texts = Strings(before, [1, 0, 1], ("a", "b"), [5, 9, 2])
    made = shift(given_texts)
    assert made.labels.tolist() == [1, 0, 1] and made.id.tolist() == [5, 9, 2] and made.classes == ("a", "b")
    assert len(made) == 3 and given_texts.texts == before


def test_texts_of_equal_content_and_other_ids_get_other_noise():
    made = CharacterNoise(0.3)(Strings(["a long enough line of text"] * 10)).texts
    assert len(set(made)) > 7


@pytest.mark.parametrize("shift", [CharacterNoise(), WordNoise()])
@pytest.mark.parametrize("wrong", [["a list"], "a string", torch.zeros(2, 3)], ids=["list", "string", "tensor"])
def test_what_is_no_strings_is_refused(shift, wrong):
    with pytest.raises(DtypeError, match=f"{type(shift).__name__} changes texts: .* got a"):
        shift(wrong)


@pytest.mark.parametrize("shift", [CharacterNoise(0.5), WordNoise(0.5)])
def test_data_made_of_texts_are_shifted_as_the_texts_are_however_they_were_cut(shift):
    texts = Strings([f"the quick brown fox {i} jumps over lazy dogs" for i in range(12)], [i % 2 for i in range(12)])
    data, want = texts.tokenized(ByteTokenizer(), 48), shift(texts).tokenized(ByteTokenizer(), 48)
    assert shift(data).fingerprint() == want.fingerprint() != data.fingerprint()
    rows = torch.tensor([7, 0, 11, 3])
    ways = [
        data[rows], Joined([data[rows[:2]], data[rows[2:]]]), Joined([data, data])[rows + 12], data[rows].unlabelled(),
        Tagged(data, 2)[rows], World(target=data[rows]),
    ]  # fmt: skip
    for way in ways:
        shifted = shift(way)
        made = (shifted.target if isinstance(shifted, World) else shifted).load()
        assert torch.equal(made.x["input_ids"], want.load().x["input_ids"][rows]) and made.id.tolist() == rows.tolist()
    with pytest.raises(DtypeError, match="Tensors, which does not know its texts"):
        shift(Tensors(data.load().x))


@pytest.mark.parametrize("cls", [CharacterNoise, WordNoise])
def test_rates_and_kinds_that_are_not_there_are_refused(cls):
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(SpecError, match=rf"{cls.__name__}\.rate"):
            cls(rate)
    with pytest.raises(SpecError, match="Did you mean 'swap'"):
        cls(kind="swop")


# ------------------------------------------------------------------------------------------------------ characters


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("delete", "abc, 12!", ", !"),
        ("delete", "", ""),
        ("swap", "abcd", "badc"),
        ("swap", "abc", "bac"),
        ("swap", "a b", " ab"),
        ("swap", "x", "x"),
        ("swap", "-ab-", "-ba-"),
        ("replace", "pP?", "oO?"),
        ("replace", "10", "29"),
        ("insert", "p-1", "po-12"),
    ],
)
def test_cases_at_rate_1(kind, text, want):
    assert noisy(CharacterNoise(1.0, kind), text) == want


@given(text=texts, rate=rates, seed=seeds)
def test_delete_shortens_and_keeps_the_order_of_the_rest(text, rate, seed):
    made = noisy(CharacterNoise(rate, "delete"), text, seed)
    left = iter(text)
    assert all(letter in left for letter in made), "a subsequence"
    assert [c for c in made if not c.isalnum()] == [c for c in text if not c.isalnum()]


@given(text=texts, rate=rates, seed=seeds)
def test_insert_lengthens_and_keeps_every_character_in_order(text, rate, seed):
    made = noisy(CharacterNoise(rate, "insert"), text, seed)
    left = iter(made)
    assert all(letter in left for letter in text), "a supersequence"
    hit = sum(letter.isalnum() for letter in text)
    assert len(text) <= len(made) <= len(text) + hit
    assert rate < 1 or len(made) == len(text) + hit


@given(text=texts, rate=rates, seed=seeds)
def test_swap_keeps_the_characters_and_moves_none_by_more_than_one(text, rate, seed):
    made = noisy(CharacterNoise(rate, "swap"), text, seed)
    assert Counter(made) == Counter(text)
    assert all(letter in text[max(0, i - 1) : i + 2] for i, letter in enumerate(made))


@given(text=texts, rate=rates, seed=seeds)
def test_replace_keeps_the_length_and_what_is_no_letter_or_digit(text, rate, seed):
    made = noisy(CharacterNoise(rate, "replace"), text, seed)
    assert len(made) == len(text)
    assert all(a == b or a.isalnum() for a, b in zip(text, made, strict=True))


@given(text=st.text("abcdefghijklmnopqrstuvwxyzQWERTY0123456789"), seed=seeds)
def test_at_rate_1_every_key_is_replaced_by_one_beside_it_in_the_same_case(text, seed):
    made = noisy(CharacterNoise(1.0, "replace"), text, seed)
    for a, b in zip(text, made, strict=True):
        assert b.lower() in NEIGHBORS[a.lower()] and a.isupper() == b.isupper() and a.isdigit() == b.isdigit()


def test_letters_off_the_keyboard_are_replaced_by_various_letters():
    made = CharacterNoise(1.0, "replace")(Strings(["\u00e9\u0416\u4e2d"] * 30)).texts
    assert len(set("".join(made).lower())) > 10 and all(text.isascii() and text[1].isupper() for text in made)


def test_neighbours_are_mutual_and_no_key_is_its_own():
    assert len(NEIGHBORS) == 36
    for key, beside in NEIGHBORS.items():
        assert key not in beside and all(key in NEIGHBORS[other] for other in beside)


def test_letters_are_hit_at_the_stated_rate():
    made = noisy(CharacterNoise(0.2, "replace"), "a" * 5000)
    # Standard deviation of the share: 0.0057.
    assert sum(c != "a" for c in made) / 5000 == pytest.approx(0.2, abs=0.025)


def test_any_draws_all_four_kinds():
    made = CharacterNoise(1.0, "any")
    seen = {made.change("p1", random.Random(seed)) for seed in range(200)}
    # Swapped; the first deleted and the second inserted after; inserted and deleted; replaced and swapped at the end.
    assert {"1p", "12", "po", "o1"} <= seen


# ----------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("delete", "the quick fox", "the"),
        ("delete", "alone", "alone"),
        ("delete", "", ""),
        ("double", "the fox", "the the fox fox"),
        ("swap", "a b c d", "b a d c"),
        ("swap", "a b c", "b a c"),
        ("swap", "alone", "alone"),
        ("swap", " a\n b ", "b a"),
    ],
)
def test_word_cases_at_rate_1(kind, text, want):
    assert noisy(WordNoise(1.0, kind), text) == want


@given(text=sentences, rate=rates, seed=seeds, kind=st.sampled_from(["any", "delete", "double", "swap"]))
def test_at_least_one_word_stays_and_none_is_new(text, rate, seed, kind):
    made = noisy(WordNoise(rate, kind), text, seed)
    assert length(made) >= 1 and set(made.split()) <= set(text.split())


@given(text=sentences, rate=rates, seed=seeds)
def test_losing_words_shortens_and_keeps_the_order_of_the_rest(text, rate, seed):
    left = iter(text.split())
    assert all(word in left for word in noisy(WordNoise(rate, "delete"), text, seed).split())


@given(text=sentences, rate=rates, seed=seeds)
def test_doubling_words_lengthens_at_most_to_twice(text, rate, seed):
    made = noisy(WordNoise(rate, "double"), text, seed)
    left = iter(made.split())
    assert all(word in left for word in text.split()) and length(text) <= length(made) <= 2 * length(text)


@given(text=sentences, rate=rates, seed=seeds)
def test_swapping_words_keeps_them_all(text, rate, seed):
    made = noisy(WordNoise(rate, "swap"), text, seed)
    assert Counter(made.split()) == Counter(text.split())


def test_words_are_lost_at_the_stated_rate():
    made = noisy(WordNoise(0.3, "delete"), "word " * 4000)
    # Standard deviation of the share: 0.0072.
    assert length(made) / 4000 == pytest.approx(0.7, abs=0.03)


def test_any_loses_doubles_and_swaps_words():
    made = WordNoise(1.0, "any")
    seen = {made.change("a b", random.Random(seed)) for seed in range(100)}
    assert {"b a", "a a b b", "a", "a a", "b b", "b"} <= seen
