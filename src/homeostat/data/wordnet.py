"""Glosses of WordNet: short definitions, each in one of 45 classes of meaning.

WordNet's editors keep sets of synonyms in 45 lexicographer files by part of speech and meaning (`noun.animal`,
`verb.motion`). Gloss to file is a text classification of 117,659 samples (nouns: 82,115 in 26 classes) that is
on every Debian machine's doorstep: package wordnet-base.

Reference: Fellbaum (ed.), "WordNet: An Electronic Lexical Database", MIT Press 1998; lexnames(5WN), wndb(5WN).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from homeostat.core.errors import InputError, MissingPart, nearest
from homeostat.data.strings import Strings
from homeostat.nn.places import locate

CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession", "verb.social",
    "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""The lexicographer files by their number."""
PARTS = ("noun", "verb", "adj", "adv")
DEBIAN = Path("/usr/share/wordnet")
_SYNSETS = {"noun": 100_000_000, "verb": 200_000_000, "adj": 300_000_000, "adv": 400_000_000}


def glosses(part: str | None = None, examples: bool = False) -> Strings:
    """Glosses and their lexicographer file.

    Looked for in `HOMEOSTAT_DATA/wordnet`, in `WNSEARCHDIR`, and where Debian's package wordnet-base puts it.

    Args:
        part: `"noun"` (26 classes), `"verb"` (15), `"adj"` (3) or `"adv"` (1); default all (45). Classes are numbered
            in their order in `CLASSES`.
        examples: keep the quoted examples that follow a definition.

    Returns:
        Texts in the files' order. An id is the number WordNet itself gives the synset: 1 (noun) to 4 (adverb), then the
        8 digits of its place in the file.

    Raises:
        MissingPart: WordNet is nowhere. InputError: unknown part of speech, or a file is truncated or damaged.
    """
    if part is not None and part not in PARTS:
        raise InputError(f"the part of speech is one of {', '.join(PARTS)}; got {part!r}.{nearest(part, PARTS)}")
    folder = _folder()
    wanted = [i for i, name in enumerate(CLASSES) if part is None or name.startswith(part)]
    number = {file: label for label, file in enumerate(wanted)}
    texts: list[str] = []
    labels: list[int] = []
    ids: list[int] = []
    for name in PARTS if part is None else (part,):
        for offset, file, gloss in read_synsets(folder / f"data.{name}"):
            if file not in number:
                raise InputError(f"{folder / f'data.{name}'}: synset {offset:08} is of file {file}, not of a {name}'s")
            texts.append(gloss if examples else definition(gloss))
            labels.append(number[file])
            ids.append(_SYNSETS[name] + offset)
    return Strings(texts, labels, tuple(CLASSES[i] for i in wanted), ids)


def _folder() -> Path:
    elsewhere = [Path(folder)] if (folder := os.environ.get("WNSEARCHDIR")) else []
    return locate("wordnet", *elsewhere, DEBIAN, ways="on Debian: apt install wordnet-base")


def hypernyms(part: str = "noun") -> dict[int, int | None]:
    """For each synset of nouns or verbs its first hypernym (what it is a kind of); None for those that have none.

    Numbers are those of `glosses`. Where a synset is a kind of several others, WordNet's first one counts, so that what
    is left is a tree; for a single thing (Paris) it is what it is an instance of.

    Raises:
        MissingPart: WordNet is nowhere. InputError: another part of speech, or a file is damaged.
    """
    if part not in ("noun", "verb"):
        raise InputError(f"nouns and verbs have hypernyms; got {part!r}")
    first = _SYNSETS[part]
    found: dict[int, int | None] = {}
    for offset, pointers in _read_pointers(_folder() / f"data.{part}"):
        above = next((place for kind, place, other in pointers if kind in ("@", "@i") and other == part[0]), None)
        found[first + offset] = None if above is None else first + above
    return found


def _read_pointers(path: Path) -> Iterator[tuple[int, list[tuple[str, int, str]]]]:
    """`(place, [(kind of pointer, place that it points to, part of speech)])` of every synset of a `data.*` file."""
    for offset, _, words, _ in _read_lines(path):
        try:
            start = 4 + 2 * int(words[3], 16)  # behind the synset's words, each with a number
            fields = words[start + 1 : start + 1 + 4 * int(words[start])]
            found = [(fields[i], int(fields[i + 1]), fields[i + 2]) for i in range(0, len(fields), 4)]
        except (ValueError, IndexError):
            raise InputError(f"{path}: the pointers of the synset at byte {offset} are damaged. Get it again") from None
        yield offset, found


def definition(gloss: str) -> str:
    """A gloss without the quoted examples at its end.

    >>> definition('move fast; "He ran"; "they ran home"')
    'move fast'
    """
    return gloss.split('; "')[0] or gloss


def read_synsets(path: Path) -> Iterator[tuple[int, int, str]]:
    """`(place in the file, number of the lexicographer file, gloss)` of every synset of a `data.*` file.

    Every line begins with its own place in bytes, so that a lost byte is found.

    Raises:
        MissingPart: no such file. InputError: truncated or damaged; the text names the line.
    """
    for offset, file, _, gloss in _read_lines(path):
        yield offset, file, gloss


def _read_lines(path: Path) -> Iterator[tuple[int, int, list[str], str]]:
    """`(place, number of the lexicographer file, all words before the gloss, gloss)` of every synset."""
    if not path.is_file():
        raise MissingPart(f"there is no {path}, which is part of WordNet; on Debian: apt install wordnet-base")
    place = 0
    found = 0
    with open(path, "rb") as file:
        for row, line in enumerate(file, start=1):
            if not line.startswith(b"  "):  # the licence is indented
                head, bar, gloss = line.partition(b" | ")
                words = head.split()
                whole = bar and len(words) >= 4 and words[1].isdigit() and line.endswith(b"\n")
                if not whole or words[0] != b"%08d" % place:
                    raise InputError(
                        f"{path}, line {row}: a whole synset at byte {place} is wanted, {line[:40]!r} came; "
                        "the file is truncated or damaged. Get it again"
                    )
                text = [word.decode("ascii", "replace") for word in words]
                yield place, int(words[1]), text, gloss.decode("ascii", "replace").strip()
                found += 1
            place += len(line)
    if not found:
        raise InputError(f"{path} holds no synset; it is truncated or damaged. Get it again")
