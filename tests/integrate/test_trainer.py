"""Probes read by a real transformers Trainer, and models of both kinds as homeostat networks."""

from __future__ import annotations

import json

import pytest
import torch

import homeostat.integrate.trainer as trainer_module
from homeostat.core.data import Tensors
from homeostat.core.errors import DtypeError, InputError, MissingExtra, MissingPart
from homeostat.core.fork import versions
from homeostat.core.probe import read
from homeostat.core.world import World
from homeostat.data import ByteTokenizer, Strings
from homeostat.integrate import ProbeCallback
from homeostat.nn import Transformers
from homeostat.probe import ECE, KS, MMD, Accuracy
from homeostat.shift import CharacterNoise, Corrupt

transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
pytest.importorskip("accelerate", reason="the accelerate extra is not installed")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def pictures(count: int, seed: int) -> Tensors:
    """Class 1 is brighter."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return Tensors({"pixel_values": 0.3 * torch.rand(count, 1, 36, 36, generator=draws) + 0.4 * y.view(-1, 1, 1, 1)}, y)


def bare(data: Tensors) -> Tensors:
    """The inputs as one tensor, which shifts of images take."""
    batch = data.load()
    return Tensors(batch.x["pixel_values"], batch.y)


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=36, patch_size=12, num_channels=1, num_labels=2)
    return transformers.ViTForImageClassification(config)


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=300, **SMALL, max_position_embeddings=24, num_labels=2)
    return transformers.BertForSequenceClassification(config)


class Rows(torch.utils.data.Dataset):
    """Samples as a Trainer takes them."""

    def __init__(self, data):
        self.batch = data.load()

    def __len__(self):
        return len(self.batch)

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.batch.x.items()} | {"labels": self.batch.y[index]}


def made(model, data, callback, folder, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=16, eval_strategy="steps", learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
        dataloader_pin_memory=False, **{"max_steps": 20, "eval_steps": 20, "save_strategy": "no", **options},
    )  # fmt: skip
    rows = Rows(data)
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])


def test_a_trainer_of_pictures_reads_probes_and_shifts_at_every_evaluation(tmp_path, capsys):
    held, model = bare(pictures(60, 1)), vit()
    callback = ProbeCallback([Accuracy(), ECE()], held, {"noise": Corrupt("gaussian_noise", 5)}, intervals=True)
    trainer = made(
        model, pictures(64, 0), callback, tmp_path, save_strategy="steps", save_steps=12, max_steps=24, eval_steps=12,
        metric_for_best_model="noise_accuracy", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in entries] == [12, 24]
    for entry in entries:
        assert {"eval_loss", "eval_ece", "eval_noise_accuracy", "eval_noise_ece"} <= set(entry)
        assert entry["eval_accuracy_low"] <= entry["eval_accuracy"] <= entry["eval_accuracy_high"]
    assert trainer.state.best_metric == max(entry["eval_noise_accuracy"] for entry in entries)
    found = trainer.evaluate()
    accuracy, ece = read([Accuracy(), ECE()], Transformers(model), World(held=held))
    assert found["eval_accuracy"] == pytest.approx(accuracy.value) and found["eval_ece"] == pytest.approx(ece.value)
    noisy = read([Accuracy()], Transformers(model), World(held=Corrupt("gaussian_noise", 5)(held)))[0]
    assert found["eval_noise_accuracy"] == pytest.approx(noisy.value)
    saved = json.loads((tmp_path / "checkpoint-24" / "trainer_state.json").read_text())
    assert saved["log_history"][-1]["eval_ece"] == entries[-1]["eval_ece"]


def test_a_trainer_of_texts_reads_them_under_typing_errors(tmp_path, capsys):
    texts = Strings(["good fine nice"] * 20 + ["bad poor sad"] * 20, [1] * 20 + [0] * 20, ("bad", "good"))
    data = texts.tokenized(ByteTokenizer(), 20)
    trainer = made(bert(), data, ProbeCallback(Accuracy(), data, {"typing": CharacterNoise(rate=0.5)}), tmp_path)
    trainer.train()
    entry = next(e for e in reversed(trainer.state.log_history) if "eval_accuracy" in e)
    assert entry["eval_accuracy"] > 0.9 and "eval_typing_accuracy" in entry


def test_the_model_is_read_as_it_stands_and_not_changed():
    model, held = vit().train(), bare(pictures(40, 1))
    before = versions(model)
    world = World(source=bare(pictures(80, 0)), held=held)
    callback = ProbeCallback([Accuracy(), KS(on="outputs"), MMD(window=40)], world)
    found = callback.readings(model)
    assert versions(model) == before and model.training
    assert found == callback.readings(Transformers(model)) and set(found) == {"accuracy", "ks", "mmd2"}


def test_metrics_that_no_evaluation_wrote_get_an_entry_of_their_own():
    callback = ProbeCallback([Accuracy()], bare(pictures(8, 1)))
    state, metrics = transformers.TrainerState(), {"eval_loss": 1.0}
    callback.on_evaluate(None, state, None, metrics=metrics, model=vit())
    assert set(metrics) == {"eval_loss", "eval_accuracy"} and state.log_history[0]["step"] == 0


def test_what_does_not_fit_is_refused_before_training():
    held = bare(pictures(8, 1))
    with pytest.raises(DtypeError, match="a type is no Probe"):
        ProbeCallback([ECE], held)
    with pytest.raises(DtypeError, match="a str is no Shift"):
        ProbeCallback([ECE()], held, {"noise": "noise"})
    with pytest.raises(InputError, match="there is no probe"):
        ProbeCallback([], held)
    with pytest.raises(InputError, match="'a b' is not letters"):
        ProbeCallback([ECE()], held, {"a b": Corrupt("fog")})
    with pytest.raises(MissingPart, match="no data to measure on"):
        ProbeCallback([ECE()], World(source=held)).readings(vit())


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(trainer_module, "_Callback", object)
    with pytest.raises(MissingExtra, match=r"pip install 'homeostat\[transformers,accelerate\]'"):
        ProbeCallback([ECE()], bare(pictures(8, 1)))
