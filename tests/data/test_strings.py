"""Texts, tokenizers, and the step from one to the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from homeostat.core.data import UNKNOWN
from homeostat.core.errors import DtypeError, InputError
from homeostat.core.intake import as_data
from homeostat.core.task import Tokens
from homeostat.data.strings import Strings
from homeostat.data.tokenizers import ByteTokenizer, WordTokenizer

TEXTS = Strings(["a cat", "a dog runs", "", "the cow"], [0, 1, 0, 1], ("short", "long"), [10, 11, 12, 13])


def test_subsets_keep_labels_ids_and_classes_together():
    some = TEXTS[[3, 0]]
    assert some.texts == ("the cow", "a cat") and some.labels.tolist() == [1, 0] and some.id.tolist() == [13, 10]
    assert some.classes == TEXTS.classes and len(TEXTS[1:]) == 3
    assert TEXTS[TEXTS.labels == 1].texts == ("a dog runs", "the cow")
    mixed = TEXTS.shuffle(torch.Generator().manual_seed(0))
    assert sorted(zip(mixed, mixed.id.tolist(), strict=True)) == sorted(zip(TEXTS, TEXTS.id.tolist(), strict=True))


def test_a_shift_of_texts_keeps_labels_and_ids_and_the_texts_themselves():
    shifted = TEXTS.map(lambda lines: [line[::-1] for line in lines])
    assert shifted.texts == ("tac a", "snur god a", "", "woc eht") and TEXTS.texts[0] == "a cat"
    assert torch.equal(shifted.labels, TEXTS.labels) and torch.equal(shifted.id, TEXTS.id)
    with pytest.raises(InputError, match="2 texts of 4"):
        TEXTS.map(lambda lines: lines[:2])


def test_tokens_are_padded_cut_and_masked():
    batch = TEXTS.tokenized(ByteTokenizer(), length=6).load()
    ids, mask = batch.x["input_ids"], batch.x["attention_mask"]
    assert ids.shape == mask.shape == (4, 6) and ids.dtype == mask.dtype == torch.int64
    assert mask.sum(1).tolist() == [5, 6, 0, 6]
    assert bool(((ids == 0) == (mask == 0)).all())
    assert batch.y.tolist() == [0, 1, 0, 1] and batch.id.tolist() == [10, 11, 12, 13]


def test_next_tokens_are_the_tokens_one_later_and_unknown_where_the_text_ended():
    batch = TEXTS.next_tokens(ByteTokenizer(), length=6).load()
    first = [byte + 1 for byte in b"a cat"]
    assert batch.x["input_ids"][0].tolist() == first
    assert batch.y[0].tolist() == [*first[1:], UNKNOWN]
    assert batch.y[2].tolist() == [UNKNOWN] * 5
    Tokens().check(torch.zeros(4, 5, 257), batch.y)


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_bytes_come_back_whole_when_the_text_fits(texts):
    tokenizer = ByteTokenizer()
    tokens = tokenizer(texts, max_length=80)["input_ids"]
    assert int(tokens.max()) < tokenizer.size
    assert [tokenizer.decode(row.tolist()) for row in tokens] == texts


def test_words_are_counted_ties_go_by_alphabet_and_the_rest_is_unknown():
    tokenizer = WordTokenizer.of(["The dog, the cat", "a dog"], size=5)
    assert tokenizer.words == ("dog", "the", ",") and tokenizer.size == 5
    assert tokenizer.encode("The DOG, a cow") == [3, 2, 4, 1, 1]
    assert tokenizer.decode([3, 2, 4, 1, 0]) == "the dog , ?"
    with pytest.raises(InputError, match="differ"):
        WordTokenizer(["a", "a"])
    with pytest.raises(InputError, match="at least 3"):
        WordTokenizer.of(["a"], size=2)


def test_a_tokenizer_of_transformers_fits_and_gives_what_it_gives(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "the"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    x = TEXTS.tokenized(tokenizer, length=6).load().x
    assert set(x) == {"input_ids", "attention_mask"} and x["input_ids"].shape == (4, 6)
    assert int(x["attention_mask"][2].sum()) == 2  # an empty text is its two marks


def test_what_does_not_fit_is_refused():
    with pytest.raises(DtypeError, match="list of strings"):
        Strings("abc")
    with pytest.raises(InputError, match="2 samples"):
        Strings(["a", "b"], [0])
    with pytest.raises(InputError, match=r"outside 0\.\.0"):
        Strings(["a", "b"], [0, 1], ("one",))
    with pytest.raises(InputError, match="ids of shape"):
        Strings(["a"], id=[1, 2])
    with pytest.raises(DtypeError, match=r"tokenise first: \.tokenized"):
        as_data(TEXTS)
    with pytest.raises(InputError, match="no texts"):
        TEXTS[:0].tokenized(ByteTokenizer())
    with pytest.raises(InputError, match="at least 2 tokens"):
        TEXTS.tokenized(ByteTokenizer(), length=1)
    with pytest.raises(InputError, match="always cuts"):
        ByteTokenizer()(["a"], max_length=3, padding="longest")
