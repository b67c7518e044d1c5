"""The journal on SQLite and on PostgreSQL: one class of promises, kept by both."""

from __future__ import annotations

import itertools
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from homeostat.core.errors import StoreError
from homeostat.loop import journal
from homeostat.loop.store import SWITCHES, Row, Store

POSTGRES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("postgres.py"))))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    if why := POSTGRES.hindrance():
        pytest.skip(why)
    made = POSTGRES.Postgres()
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.sqlite'}"
        return
    cluster = request.getfixturevalue("cluster")
    administrator = sa.create_engine(cluster.url(), isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(sa.text("DROP DATABASE IF EXISTS one WITH (FORCE)"))
        connection.execute(sa.text("CREATE DATABASE one"))
    administrator.dispose()
    yield cluster.url("one")


@pytest.fixture
def store(url, tmp_path) -> Iterator[Store]:
    with Store(tmp_path / "store", url) as made:
        yield made


@pytest.fixture
def change(url) -> Iterator[Callable[[str], None]]:
    """Runs SQL on the database, from outside."""
    engine = sa.create_engine(url)

    def changed(sql: str) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text(sql))

    yield changed
    engine.dispose()


def short(rows) -> list[tuple[int, str]]:
    return [(row.step, row.kind) for row in rows]


class TestState:
    def test_rows_come_back_as_they_were_in_order_of_step_then_of_writing(self, store):
        content = {"text": "é ∑ ' \" \\ \x00 %s :x", "numbers": [1, -2.5e-300, None, True], "deep": {"a": {}}}
        store.write([Row(2**40, "window", content), Row(0, "start", {}, "f" * 64)])
        store.write([Row(1, "window"), Row(0, "alarm"), Row(0, "propose")])
        assert short(store.rows()) == [
            (0, "start"), (0, "alarm"), (0, "propose"), (1, "window"), (2**40, "window"),
        ]  # fmt: skip
        first, last = store.last("start"), store.last()
        assert first.checkpoint == "f" * 64 and first.time > 1e9 and first.content == {}
        assert last.content == content and last.checkpoint is None
        assert store.last("commit") is None and store.last("commit", "alarm").kind == "alarm"

    def test_a_repeated_row_is_written_once_and_another_of_the_same_window_is_kept(self, store):
        store.write([Row(3, "window", {"entropy": 0.2, "ms": 4.1}), Row(3, "window", {"entropy": 0.2, "ms": 9.7e-5})])
        store.write([Row(3, "window", {"entropy": 0.2, "ms": 5.0}), Row(3, "window", {"entropy": 0.3, "ms": 4.1})])
        assert [row.content["entropy"] for row in store.rows()] == [0.2, 0.3]

    def test_rows_of_one_call_are_written_together_or_not_at_all(self, store):
        with pytest.raises(ValueError, match="JSON"):
            store.write([Row(0, "start"), Row(1, "window", {"entropy": float("nan")})])
        nameless = Row(1, "window")
        nameless.kind = None
        with pytest.raises(StoreError, match="cannot be written"):
            store.write([Row(0, "start"), nameless])
        assert list(store.rows()) == []
        store.write([Row(0, "start")])
        assert short(store.rows()) == [(0, "start")]

    def test_what_was_written_is_there_after_closing(self, url, tmp_path):
        for step in range(3):
            with Store(tmp_path / "store", url) as store:
                assert short(store.rows()) == [(before, "window") for before in range(step)]
                store.write([Row(step, "window")])

    def test_stores_that_share_a_database_do_not_see_each_other(self, url, tmp_path):
        with Store(tmp_path / "a", url) as a, Store(tmp_path / "b", url) as b:
            assert a.identity != b.identity and a.identity == (tmp_path / "a" / "identity").read_text()
            for step in range(4):
                a.write([Row(step, "window", {"of": "a"})])
                b.write([Row(step, "window", {"of": "b"}), Row(step, "snapshot", {}, "b")])
            a.write([Row(0, "window", {"of": "b"})])
            assert short(a.rows()) == [(0, "window"), (0, "window"), (1, "window"), (2, "window"), (3, "window")]
            assert len(list(b.rows())) == 8 and {row.content["of"] for row in b.rows("window")} == {"b"}
            assert a.last("snapshot") is None and b.last("snapshot").step == 3
            (tmp_path / "a" / "checkpoints" / "b").mkdir()
            assert a.collect([]) == 1

    def test_a_folder_is_refused_with_a_database_that_does_not_know_it(self, url, tmp_path):
        with Store(tmp_path / "a", url) as store:
            store.write([Row(0, "start")])
        with pytest.raises(StoreError, match="not in this database"):
            Store(tmp_path / "a")
        with pytest.raises(StoreError, match="not in this database"):
            Store(tmp_path / "a", f"sqlite:///{tmp_path / 'other.sqlite'}")
        with Store(tmp_path / "a", url) as store:
            assert short(store.rows()) == [(0, "start")]

    def test_rows_are_read_page_by_page_and_no_row_is_missed_or_doubled(self, store, monkeypatch):
        monkeypatch.setattr(journal, "PAGE", 5)
        chance = random.Random(0)
        made = [Row(chance.randrange(6), chance.choice(["a", "b", "c"]), {"n": n}) for n in range(83)]
        for low in range(0, 83, 9):
            store.write(made[low : low + 9])
        ordered = sorted(made, key=lambda row: row.step)
        assert [row.content["n"] for row in store.rows()] == [row.content["n"] for row in ordered]
        for kinds in (("a",), ("b", "c"), ("c", "b", "a"), ("a", "a"), ("none",)):
            expected = [row.content["n"] for row in ordered if row.kind in kinds]
            assert [row.content["n"] for row in store.rows(*kinds)] == expected
            newest = store.journal.newest(7, *kinds)
            assert [row.content["n"] for row in newest] == expected[::-1][:7]

    def test_rows_are_not_held_in_memory_together(self, store, monkeypatch):
        monkeypatch.setattr(journal, "PAGE", 10)
        store.write([Row(step, "window") for step in range(500)])
        asked = []
        sa.event.listen(store.journal.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        stream = store.rows()
        assert [row.step for row in itertools.islice(stream, 25)] == list(range(25)) and len(asked) == 3
        store.write([Row(500, "window")])  # in the middle of reading
        assert [row.step for row in stream] == list(range(25, 501))

    def test_no_query_walks_the_whole_journal(self, store, change):
        """However many rows there are, the newest ones and those of one step are found by an index."""
        store.write([Row(step, "window" if step % 50 else "snapshot", {}, "c") for step in range(3000)])
        asked = []
        sa.event.listen(store.journal.engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
        assert store.last().step == 2999 and store.last(*SWITCHES) is None and next(store.rows("snapshot")).step == 0
        store.write([Row(1500, "more")])
        store.collect([], 3)
        reads = [query for query in asked if query[0].startswith("SELECT")]
        assert len(reads) >= 10
        with store.journal.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("ANALYZE journal")
            for text, values in reads:
                explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
                plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + text, values))
                assert "journal_by_" in plan and "SCAN journal" not in plan and "Seq Scan" not in plan, plan

    @pytest.mark.parametrize(
        "damage",
        ["content = '{'", "content = ''", "content = '{\"a\": 2}'", "checkpoint = 'x'", "kind = 'commit'", "step = 9"],
    )
    def test_a_corrupt_row_is_our_error_that_names_it_and_the_others_are_read(self, store, change, damage):
        store.write([Row(0, "start"), Row(1, "window", {"a": 1}, "c"), Row(2, "snapshot")])
        change(f"UPDATE journal SET {damage} WHERE step = 1")
        assert short(store.rows("start", "snapshot")) == [(0, "start"), (2, "snapshot")]
        with pytest.raises(StoreError, match=r"row \d+ .* is corrupt"):
            list(store.rows())
        store.write([Row(3, "window")])
        undone = "step = 1, kind = 'window', checkpoint = 'c', content = '{\"a\": 1}'"
        change(f"UPDATE journal SET {undone} WHERE step = 9 OR step = 1")
        assert short(store.rows()) == [(0, "start"), (1, "window"), (2, "snapshot"), (3, "window")]

    def test_a_corrupt_switch_keeps_its_checkpoint_from_being_collected(self, store, change):
        folder = store.path / "checkpoints" / "served"
        folder.mkdir()
        store.write([Row(0, "start", {}, "served")])
        change("UPDATE journal SET checkpoint = 'else'")
        for switches in (None, 0, 5):
            with pytest.raises(StoreError, match="is corrupt"):
                store.collect([], switches)
        assert folder.exists()

    def test_a_table_that_is_gone_is_our_error_until_it_is_back(self, store, change):
        store.write([Row(0, "start")])
        change("ALTER TABLE journal RENAME TO elsewhere")
        with pytest.raises(StoreError, match="cannot be read"):
            list(store.rows())
        with pytest.raises(StoreError, match="cannot be written"):
            store.write([Row(1, "window")])
        change("ALTER TABLE elsewhere RENAME TO journal")
        store.write([Row(1, "window")])
        assert short(store.rows()) == [(0, "start"), (1, "window")]

    def test_a_journal_of_another_make_is_refused_and_left_alone(self, url, change, tmp_path):
        change("CREATE TABLE journal (number INTEGER PRIMARY KEY, step INTEGER, content TEXT)")
        change("INSERT INTO journal VALUES (1, 2, 'theirs')")
        with pytest.raises(StoreError, match="cannot be opened"):
            Store(tmp_path / "store", url)
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT * FROM journal")).all() == [(1, 2, "theirs")]
        engine.dispose()

    def test_a_loop_keeps_the_same_journal_and_resumes_from_it(self, problem, url, tmp_path):
        stream = problem.stream([(problem.CLEAN, 3), (problem.DARK, 7)])
        with problem.loop(tmp_path / "own", problem.net) as loop:
            loop.run(stream, labels=25)
            expected = problem.told(loop)
        assert "commit" in {row[1] for row in expected}
        first = problem.loop(Store(tmp_path / "shared", url), problem.net)
        for batch in itertools.islice(stream.batches(problem.WINDOW), 2):
            first.step(batch.replace(y=None))
        first.store.close()  # what waits in memory is not written
        with pytest.raises(StoreError, match="is closed"):
            first.flush()
        with problem.loop(Store(tmp_path / "shared", url), problem.net) as loop:
            loop.run(stream, labels=25)
            assert problem.told(loop) == expected

    def test_a_run_that_is_killed_again_and_again_loses_nothing(self, url, tmp_path):
        told = killed(tmp_path, 12, url)
        assert told["kills"] == 12 and told["faults"] == {} and told["lives"] >= 1


def killed(folder: Path, kills: int, url: str = "") -> dict:
    """What `killed.py` found."""
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), str(kills), "3", url]
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class TestPostgres:
    """What only a server can do."""

    def test_a_store_is_served_from_one_machine_at_a_time(self, cluster, tmp_path):
        with Store(tmp_path / "here", cluster.url()) as store:
            store.write([Row(0, "start")])
            shutil.copytree(tmp_path / "here", tmp_path / "there")  # another machine has a lock file of its own
            with pytest.raises(StoreError, match=rf"another process \(homeostat pid {os.getpid()} on .*\) serves"):
                Store(tmp_path / "there", cluster.url())
        with Store(tmp_path / "there", cluster.url()) as store:
            assert short(store.rows()) == [(0, "start")]
            with pytest.raises(StoreError, match="another process"):
                Store(tmp_path / "here", cluster.url())

    def test_a_lost_connection_is_one_error_and_then_all_is_as_before(self, cluster, tmp_path, caplog):
        with Store(tmp_path, cluster.url()) as store:
            store.write([Row(0, "start")])
            engine = sa.create_engine(cluster.url(), isolation_level="AUTOCOMMIT")
            ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'hom%'"
            for step, again in enumerate((store.rows, store.last, lambda: store.write([Row(9, "window")])), 1):
                with engine.connect() as connection:
                    assert connection.execute(sa.text(ended)).all() == [(True,)]
                with pytest.raises(StoreError, match="cannot be written"):
                    store.write([Row(step, "window")])
                again()
                store.write([Row(step, "window")])
                assert short(store.rows("window"))[step - 1] == (step, "window")
            engine.dispose()
        assert caplog.records == [], "SQLAlchemy is not heard"

    def test_a_server_that_goes_and_comes_back_loses_nothing_that_was_acknowledged(self, cluster, tmp_path):
        with Store(tmp_path, cluster.url()) as store:
            store.write([Row(0, "start")])
            cluster.stop()
            try:
                for _ in range(2):
                    with pytest.raises(StoreError, match="cannot be written"):
                        store.write([Row(1, "window")])
                    with pytest.raises(StoreError, match="cannot be read"):
                        list(store.rows())
                with pytest.raises(StoreError, match="cannot be opened"):
                    Store(tmp_path.with_name("second"), cluster.url())
            finally:
                cluster.start()
            store.write([Row(1, "window")])
            assert short(store.rows()) == [(0, "start"), (1, "window")]

    def test_who_lost_the_connection_and_finds_another_serving_is_refused(self, cluster, tmp_path):
        with Store(tmp_path / "here", cluster.url()) as store:
            store.write([Row(0, "start")])
            shutil.copytree(tmp_path / "here", tmp_path / "there")
            cluster.stop()
            cluster.start()
            with Store(tmp_path / "there", cluster.url()) as second:
                with pytest.raises(StoreError):
                    store.write([Row(1, "window", {"of": "first"})])
                with pytest.raises(StoreError, match="another process"):
                    store.write([Row(1, "window", {"of": "first"})])
                second.write([Row(1, "window", {"of": "second"})])
            assert [row.content for row in store.rows("window")] == [{"of": "second"}]

    def test_stores_that_begin_at_once_in_an_empty_database_all_begin(self, cluster, tmp_path):
        administrator = sa.create_engine(cluster.url(), isolation_level="AUTOCOMMIT")
        with administrator.connect() as connection:
            connection.execute(sa.text("CREATE DATABASE fresh"))
        administrator.dispose()
        failed, gate = [], threading.Barrier(6)

        def begin(name: str) -> None:
            gate.wait()
            try:
                with Store(tmp_path / name, cluster.url("fresh")) as store:
                    store.write([Row(0, "start")])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=begin, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
