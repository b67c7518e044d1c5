"""The catalogue is whole, and what is registered belongs to it."""

from __future__ import annotations

from collections import Counter

from homeostat.catalogue import systems
from homeostat.catalogue.listing import STAGES, concrete_methods


def test_all_systems_are_there_each_with_a_sentence():
    assert list(systems()) == [f"S{number:03d}" for number in range(1, 321)]
    kinds = {"method", "system", "benchmark", "metric", "study", "theory", "application", "survey"}
    for system in systems().values():
        assert system.stage in STAGES and system.kind in kinds, system
        assert 20 <= len(system.does) <= 300 and len(system.title) >= 3, system
        assert not set("`*") & set(system.does), system
    assert {system.stage for system in systems().values()} == set(STAGES)


def test_every_id_of_a_method_is_in_the_catalogue_and_of_one_method():
    ids = Counter(cls.card.id for cls in concrete_methods() if cls.card.id)
    assert ids and set(ids) <= set(systems())
    assert {name for name, count in ids.items() if count > 1} == set()
    assert all(systems()[name].methods() for name in ids)
    running = sum(bool(system.methods()) for system in systems().values())
    assert running == len(ids)
