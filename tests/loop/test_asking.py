from __future__ import annotations

import pytest

from homeostat.core.errors import InputError, SpecError
from homeostat.core.spec import from_config
from homeostat.loop.asking import OnDemand, wanted
from homeostat.loop.deployment import Deployment
from homeostat.loop.progress import Progress


def test_few_while_it_watches_and_many_in_a_trial():
    policy = OnDemand(calm=1, trial=9)
    assert [wanted(policy, Progress(phase=phase)) for phase in ("watch", "trial")] == [1, 9]
    assert wanted(5, Progress()) == wanted(5, Progress(phase="trial")) == 5


def test_fewer_than_none_are_refused():
    with pytest.raises(InputError, match="0 or more; got -1"):
        wanted(-1, Progress())
    with pytest.raises(SpecError):
        OnDemand(calm=-1)


def test_a_deployment_says_either():
    assert Deployment.__dataclass_fields__["labels"].default == 0
    made = from_config({"OnDemand": {"calm": 2}}, OnDemand)
    assert made == OnDemand(calm=2)
