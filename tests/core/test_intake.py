"""What users of plain PyTorch loops have, as data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from homeostat.core.data import Batch
from homeostat.core.errors import DtypeError, InputError
from homeostat.core.intake import as_data

X, Y = torch.arange(14.0).view(7, 2), torch.tensor([0, 1, 0, 1, 0, 1, 1])


class Samples(Dataset):
    """Map-style samples."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return self.form(index)


class Endless(IterableDataset):
    """Samples one after another, with a length as some have."""

    def __len__(self):
        return 7

    def __iter__(self):
        return ((X[i], int(Y[i])) for i in range(7))


FORMS = {
    "dataset of pairs": Samples(lambda i: (X[i].numpy(), int(Y[i]))),
    "dataset of mappings": Samples(lambda i: {"x": X[i], "label": Y[i]}),
    "tensor dataset": TensorDataset(X, Y),
    "iterable dataset": Endless(),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "loader of an iterable dataset": DataLoader(Endless(), batch_size=2),
    "loader of mappings": DataLoader(Samples(lambda i: {"x": X[i], "labels": Y[i]}), batch_size=3),
    "list of batches": [(X[:3], Y[:3]), (X[3:6], Y[3:6]), (X[6:], Y[6:])],
    "list of two batches": [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "list of equal batches": [(X[:1], Y[:1])] + [(X[i : i + 2], Y[i : i + 2]) for i in (1, 3, 5)],
    "list of Batch": [Batch(X[:3], Y[:3]), Batch(X[3:], Y[3:])],
    "list of samples": [(X[i], Y[i]) for i in range(7)],
    "list of two lists": list(DataLoader(TensorDataset(X, Y), batch_size=4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_gives_samples_or_batches_gives_the_same_data(form):
    batch = as_data(FORMS[form]).load()
    assert torch.equal(batch.x, X) and batch.labels.tolist() == Y.tolist()


def test_inputs_without_labels_come_as_batches_of_one_part():
    for form in (TensorDataset(X), DataLoader(TensorDataset(X), batch_size=3), DataLoader(X, batch_size=3)):
        batch = as_data(form).load()
        assert torch.equal(batch.x, X) and batch.y is None


def test_several_inputs_stay_a_mapping_without_the_labels():
    rows = Samples(lambda i: {"tokens": X[i].long(), "mask": torch.ones(2), "labels": int(Y[i])})
    for form in (rows, DataLoader(rows, batch_size=4)):
        batch = as_data(form).load()
        assert set(batch.x) == {"tokens", "mask"} and batch.labels.tolist() == Y.tolist()


def test_what_does_not_fit_together_is_refused_in_our_words():
    uneven = [(torch.zeros(2), 0), (torch.zeros(3), 1), (torch.zeros(2), 1)]
    with pytest.raises(InputError, match=r"stream: its samples do not fit together"):
        as_data(uneven, "stream")
    with pytest.raises(InputError, match=r"stream: its batches do not fit together"):
        as_data(iter([torch.zeros(2, 3), torch.zeros(2, 4)]), "stream")
    with pytest.raises(InputError, match="some batches have labels and some have none"):
        as_data(iter([(X, Y), X]))
    with pytest.raises(InputError, match=r"has 3 parts; x or \(x, y\) is wanted"):
        as_data(TensorDataset(X, X, Y))
    with pytest.raises(InputError, match=r"stream: batch 0 has 3 parts"):
        as_data(DataLoader(TensorDataset(X, X, Y), batch_size=2), "stream")
    with pytest.raises(InputError, match="empty"):
        as_data(iter([]))


def test_pictures_and_texts_name_what_reads_them():
    picture = Image.fromarray(np.zeros((2, 2), np.uint8))
    with pytest.raises(DtypeError, match=r"holds a picture.*homeostat\.data\.huggingface"):
        as_data(Samples(lambda i: {"image": picture, "label": 0}))
    with pytest.raises(DtypeError, match=r"data\.text holds text \(str\)"):
        as_data(Samples(lambda i: {"text": "a", "label": 0}))
    with pytest.raises(DtypeError, match="holds values of type object"):
        as_data([(object(), 0), (object(), 1), (object(), 1)])


def test_a_frame_of_pandas_names_what_reads_it():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    with pytest.raises(DtypeError, match=r"homeostat\.data\.frame\(table, label="):
        as_data(pandas.DataFrame({"a": [1.0]}))
