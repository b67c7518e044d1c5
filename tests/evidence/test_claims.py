"""Claims: what a verdict is worth, what is read and written, how claims run, and when their evidence is stale."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from homeostat.core.errors import CheckpointError, InputError, MissingPart, NonFiniteError, SpecError, UnknownName
from homeostat.core.run import Event, Run
from homeostat.evidence import (
    Evidence,
    Statement,
    find_claims,
    judge,
    read_claims,
    read_evidence,
    run_claim,
    standing,
    verdicts,
    write_evidence,
)
from homeostat.evidence.checking import differences, sample
from homeostat.evidence.claiming import TIERS
from homeostat.evidence.finding import Found
from homeostat.evidence.measuring import _checked
from homeostat.evidence.recorded import claims_folder

ROOT = Path(__file__).parents[2]

HEAD = """
from __future__ import annotations
import torch
from homeostat.evidence import claim
from homeostat.data import Digits
"""
BODY = """
@claim("{id}", says="a is above b", ours="a", baseline="b", metric="score", least={least}, tier="{tier}",
       tuned="nothing", shrunk="all of it", data={data})
def {name}(run, *data):
    {code}
"""
NORMAL = "return {'a': 1 + 0.1 * float(torch.randn((), generator=run.rng('x'))), 'b': 0.5}"


def text(
    code: str = NORMAL, id: str = "S001", name: str = "one", least: float = 0.1, data: str = "()", tier="a minute"
) -> str:
    return BODY.format(id=id, name=name, least=least, code=code, data=data, tier=tier)


def written(folder: Path, *bodies: str, file: str = "s001_made.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(HEAD + "".join(bodies))
    return folder / file


def ran(folder: Path, *bodies: str, **options) -> list:
    return [run_claim(one, **options) for one in read_claims(written(folder, *bodies))]


def evidence(name: str = "one", ours=(1.0, 1.1, 0.9, 1.0, 1.05), least: float = 0.1) -> Evidence:
    said = Statement("a", "a", "b", "score", "fraction", "higher", least, "a minute", (), "nothing", "all")
    arms = {"a": tuple(ours), "b": (0.5,) * len(ours)}
    made = judge(arms["a"], arms["b"], "higher", least)
    return Evidence(
        "S001", name, said, tuple(range(len(ours))), arms, made.differences, made.effect, made.interval, made.verdict,
        (), 1.0, 1.0, 300.0, {"torch": "2"}, (), "c", "2026-01-01T00:00:00Z",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_the_interval_is_students_by_a_table():
    # t(4, 0.975) = 2.776445 by any table; differences 1..5 have a standard deviation of sqrt(2.5).
    made = judge([2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 5, "higher", 1.0)
    assert made.effect == 3.0
    assert made.interval == pytest.approx((3 - 2.776445 * (2.5 / 5) ** 0.5, 3 + 2.776445 * (2.5 / 5) ** 0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("least", "better", "verdict"),
    [(1.0, "higher", "held"), (3.0, "higher", "undecided"), (5.0, "higher", "not held"), (1.0, "lower", "not held"),
     (-5.0, "lower", "held")],
)  # fmt: skip
def test_a_verdict_says_on_which_side_of_least_the_interval_lies(least, better, verdict):
    assert judge([2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 5, better, least).verdict == verdict


def test_an_effect_of_exactly_least_is_said_held_and_not_held_in_two_and_a_half_percent_each():
    draws, said = np.random.default_rng(0).normal(0.3, 1.0, (4000, 5)), []
    for row in draws:
        said.append(judge(row, np.zeros(5), "higher", 0.3).verdict)
    # 0.025 with a standard error of 0.0025
    for verdict in ("held", "not held"):
        assert 0.015 < said.count(verdict) / len(said) < 0.035, verdict


def test_numbers_that_cannot_be_judged_are_refused():
    with pytest.raises(InputError, match="2 numbers of ours and 1"):
        judge([1.0, 2.0], [1.0], "higher", 0.0)
    with pytest.raises(InputError, match="at least two seeds"):
        judge([1.0], [1.0], "higher", 0.0)
    with pytest.raises(NonFiniteError):
        judge([1.0, float("nan")], [1.0, 1.0], "higher", 0.0)


# ------------------------------------------------------------------------------------------------------------- files


def test_evidence_is_read_as_it_was_written_and_others_stay(tmp_path):
    one, two = evidence("one"), evidence("two", (0.5, 0.55, 0.6, 0.5, 0.5))
    write_evidence(tmp_path, [one])
    (path,) = write_evidence(tmp_path, [two])
    before = path.read_text()
    assert read_evidence(path) == {"one": one, "two": two}
    write_evidence(tmp_path, [one])
    assert path.read_text() == before, "the order does not depend on what was written last"
    assert [entry.name for entry in tmp_path.iterdir()] == ["S001.json"]


def test_one_changed_number_changes_few_lines(tmp_path):
    (path,) = write_evidence(tmp_path, [evidence()])
    before = path.read_text().splitlines()
    write_evidence(tmp_path, [evidence(ours=(1.0, 1.1, 0.9, 1.0, 1.2))])
    after = path.read_text().splitlines()
    assert len(before) == len(after)
    changed = [line.split('"')[1] for line, other in zip(before, after, strict=True) if line != other]
    assert changed == ["a", "differences", "effect", "interval"]


def test_evidence_of_claims_that_are_gone_is_dropped_when_it_is_known_which_there_are(tmp_path):
    write_evidence(tmp_path, [evidence("one"), evidence("gone")])
    (path,) = write_evidence(tmp_path, [evidence("one")], known={"S001/one"})
    assert list(read_evidence(path)) == ["one"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"format": 1', '"format": 2', "no evidence of claims in format 1"),
        ('"id": "S001"', '"id": "S002"', "evidence of 'S002'"),
        ("1.05]", "1.5]", "not those of its numbers"),
        ('"verdict": "held"', '"verdict": "not held"', "its numbers say 'held'"),
        ('"says"', '"sayz"', "says"),
        ('"code": "c"', '"code": 3', "code"),
        ('"code": "c"', '"code": "c", "color": "red"', "color"),
        ('"a": [', '"c": [', "no numbers of a"),
        ('"seeds": [0, ', '"seeds": [', "5 numbers of 4 seeds"),
        ("{\n", "[\n", "is no JSON"),
        ("0.9, ", "1e999, ", "NaN or infinity"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, old, new, said):
    (path,) = write_evidence(tmp_path, [evidence()])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError) as error:
        read_evidence(path)
    assert said in str(error.value) and "S001.json" in str(error.value) and "\n" not in str(error.value)


def test_verdicts_are_read_without_torch_and_without_claims(tmp_path):
    write_evidence(tmp_path / "evidence", [evidence()])
    code = (
        "import sys; from homeostat.evidence.recorded import verdicts\n"
        f"found = verdicts({str(tmp_path)!r})\n"
        "print([(id, one.name, one.verdict) for id, held in found.items() for one in held], 'torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[('S001', 'one', 'held')] False", done.stderr


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MissingPart, match="no folder of claims"):
        claims_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert verdicts(tmp_path / "empty") == {}


# ----------------------------------------------------------------------------------------------------------- finding


def test_claims_are_found_by_id_and_by_name(tmp_path):
    written(tmp_path, text(), text(name="two", tier="long"))
    written(tmp_path, text(id="Tent", name="three"), file="tent.py")
    (tmp_path / "_shared.py").write_text("raise RuntimeError")
    claims = find_claims(tmp_path)
    assert [one.claim.full_name for one in claims.found] == ["S001/one", "S001/two", "Tent/three"]
    assert [one.claim.name for one in claims.choose(["S001"])] == ["one", "two"]
    assert [one.claim.name for one in claims.choose(["S001/two", "Tent"])] == ["two", "three"]
    assert [one.claim.name for one in claims.choose(["S001"], "long")] == ["two"]
    with pytest.raises(UnknownName, match=r"no claim Tenti.*Did you mean"):
        claims.choose(["Tenti"])
    with pytest.raises(SpecError, match="no tier 'an hour'; it is one of 'a minute'"):
        claims.choose((), "an hour")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def broken(:\n", "line 1: SyntaxError"),
        ("\nimport not_there\n", "line 2: ModuleNotFoundError"),
        ("x = 1\n", "holds no claim"),
        (HEAD + text(tier="an hour"), "SpecError: claim S001: tier is one of"),
        (HEAD + text(data="[Digits()]"), "a tuple of readers is wanted"),
    ],
)
def test_a_broken_file_is_one_error_that_names_it_and_the_others_list(tmp_path, content, said):
    (tmp_path / "s001_broken.py").write_text(content)
    written(tmp_path, text(), file="s002_whole.py")
    claims = find_claims(tmp_path)
    assert [one.claim.full_name for one in claims.found] == ["S001/one"]
    (broken,) = claims.broken
    assert said in broken.why and "s001_broken.py" in broken.why and "\n" not in broken.why


def test_two_claims_of_one_name_are_refused(tmp_path):
    written(tmp_path, text(), file="a.py")
    written(tmp_path, text(), file="b.py")
    claims = find_claims(tmp_path)
    assert len(claims.found) == 1 and "is in a.py, too" in claims.broken[0].why


# ----------------------------------------------------------------------------------------------------------- running


def test_a_claim_is_measured_for_every_seed_in_a_process_of_its_own(tmp_path):
    told: list[Event] = []
    code = "import os; print('noise'); return {'a': 1.0 + run.seed, 'b': 0.0, 'process': os.getpid(), "
    code += "'threads': torch.get_num_threads(), 'images': len(data[0]), 'kept': len(list(run.scratch.iterdir())) + "
    code += "(run.scratch / str(run.seed)).write_text('x')}"
    (made,) = ran(tmp_path, text(code, data="(Digits(stop=50),)"), run=Run(watch=told.append))
    one = made.evidence
    assert one is not None and one.arms["a"] == (1.0, 2.0, 3.0, 4.0, 5.0) and one.effect == 3.0
    assert set(one.arms["process"]) != {float(os.getpid())} and len(set(one.arms["process"])) == 1
    assert set(one.arms["threads"]) == {1.0} and set(one.arms["images"]) == {50.0}
    assert one.arms["kept"] == (1.0, 2.0, 3.0, 4.0, 5.0), "seeds share a folder, which was empty"
    assert one.peak_memory_mib > 50 and one.seconds >= 0 and len(one.data) == 1
    assert {"python", "torch", "numpy", "homeostat", "machine"} == set(one.versions)
    assert [event.step for event in told if event.name == "S001/one"][-1] == 5


def test_peak_memory_is_that_of_the_claim_and_not_of_who_started_it(tmp_path):
    ballast = np.ones(60_000_000)
    small, large = ran(
        tmp_path, text(), text(f"x = torch.ones(25_000_000); {NORMAL}", name="large"), seeds=range(2)
    )  # fmt: skip
    assert 80 < large.evidence.peak_memory_mib - small.evidence.peak_memory_mib < 130
    assert small.evidence.peak_memory_mib < ballast.nbytes / 2**20


def test_the_same_seeds_give_the_same_numbers_and_few_seeds_are_said(tmp_path):
    (first,), (again,) = ran(tmp_path, text(), seeds=[3, 4]), ran(tmp_path, text(), seeds=[4, 3])
    assert first.evidence.arms["a"] == again.evidence.arms["a"][::-1]
    assert any("too few for evidence" in note for note in first.evidence.notes)
    with pytest.raises(InputError, match="at least two"):
        ran(tmp_path, text(), seeds=[1])


def test_missing_data_are_skipped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    body = text(data="(CIFAR10('test'),)")
    (made,) = ran(tmp_path / "claims", "from homeostat.data import CIFAR10\n", body)
    assert made.evidence is None and not made.failed and "cifar-10-batches-bin" in made.skipped


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": 1.0}, "gave no 'b', only 'a'"),
        ({"a": float("inf"), "b": 0.0}, "gave inf for 'a'; a finite number"),
        ({"a": "x", "b": 0.0}, "gave str for 'a'"),
        (3, "gave int; a number for each arm"),
        ({"a": 1.0, "b": 0.0, "c": 1.0}, "the same for every seed"),
    ],
)
def test_arms_are_checked(tmp_path, arms, said):
    (one,) = read_claims(written(tmp_path, text()))
    with pytest.raises(InputError, match=said):
        _checked(one.claim, arms, {"a", "b"})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("return {'a': 1.0}", "gave no 'b'"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(7)", "its process ended early: exit code 7"),
    ],
)
def test_a_claim_that_cannot_be_run_fails_with_the_reason(tmp_path, code, said):
    (made,) = ran(tmp_path, text(code), seeds=range(2))
    assert made.evidence is None and not made.skipped and said in made.failed


def test_a_claim_slower_than_its_tier_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(TIERS, "a minute", 0)
    (made,) = ran(tmp_path, text(f"torch.randn(400, 400) @ torch.randn(400, 400); {NORMAL}"))
    assert any("its tier is a minute" in note for note in made.evidence.notes)


# ------------------------------------------------------------------------------------------------------------- stale


def recorded(folder: Path, *bodies: str) -> Path:
    """A folder of claims with evidence that was made up and is current."""
    held = read_claims(written(folder, *bodies))
    for one in held:
        data = tuple(reader.read().fingerprint() for reader in one.claim.data)
        made = dataclasses.replace(
            evidence(), id=one.claim.id, name=one.claim.name, statement=one.statement, code=one.code(), data=data
        )
        write_evidence(folder / "evidence", [made])
    return folder


def moved(folder: Path, to: Path, *bodies: str) -> list[str]:
    """States of claims whose file was changed; elsewhere, because a file is looked at once a process."""
    shutil.copytree(folder, to)
    if bodies:
        written(to, *bodies)
    return [one.state for one in standing(find_claims(to)).standings]


def test_evidence_is_stale_when_statement_code_or_data_changed(tmp_path):
    folder = recorded(tmp_path / "claims", text(data="(Digits(stop=9),)"))
    assert moved(folder, tmp_path / "same") == ["current"]
    comment = text("# why\n    " + NORMAL, data="(Digits(stop=9),)")
    assert moved(folder, tmp_path / "comment", comment) == ["current"]
    code = text(NORMAL.replace("0.5", "0.4"), data="(Digits(stop=9),)")
    assert moved(folder, tmp_path / "code", code) == ["stale: code changed"]
    least = text(least=0.01, data="(Digits(stop=9),)")
    assert moved(folder, tmp_path / "least", least) == ["stale: statement, code changed"]
    path = folder / "evidence" / "S001.json"
    here = read_evidence(path)["one"]
    write_evidence(folder / "evidence", [dataclasses.replace(here, data=("0" * 64,))])
    assert moved(folder, tmp_path / "data") == ["stale: data changed"]


def test_a_method_that_changed_makes_evidence_stale(tmp_path, monkeypatch):
    named = "from homeostat.loop.network import Network\n", text(f"Network(layout='SmallCNN', data=Digits()); {NORMAL}")
    one = read_claims(written(tmp_path, *named))[0]
    from homeostat.core import reach

    seen = reach.reached(["homeostat.nn.small_cnn"], [one.file])
    before, said = one.code(), reach._said
    changed = lambda file: said(file) + "!" * (file is not None and file.name == "small_cnn.py")  # noqa: E731
    monkeypatch.setattr(reach, "_said", changed)
    assert "homeostat.nn.small_cnn" in seen and one.code() != before, "also where a text names it"
    monkeypatch.setattr(reach, "_said", lambda file: said(file) + "!" * (file is not None and file.name == "lame.py"))
    assert one.code() == before


def test_data_that_are_not_here_leave_staleness_unknown(tmp_path, monkeypatch):
    folder = recorded(tmp_path / "claims", text(data="(Digits(stop=9),)"))
    found = find_claims(folder)

    def absent(self):
        raise MissingPart("there is no such file")

    monkeypatch.setattr("homeostat.data.Digits.open", absent)
    (one,) = standing(found).standings
    assert one.state == "current, data not here" and one.unknown == "there is no such file"
    assert sample([one], 3, 0) == []


def test_missing_and_orphaned_evidence_are_faults(tmp_path):
    folder = recorded(tmp_path / "claims", text())
    write_evidence(folder / "evidence", [evidence("gone")])
    record = standing(find_claims(folder))
    assert record.orphans == ("S001/gone",)
    assert record.faults() == ["S001/gone: there is evidence and no claim"]
    written(folder, text(id="S002"), file="s002_new.py")
    assert "S002/one: no evidence" in standing(find_claims(folder)).faults()


def test_a_sample_is_drawn_by_seed_from_a_tier(tmp_path):
    folder = recorded(tmp_path, *(text(name=f"c{k}") for k in range(4)), text(name="slow", tier="long"))
    rows = standing(find_claims(folder)).standings
    names = {tuple(one.found.claim.name for one in sample(rows, 2, seed)) for seed in range(20)}
    assert len(names) > 3 and not any("slow" in pair for pair in names)
    assert sample(rows, 2, 1) == sample(rows, 2, 1)
    assert len(sample(rows, 9, 0)) == 4 and [o.found.claim.name for o in sample(rows, 9, 0, "long")] == ["slow"]


# ----------------------------------------------------------------------------------------------------------- compare


def test_on_the_same_versions_every_number_must_come_out_again():
    one = evidence()
    assert differences(one, one) == ()
    assert differences(one, evidence(ours=(1.0, 1.1, 0.9, 1.0, 1.05 * (1 + 1e-7)))) == ()
    (said,) = differences(one, evidence(ours=(1.0, 1.1, 0.9, 1.0, 1.05 * (1 + 1e-5))))
    assert "a, seed 4" in said


def test_on_other_versions_the_effect_must_lie_in_the_widened_interval():
    one = evidence()
    wide = (one.interval[1] - one.interval[0]) / 2
    for shift, agrees in ((0.9 * wide, True), (1.9 * wide, True), (2.1 * wide, False), (-2.1 * wide, False)):
        other = evidence(ours=tuple(value + shift for value in one.arms["a"]))
        other = dataclasses.replace(other, versions={"torch": "3"})
        assert (differences(one, other) == ()) is agrees, shift
    seconds = dataclasses.replace(one.statement, unit="seconds")
    timed = dataclasses.replace(evidence(ours=(1.0, 1.1, 0.9, 1.0, 1.1)), statement=seconds)
    assert differences(dataclasses.replace(one, statement=seconds), timed) == ()


# ----------------------------------------------------------------------------------------------- those of this library


def test_every_claim_of_the_library_is_well_formed():
    claims = find_claims(ROOT / "claims")
    assert [broken.why for broken in claims.broken] == []
    ids = {one.claim.id for one in claims.found}
    assert {"S037", "S058", "S094", "Tent", "BatchNormBlend", "PriorCorrection", "PeriodicReset"} <= ids
    from homeostat.catalogue import systems

    for one in claims.found:
        assert one.claim.id in systems() or any(card_named(one)), one.claim.full_name
        assert one.claim.says.endswith("."), one.claim.full_name
    # Reading them checks that effect, interval and verdict are those of the numbers.
    assert set(verdicts(ROOT / "claims")) <= ids


def card_named(one: Found):
    from homeostat.core import spec

    yield from (cls.__name__ == one.claim.id for cls in spec.registered())


def test_a_wheel_carries_claims_and_evidence(tmp_path):
    pytest.importorskip("hatchling")
    import tomllib

    made = tmp_path / "project"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (made / "src" / "homeostat").mkdir(parents=True)
    for name in ("pyproject.toml", project["project"]["readme"], "LICENSE"):
        shutil.copy(ROOT / name, made / name)
    (made / "src" / "homeostat" / "__init__.py").write_text("")
    recorded(made / "claims", text())
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {"homeostat/claims/s001_made.py", "homeostat/claims/evidence/S001.json"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.nightly
def test_all_evidence_of_the_library_is_current_and_comes_out_again():
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for tier in TIERS:
        done = subprocess.run(
            [sys.executable, "-m", "homeostat", "claims", "check", "--sample", "1000", "--tier", tier, "--json"],
            capture_output=True, text=True, env=env,
        )  # fmt: skip
        assert done.returncode == 0, json.loads(done.stdout)["faults"] if done.stdout else done.stderr
