"""Why a window went as it did, in sentences, from rows whose story is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeostat.core.errors import InputError, StoreError
from homeostat.loop.explain import why
from homeostat.loop.judged import Judged
from homeostat.loop.operate import history
from homeostat.loop.store import Row, Store

LOST = {"name": "LAME", "word": "not shown", "why": "+1.0% on 20 labels, evidence 1.3, 60 wanted"}
WON = {"name": "EATA", "word": "better", "why": "+9.0% on 20 labels, evidence 71"}
BAD = {"name": "Tent", "word": "refused", "why": "it predicts only 1.0 classes where the frozen model predicts 8.2"}
SHIFT = "the inputs changed: features moved by up to 0.83 standard deviations (probability 0.97)"
EVIDENCE = {
    "entropy": {"capital": 3000.0, "threshold": 1000, "bound": 0.55}, "error": {"capital": 1.0, "threshold": 1000},
    "classes": {"capital": 1000.0, "threshold": 1000}, "all": {"capital": 1333.7, "threshold": 500},
}  # fmt: skip
ALARM = {
    "kind": "uncertain", "text": "entropy 0.4, was 0.1", "effect": 0.3, "since": [3, 2, 5], "again": False,
    "shift": "covariate", "shift_text": SHIFT, "kinds": {"covariate": 0.97, "label": 0.02, "none": 0.01},
    "evidence": EVIDENCE,
}  # fmt: skip
ROWS = [
    Row(0, "start", {"served": "source", "accuracy_before": 0.9}, "c0"),
    Row(5, "alarm", ALARM),
    Row(5, "propose", {"tried": ["EATA", "LAME", "Tent"], "left": {"BBSE": "it is for label, and not for this"}}),
    Row(7, "decision", {"verdicts": [WON, LOST, BAD]}),
    Row(7, "commit", {"from": "source", "to": "EATA", "why": WON["why"]}, "c1"),
    Row(12, "rollback", {"from": "EATA", "to": "source", "why": "the frozen network is better by 4.0%"}, "c0"),
    Row(16, "alarm", {"kind": "certain", "text": "entropy 0.1, was 0.4", "since": [1, 1, 1], "again": False}),
    Row(16, "propose", {"tried": [], "left": {"EATA": "it needs target.x", "LAME": "it costs 3 passes"}}),
    Row(16, "keep", {"served": "source", "why": "no candidate fits"}),
]


def window(step: int) -> Row:
    name = "EATA" if 8 <= step <= 12 else "source"
    return Row(step, "window", {"served": name, "ms": 1.0, "entropy": 0.25})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store(tmp_path / "store") as made:
        made.write([*map(window, range(20)), *ROWS])
    judged = [(step, 0.5, 0.5) for step in range(8)] + [(step, 0.8, 0.6) for step in range(8, 13)]
    lines = [f'{{"step": {s}, "served": "x", "accuracy": {a}, "frozen": {f}}}\n' for s, a, f in judged]
    (tmp_path / "store" / "judged.jsonl").write_text("".join(lines))
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("step", "heading"),
    [(5, "alarm, trial begun"), (6, "inside the trial that began with the alarm at window 5"), (7, "commit")],
)
def test_a_commit_is_told_from_the_alarm_to_hindsight_at_each_of_its_windows(store, step, heading):
    told = why(store, step)
    assert told.heading == f"Window {step}: {heading}."
    before, after = " ".join(told.before), " ".join(told.after)
    assert "The network as deployed was answering, as from the beginning." in before
    assert "At window 5 the monitor raised an alarm: entropy 0.4, was 0.1." in before
    assert "for about 3 windows, since window 3 (95% interval: 2 to 5)." in before
    assert "Its evidence was 1,330, where 500 is enough: 75% from entropy, 25% from classes." in before
    assert f"Diagnosis: {SHIFT}. Likeliest kinds of shift: covariate 97%, label 2%, none 1%." in before
    assert "does not say that answers got worse" in before
    assert "3 candidates ran in shadow" in before and "EATA, LAME, Tent. 1 more was left out." in before
    outcomes = {one["name"]: (one["outcome"], one["why"]) for one in told.tried}
    assert outcomes["EATA"] == ("taken", WON["why"] + ".")
    assert outcomes["LAME"][0].startswith("not taken") and "1.3, 60 wanted" in outcomes["LAME"][1]
    assert outcomes["Tent"][0].startswith("refused") and "1.0 classes" in outcomes["Tent"][1]
    assert outcomes["BBSE"] == ("left out", "It is for label, and not for this.")
    assert "From window 8 on, EATA answers in place of the network as deployed." in after
    assert "over the 5 windows" in after and "80.0%" in after and "60.0%" in after and "+20.0 points" in after
    assert "What came next: rollback at window 12." in after
    assert [row["kind"] for row in told.rows] == ["alarm", "propose", "decision", "commit"]


def test_a_rollback_says_what_had_been_served_why_and_that_its_worth_is_not_known(store):
    told = why(store, 12)
    assert told.heading == "Window 12: rollback."
    assert told.before[0] == "EATA was answering, put in service by the commit at window 7."
    after = " ".join(told.after)
    assert "the network as deployed answers again in place of EATA" in after and "better by 4.0%" in after
    assert "no label has judged a window since" in after and "What came next: alarm at window 16" in after


def test_a_trial_without_a_change_says_so(store):
    told = why(store, 16)
    assert told.heading == "Window 16: alarm, trial begun, no change."
    before = " ".join(told.before)
    assert "for about 1 window, since window 16 (95% interval: 1 to 1)." in before
    assert (
        "No candidate fits: 2 were left out." in before and "Its evidence" not in before and "Diagnosis" not in before
    )
    assert [(one["name"], one["why"]) for one in told.tried] == [
        ("EATA", "It needs target.x."), ("LAME", "It costs 3 passes."),
    ]  # fmt: skip
    assert "Nothing was changed: the network as deployed went on answering. No candidate fits." in told.after
    assert told.after[-1] == "Nothing has happened since."


def test_a_quiet_window_says_what_answered_how_well_and_what_happened_around_it(store):
    told = why(store, 10)
    said = " ".join([*told.before, *told.after])
    assert told.heading == "Window 10: nothing happened." and told.tried == []
    assert told.before[0] == "EATA answered, put in service by the commit at window 7."
    assert "80.0% of the answers were right; the network as deployed alone: 60.0%." in said and "0.250" in said
    assert "Last before it: alarm at window 5, which led to the commit of EATA at window 7." in said
    assert "Next after it: rollback at window 12." in said
    assert "Next after it" not in " ".join(why(store, 19).after)


def test_a_window_that_is_not_there_is_answered_with_those_where_something_happened(store):
    for step in (20, -1):
        with pytest.raises(InputError) as refused:
            why(store, step)
        said = str(refused.value)
        assert f"there is no window {step}: the journal has windows 0 to 19" in said
        assert said.endswith("Something happened at 5 (alarm), 7 (commit), 12 (rollback), 16 (alarm, no change)")


def test_a_rollback_by_hand_after_another_at_the_same_window_knows_of_it(store):
    with Store(store) as open_store:
        open_store.write([Row(19, "rollback", {"from": "source", "to": "EATA", "why": "a"}, "c1")])
        open_store.write([Row(19, "rollback", {"from": "EATA", "to": "source", "why": "b"}, "c0")])
    told = why(store, 19)
    assert told.before[:2] == [
        "EATA was answering, put in service by the rollback at window 19.",
        "At the same window, before that: rollback at window 19.",
    ]


def test_a_repeated_trial_says_whose_alarm_it_is_and_diagnoses_anew(store):
    again = {**ALARM, "again": True, "shift": "label", "shift_text": "the class balance changed", "kinds": {"label": 1}}
    with Store(store) as open_store:
        open_store.write([Row(18, "alarm", again), Row(18, "propose", {"tried": ["LAME"], "left": {}})])
    told = why(store, 18)
    before = " ".join(told.before)
    assert "another was begun. The alarm was: entropy 0.4, was 0.1." in before
    assert "Diagnosis: the class balance changed. Likeliest kinds of shift: label 100%." in before
    assert "for about" not in before and "Its evidence" not in before, "these were of the first alarm"
    assert [(one["name"], one["outcome"]) for one in told.tried] == [("LAME", "on trial, no verdict yet")]


def test_a_trial_that_a_rollback_ends_has_no_verdicts(store):
    trial = [Row(17, "alarm", ALARM), Row(17, "propose", {"tried": ["LAME"], "left": {}})]
    failed = {"served": "EATA", "ms": 1.0, "entropy": 0.2, "failed": "it failed: no memory"}
    with Store(store) as open_store:
        open_store.write([*trial, Row(20, "window", failed)])
        open_store.write([Row(20, "rollback", {"from": "EATA", "to": "source", "why": failed["failed"]}, "c0")])
    told = why(store, 20)
    assert "EATA could not answer at window 20; the network as deployed answered instead." in told.before
    assert told.tried == [{"name": "LAME", "outcome": "the trial ended before a verdict", "why": ""}]
    assert "it failed: no memory" in " ".join(told.after)


def test_labels_that_came_too_late_are_counted_at_their_window(store):
    with Store(store) as open_store:
        open_store.write([Row(20, "window", {"served": "source", "ms": 1.0, "entropy": 0.2, "lost": 2})])
    assert "2 labels came too late: what was answered then is not kept any more." in why(store, 20).before


def test_a_store_without_windows_and_no_store_are_our_errors(tmp_path):
    Store(tmp_path / "new").close()
    with pytest.raises(InputError, match="has served no window"):
        why(tmp_path / "new", 0)
    with pytest.raises(StoreError, match="no such folder"):
        why(tmp_path / "none", 0)


def test_every_window_of_a_real_run_can_be_explained(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 8), (problem.DARK, 10), (problem.CLEAN, 8)])
    judged = Judged(tmp_path / "real")
    with problem.loop(tmp_path / "real", problem.net, simulate=problem.SIMULATED) as loop:
        judged.add(loop.run(stream, labels=8))
    told = [why(tmp_path / "real", step) for step in range(26)]
    assert [one.step for one in told] == list(range(26)) and all(one.before and one.heading for one in told)
    for row in history(tmp_path / "real", ("commit", "rollback")):
        assert row.kind in told[row.step].heading and row.content["why"] in " ".join(told[row.step].after)
    alarms = [row for row in history(tmp_path / "real", ("alarm",)) if not row.content["again"]]
    assert alarms
    for row in alarms:
        before = " ".join(told[row.step].before)
        assert f"{row.step - row.content['since'][0] + 1} (95% interval: " in before
        assert row.content["shift_text"] in before and row.content["text"] in before
