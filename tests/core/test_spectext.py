"""Specs as text: what `repr` prints and what a person types, and the errors of what cannot be read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from homeostat.adapt import EATA, PeriodicReset, Tent
from homeostat.core import spec
from homeostat.core.errors import HomeostatError, SpecError, UnknownName
from homeostat.core.method import Remedy, Shift
from homeostat.core.spec import Spec
from homeostat.core.spectext import parse_field, parse_spec
from homeostat.data import NPZ, Digits
from homeostat.loop import Network
from homeostat.nn.optimizers import Adam
from homeostat.robust import PGD
from homeostat.shift import Clean, Compose, Corrupt, LabelShift
from homeostat.tune import LoRA


def test_what_repr_prints_of_every_registered_spec_is_read_back():
    count = 0
    for cls in spec.registered(Spec):
        try:
            made = cls()
        except (SpecError, TypeError):  # a base, or one with fields that must be given
            continue
        assert parse_spec(repr(made)) == made
        count += 1
    assert count > 60


@given(st.floats(min_value=1e-12, max_value=1e12), st.integers(0, 5), st.text(max_size=20))
def test_numbers_and_texts_survive_their_repr(number, severity, path):
    for made in (
        EATA(margin=number, optimizer=Adam(lr=number, betas=(0.5, 0.25))),
        Compose((Corrupt("fog", severity), Clean())),
        NPZ(path or "a.npz", y=None, start=severity),
    ):
        assert parse_spec(repr(made)) == made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("EATA", EATA()),
        (" EATA() ", EATA()),
        ("EATA(margin=1)", EATA(margin=1.0)),
        ("PeriodicReset(Tent(Adam(lr=1e-4)), 30)", PeriodicReset(Tent(Adam(lr=1e-4)), 30)),
        ("PeriodicReset(remedy=Tent)", PeriodicReset(Tent())),
        ("{EATA: {margin: 1e-3}}", EATA(margin=1e-3)),
        ('{"EATA": {"margin": 0.3, "optimizer": {"Adam": {"lr": 0.1}}}}', EATA(margin=0.3, optimizer=Adam(lr=0.1))),
        ("EATA: {margin: 0.3}", EATA(margin=0.3)),
        ("EATA:\n  margin: 0.3\n", EATA(margin=0.3)),
        ("Corrupt(name=fog)", Corrupt("fog")),
        ("Compose([Clean, Corrupt('fog', 1)])", Compose((Clean(), Corrupt("fog", 1)))),
        ("PGD(8/255)", PGD(eps=8 / 255)),
        ("Translate(-2.5)", spec.find("Translate")(right=-2.5)),
        ("Digits(shuffle=0, stop=none)", Digits(shuffle=0)),
        ("Network(ResNet(20, classes=5), 'w.safetensors')",
         Network({"ResNet": {"depth": 20, "classes": 5}}, "w.safetensors")),
    ],
)  # fmt: skip
def test_what_a_person_types(text, made):
    assert parse_spec(text) == made


def test_a_spec_is_passed_through_and_checked_all_the_same():
    assert parse_spec(EATA()) == EATA()
    with pytest.raises(SpecError, match="EATA is not a Shift"):
        parse_spec(EATA(), Shift)
    with pytest.raises(SpecError, match="Corrupt is not a Remedy"):
        parse_spec("Corrupt(name='fog')", Remedy)
    with pytest.raises(SpecError, match="got a int"):
        parse_spec(3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EATTA", r"'EATTA'\. Did you mean 'EATA'"),
        ("EATA(marg=3)", "EATA has no field 'marg'. Did you mean 'margin'"),
        ("EATA(margin=-1)", "EATA.margin = -1, but it must be > 0"),
        ("EATA(margin=0.1, margin=0.2)", "margin twice|repeated: margin"),
        ("PeriodicReset(Tent, remedy=Tent)", "PeriodicReset is given remedy twice"),
        ("PeriodicReset(Tent, 3, 4)", "takes remedy, every in this order; got 3 values"),
        ("Digits(3)", "takes no value without a field's name"),
        ("EATA(margin=", "character 5 .*never closed"),
        ("EATA(**fields)", "stars cannot be read"),
        ("os.system('ls')", "nothing that a field can hold"),
        ("EATA(margin=[x for x in (1,)])", "nothing that a field can hold"),
        ("EATA(margin=lambda: 1)", "nothing that a field can hold"),
        ("EATA(margin=1 + 1)", "nothing that a field can hold"),
        ("PGD(8/0)", "divides by zero"),
        ("PGD('a'/2)", "'a' .* is no number"),
        ("PGD(-True)", "True .* is no number"),
        ("EATA(optimizer={[1]: 2})", "key that is no word"),
        ("{EATA: {margin: 1", "expected ',' or '}'"),
        ("{EATA: {}, Tent: {}}", "a mapping with one name.*; got one with EATA, Tent"),
        ("{EATA: {margin: 1, margin: 2}}", "margin is there already"),
        ("", "the text is empty"),
        ("  ", "the text is empty"),
        ("[EATA]", "a mapping with one name"),
        ("EATA(" * 300, "nested"),
        ("EATA\0", "cannot be read"),
        ("a" * 5000 + "(", r"'a{57}\.\.\.' cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line_of_ours(text, said):
    with pytest.raises((SpecError, UnknownName), match=said) as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@given(st.text(max_size=30))
def test_any_text_is_a_spec_or_an_error_of_ours(text):
    try:
        assert isinstance(parse_spec(text), Spec)
    except HomeostatError as error:
        assert str(error)


def test_nothing_named_in_a_text_is_called(monkeypatch):
    import os

    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    for text in ("SGD(lr=__import__('os').system('ls'))", "__import__('os')", "eval('1')", "SGD(lr=eval('1'))"):
        with pytest.raises((SpecError, UnknownName)):
            parse_spec(text)


@pytest.mark.parametrize(
    ("cls", "name", "text", "value"),
    [
        (EATA, "margin", "0.3", 0.3),
        (EATA, "margin", "3", 3),
        (EATA, "backward", "subset", "subset"),
        (EATA, "optimizer", "SGD(lr=0.1)", spec.find("SGD")(lr=0.1)),
        (EATA, "optimizer", "{SGD: {lr: 0.1}}", spec.find("SGD")(lr=0.1)),
        (Adam, "betas", "0.5, 0.9", (0.5, 0.9)),
        (Adam, "betas", "(0.5, 0.9)", (0.5, 0.9)),
        (LabelShift, "prior", "", ()),
        (LabelShift, "prior", "1", (1,)),
        (LoRA, "layers", "layer1.*, linear", ("layer1.*", "linear")),
        (LoRA, "layers", "['*']", ("*",)),
        (Compose, "shifts", "Clean, Corrupt(name='fog')", (Clean(), Corrupt("fog"))),
        (PGD, "norm", "2", "2"),
        (NPZ, "path", "3", "3"),
        (NPZ, "y", "none", None),
        (NPZ, "y", "labels", "labels"),
        (Digits, "stop", "none", None),
        (PGD, "start", "false", False),
    ],
)
def test_a_fields_text_is_read_as_what_the_field_holds(cls, name, text, value):
    found = parse_field(cls, name, text)
    assert found == value and type(found) is type(value)


def test_a_fields_text_that_cannot_be_read_names_class_and_field():
    with pytest.raises(SpecError, match=re.escape("EATA.margin = '0.4.1' cannot be read: ")):
        parse_field(EATA, "margin", "0.4.1")
    with pytest.raises(SpecError, match=r"Adam has no field 'rl'\. Did you mean 'lr'"):
        parse_field(EATA, "optimizer", "Adam(rl=3)")
