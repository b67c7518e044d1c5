"""WordNet's glosses."""

from __future__ import annotations

import pytest

from homeostat.core.errors import InputError, MissingPart
from homeostat.data import WordNetMetric, wordnet
from homeostat.data.wordnet import CLASSES, definition, glosses, read_synsets

LICENCE = b"  1 You may use this.  \n  2 No warranty.  \n"


def write(folder, name, *synsets):
    """A `data.*` file of `(lexicographer file, letter, gloss)`, each line beginning with its place."""
    content = LICENCE
    for file, letter, gloss in synsets:
        content += f"{len(content):08d} {file:02d} {letter} 01 word 0 000 | {gloss}  \n".encode()
    (folder / f"data.{name}").write_bytes(content)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    made = tmp_path / "wordnet"
    made.mkdir()
    write(made, "noun", (5, "n", 'a small animal; "the cat purred"'), (13, "n", "a red fruit"))
    write(made, "verb", (38, "v", "move fast"))
    write(made, "adj", (0, "a", "of a colour"), (44, "s", "worn out"))
    write(made, "adv", (2, "r", "in haste"))
    return made


def test_the_class_of_a_gloss_is_its_lexicographer_file(folder):
    found = glosses()
    assert found.classes == CLASSES and len(CLASSES) == 45
    assert [(found.classes[label], text) for label, text in zip(found.labels.tolist(), found, strict=True)] == [
        ("noun.animal", "a small animal"),
        ("noun.food", "a red fruit"),
        ("verb.motion", "move fast"),
        ("adj.all", "of a colour"),
        ("adj.ppl", "worn out"),
        ("adv.all", "in haste"),
    ]


@pytest.mark.parametrize(("part", "classes", "count"), [("noun", 26, 2), ("verb", 15, 1), ("adj", 3, 2), ("adv", 1, 1)])
def test_a_part_of_speech_has_its_own_classes_numbered_from_0_and_the_same_ids(folder, part, classes, count):
    some, every = glosses(part), glosses()
    assert len(some.classes) == classes and len(some) == count
    by_id = {i: every.classes[label] for i, label in zip(every.id.tolist(), every.labels.tolist(), strict=True)}
    for i, label in zip(some.id.tolist(), some.labels.tolist(), strict=True):
        assert by_id[i] == some.classes[label]
    assert every.id.unique().numel() == len(every)


def test_an_id_is_wordnets_own_number(folder):
    assert glosses("noun").id[0] == 100_000_000 + len(LICENCE)


def test_examples_are_kept_when_asked_for(folder):
    assert glosses("noun", examples=True).texts[0] == 'a small animal; "the cat purred"'
    assert definition('of a thing; in "quotes" too; "an example"; "another"') == 'of a thing; in "quotes" too'


@pytest.mark.parametrize(
    ("old", "new"), [(b" | a red", b"   a red"), (b"cat", b"caat"), (b"fruit  \n", b"fru"), (b"05 n", b"0x n")]
)
def test_a_damaged_file_is_refused_by_line(folder, old, new):
    path = folder / "data.noun"
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(InputError, match=r"data\.noun, line [34]: .*truncated or damaged"):
        glosses("noun")


def test_empty_absent_and_foreign_files_are_refused(folder, monkeypatch):
    (folder / "data.adv").write_bytes(LICENCE)
    with pytest.raises(InputError, match="holds no synset"):
        glosses("adv")
    write(folder, "adv", (5, "r", "of an animal"))
    with pytest.raises(InputError, match="not of a adv"):
        glosses("adv")
    (folder / "data.adv").unlink()
    with pytest.raises(MissingPart, match="wordnet-base"):
        glosses()
    with pytest.raises(InputError, match="Did you mean 'noun'"):
        glosses("nuon")
    monkeypatch.delenv("HOMEOSTAT_DATA")
    monkeypatch.setattr(wordnet, "DEBIAN", folder / "none")
    with pytest.raises(MissingPart, match="apt install wordnet-base"):
        glosses()
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    assert len(glosses("noun")) == 2


@pytest.mark.skipif(not wordnet.DEBIAN.is_dir(), reason="Debian's package wordnet-base is not installed")
def test_debians_package_holds_the_published_number_of_synsets(monkeypatch):
    counts = {part: sum(1 for _ in read_synsets(wordnet.DEBIAN / f"data.{part}")) for part in wordnet.PARTS}
    assert counts == {"noun": 82115, "verb": 13767, "adj": 18156, "adv": 3621}
    monkeypatch.delenv("HOMEOSTAT_DATA", raising=False)
    nouns = glosses("noun")
    index = nouns.texts.index(
        "feline mammal usually having thick soft fur and no ability to roar: domestic cats; wildcats"
    )
    assert nouns.classes[nouns.labels[index]] == "noun.animal"
    assert int(nouns.labels.bincount(minlength=26).min()) > 0


def test_hypernyms_are_the_first_ones(folder):
    lines, places = [], []
    at = len(LICENCE)
    pointers = [
        "000",
        "002 @ {0:08d} n 0000 ~ {0:08d} n 0000",
        "003 ~ {0:08d} n 0000 @ {1:08d} n 0000 @ {0:08d} n 0000",
    ]
    pointers.append("001 @i {2:08d} n 0000")
    for pointer in pointers:
        places.append(at)
        line = f"{at:08d} 03 n 02 word 0 other_word 1 {pointer.format(*places)} | gloss  \n"
        lines.append(line)
        at += len(line)
    (folder / "data.noun").write_bytes(LICENCE + "".join(lines).encode())
    ids = [100_000_000 + place for place in places]
    assert wordnet.hypernyms() == {ids[0]: None, ids[1]: ids[0], ids[2]: ids[1], ids[3]: ids[2]}
    metric = WordNetMetric((ids[3], ids[1]))
    assert metric.distances().tolist() == [[0.0, 2.0], [2.0, 0.0]]
    with pytest.raises(InputError, match="no noun synset"):
        WordNetMetric((7,)).distances()
    with pytest.raises(InputError, match="nouns and verbs"):
        wordnet.hypernyms("adv")
    damaged = (folder / "data.noun").read_text().replace("001 @i", "9xx @i")
    (folder / "data.noun").write_text(damaged)
    with pytest.raises(InputError, match="pointers"):
        wordnet.hypernyms()
