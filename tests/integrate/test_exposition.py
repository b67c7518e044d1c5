"""How stores stand, as Prometheus reads it."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from homeostat.core.errors import InputError
from homeostat.integrate import endpoint, prometheus
from homeostat.loop.store import Row, Store

LIFE = [
    Row(0, "start", {"served": "source", "accuracy_before": 0.875}, "c0"),
    Row(0, "window", {"served": "source", "ms": 4.0, "entropy": 0.5, "labels": 10, "right": 5, "frozen_right": 5}),
    Row(1, "window", {"served": "source", "ms": 1.0, "entropy": 0.1}),
    Row(1, "alarm", {"text": "entropy rose"}),
    Row(1, "alarm", {"text": "entropy rose", "again": True}),
    Row(1, "propose", {"tried": ["EATA"]}),
    Row(2, "window", {"served": "EATA", "ms": 2.5, "entropy": 0.25, "labels": 10, "right": 9, "frozen_right": 4}),
    Row(2, "commit", {"from": "source", "to": "EATA", "why": "better"}, "c1"),
    Row(3, "snapshot", {"at": 3, "served": "EATA", "breach": {"capital": 2.5}}, "s1"),
]
NAME, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|[+-]Inf)")


def lived(folder: Path, rows=LIFE) -> Path:
    with Store(folder) as store:
        store.write(rows)
    return folder


def parsed(text: str) -> dict[tuple[str, frozenset[str]], float]:
    """The samples, after a check of the grammar: HELP and TYPE once and before their samples, which lie together."""
    assert text.endswith("\n")
    kinds, found, now = {}, {}, ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            now = line.split(" ")[2]
            assert now not in kinds and len(line.split(" ", 3)[3]) > 5
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == now and kind in ("gauge", "counter") and (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            key = (name, frozenset(re.findall(LABEL, labels)))
            assert name == now and key not in found
            found[key] = float(value)
    return found


def of(text: str, store: Path, name: str, **labels: str) -> float:
    said = {f'{key}="{value}"' for key, value in {"store": str(store), **labels}.items()}
    return parsed(text)[(f"homeostat_{name}", frozenset(said))]


def test_the_text_says_how_a_store_stands(tmp_path):
    store = lived(tmp_path / "one")
    text = prometheus(store)
    for name, value in {
        "up": 1, "windows_total": 3, "alarms_total": 1, "commits_total": 1, "rollbacks_total": 0, "serving": 0,
        "trials_unchanged_total": 0, "served_since_window": 3, "last_alarm_window": 1, "accuracy_before_ratio": 0.875,
        "breach_capital": 2.5, "window_entropy_nats": 0.25, "window_seconds": 0.0025, "recent_labels": 20,
        "journal_rows": 9,
    }.items():  # fmt: skip
        assert of(text, store, name) == value, name
    assert of(text, store, "served_info", served="EATA", checkpoint="c1") == 1
    assert [of(text, store, "phase", phase=phase) for phase in ("new", "watch", "trial")] == [0, 1, 0]
    assert of(text, store, "recent_accuracy_ratio", model="served") == 0.7
    assert of(text, store, "recent_accuracy_ratio", model="deployed") == 0.45
    assert abs(of(text, store, "written_timestamp_seconds") - (store / "journal.sqlite").stat().st_mtime) < 60
    assert of(text, store, "journal_bytes") > 0


def test_what_is_not_known_is_left_out(tmp_path):
    store = lived(tmp_path / "new", LIFE[:1])
    text = prometheus(store)
    assert of(text, store, "windows_total") == 0
    for name in ("recent_accuracy_ratio", "stream_windows", "last_alarm_window", "window_seconds", "breach_capital"):
        assert name not in text


def test_one_that_is_gone_does_not_hide_the_others(tmp_path):
    store, gone = lived(tmp_path / "one"), tmp_path / "gone"
    text = prometheus(store, gone)
    assert of(text, store, "up") == 1 and of(text, gone, "up") == 0
    assert len([key for key in parsed(text) if any(str(gone) in label for label in key[1])]) == 1


def test_names_of_all_kinds_are_escaped(tmp_path):
    store = lived(tmp_path / 'a "b" \\ c\nd')
    text = prometheus(store)
    assert 'a \\"b\\" \\\\ c\\nd"' in text and parsed(text)


def test_the_librarys_own_parser_reads_the_same(tmp_path):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    stores = [lived(tmp_path / 'a "b" \\ c\nd'), lived(tmp_path / "one"), tmp_path / "gone"]
    text = prometheus(*stores)
    families = list(parser.text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    assert len(samples) == len(parsed(text)) and {f.type for f in families} == {"gauge", "counter"}
    assert {sample.labels["store"] for sample in samples} == {str(store) for store in stores}
    windows = [s.value for s in samples if s.name == "homeostat_windows_total"]
    assert windows == [3.0, 3.0] and all(family.documentation for family in families)


def test_the_endpoint_gives_what_is_in_the_store_now(tmp_path):
    store = lived(tmp_path / "one", LIFE[:3])
    with endpoint(store, port=0) as address:
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert of(answer.read().decode(), store, "commits_total") == 0
        lived(store)
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert of(answer.read().decode(), store, "commits_total") == 1
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address.replace("/metrics", "/etc"), timeout=10)
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(InputError, match="cannot be listened on"), endpoint(store, port=port):
            pass
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=2)


def test_no_store_and_one_named_twice_are_refused(tmp_path):
    with pytest.raises(InputError, match="got none"):
        prometheus()
    with pytest.raises(InputError, match="each once"):
        prometheus(tmp_path, os.fspath(tmp_path))
