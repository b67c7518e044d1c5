"""Fills the pages of `methods/`: public names are read from the packages themselves, so that no page falls behind.

A line `<!-- names: adapt -->` becomes a table of the package's public names, then one section for each module. A line
`<!-- catalogue -->` becomes a table of systems for each stage. The README says how many of them run; a build puts the
number right.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from evidence import recorded, section

SOURCE = Path(__file__).parents[2] / "src" / "homeostat"
MARK = re.compile(r"^<!-- names: (\w+) -->$", re.MULTILINE)
KINDS = ("Remedy", "Shift", "Probe", "Objective", "Choose", "Task", "Online", "Part", "Spec", "Data")


README = Path(__file__).parents[2] / "README.md"
COUNT = re.compile(r"(?<=<!-- count -->).*?(?=<!-- /count -->)")


def on_pre_build(**_: Any) -> None:
    """Called by mkdocs first."""
    text = README.read_text()
    if (made := counted(text)) != text:
        README.write_text(made)


def counted(readme: str) -> str:
    """The README with the number of systems that run."""
    from homeostat.catalogue import systems

    running = sum(system.runs for system in systems().values())
    return COUNT.sub(f"{running} of {len(systems())}", readme)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if "<!-- catalogue -->" in markdown:
        markdown = markdown.replace("<!-- catalogue -->", catalogue())
    return MARK.sub(lambda found: contents(found[1]), markdown)


def catalogue() -> str:
    """A table of systems for each stage."""
    from homeostat.catalogue import systems
    from homeostat.catalogue.listing import STAGES

    made = []
    for stage, about in STAGES.items():
        mine = [system for system in systems().values() if system.stage == stage]
        running = sum(system.runs for system in mine)
        made += [f"## {stage.capitalize()}", "", f"{about[0].upper()}{about[1:]}. {running} of {len(mine)} run.", ""]
        made += ["| id | system | kind | runs as | what is known of it |", "|---|---|---|---|---|"]
        for system in sorted(mine, key=lambda system: (not system.runs, system.id)):
            names = ", ".join(f"[{cls.__name__}][{cls.__module__}.{cls.__name__}]" for cls in system.methods())
            title, does = (text.replace("|", "\\|") for text in (system.title, system.does))
            made.append(f"| {system.id} | **{title}.** {does}. | {system.kind} | {names} | {known(system)} |")
        made.append("")
    return "\n".join(made)


def known(system: Any) -> str:
    """Whether its numbers are pinned by tests, and what came of its paper's claims."""
    said = []
    if tests := system.exact():
        where = sorted({test.partition("::")[0] for test in tests})
        said.append(f'<span title="{len(tests)} in {", ".join(where)}">exact</span>')
    claims = Counter(one.verdict for one in system.claims())
    if claims:
        told = ", ".join(f"{count} {verdict}" for verdict, count in claims.items())
        said.append(f"[claims: {told}](evidence.md#{system.id.lower()})")
    return "; ".join(said)


def contents(package: str) -> str:
    """The table of a package's public names, and a section for each module."""
    modules = public(package)
    rows = [row(module, name) for module, names in modules.items() for name in names]
    wide = any(line[3] or line[4] for line in rows)
    head = "| name | kind | what it is | id | needs |\n|---|---|---|---|---|\n"
    table = head if wide else "| name | kind | what it is |\n|---|---|---|\n"
    table += "".join("| " + " | ".join(line if wide else line[:3]) + " |\n" for line in rows)
    sections = []
    for module, names in modules.items():
        options = ["heading_level: 2", "show_root_full_path: false", f"members: [{', '.join(names)}]"]
        sections.append(f"::: {module}\n    options:\n" + "".join(f"      {option}\n" for option in options))
        sections.append(beside(module, names))
    return "\n".join([table, *sections])


def beside(module: str, names: list[str]) -> str:
    """What is known of a module's methods besides their documentation: their cards, and the evidence for them."""
    from homeostat.core.method import Card

    made, record, shown = list[str](), recorded(), set[str]()
    for name in names:
        thing = getattr(importlib.import_module(module), name)
        card = getattr(thing, "card", None)
        if not isinstance(card, Card):
            continue
        made += [f"**Card of {name}.** {card_in_words(card)}", ""]
        for id in dict.fromkeys((card.id, name)):
            if id in record and id not in shown:
                shown.add(id)
                made += [f"**Evidence for {name}** ([all](../evidence.md#{id.lower()}))", "", *section(record[id])]
    return "\n".join(made)


def card_in_words(card: Any) -> str:
    """A card as sentences."""
    said = [f"[{card.id}](../catalogue.md); {card.paper}." if card.id else f"{card.paper}." if card.paper else ""]
    said.append(f"For {', '.join(sorted(card.handles))} shift." if card.handles - {"none"} else "")
    for what, needs in (("Needs", card.needs), ("Prepares from", card.prepares)):
        said.append(f"{what} {', '.join(f'`{need}`' for need in sorted(needs))}." if needs else "")
    said.append(f"{card.passes:g} forward {'pass' if card.passes == 1 else 'passes'} a sample.")
    said.append("A sample's output depends on its batch." if card.batch_coupled else "")
    return " ".join(text for text in said if text)


def public(package: str) -> dict[str, list[str]]:
    """Public names by module, in the order of the package's list; those of `core` are `homeostat`'s own."""
    folder, start = (SOURCE, "core.") if package == "core" else (SOURCE / package, "")
    found: dict[str, list[str]] = {}
    for node in ast.parse((folder / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(start):
            module = f"homeostat.{node.module}" if package == "core" else f"homeostat.{package}.{node.module}"
            found.setdefault(module, []).extend(alias.name for alias in node.names)
    return found


def row(module: str, name: str) -> tuple[str, str, str, str, str]:
    """Link, kind, first sentence, catalogue id and needs of a public name."""
    thing = getattr(importlib.import_module(module), name)
    said = (getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0].split("\n")
    first = (
        " ".join(line.strip() for line in said).replace("|", "\\|") if not isinstance(thing, str | int | tuple) else ""
    )
    kind = "function"
    if isinstance(thing, type):
        bases = {base.__name__ for base in thing.__mro__[1:]}
        kind = next((known.lower() for known in KINDS if known in bases), "class")
    elif not callable(thing):
        kind, first = "constant", f"`{thing}`" if isinstance(thing, int | str) else ""
    card = getattr(thing, "card", None)
    needs = "<br>".join(f"`{need}`" for need in sorted(card.needs | card.prepares)) if card is not None else ""
    return (
        f"[{name}][{module}.{name}]",
        kind,
        re.split(r"(?<=[.;:]) ", first)[0].rstrip(":;"),
        card.id if card else "",
        needs,
    )
