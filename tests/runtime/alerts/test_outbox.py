"""What waits: in order, within its budget, and on the disk."""

import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.alert_messages import Said, message
from support.sizes import examples

from vicort.runtime.alerts.outbox import OVERHEAD, Outbox
from vicort.runtime.alerts.spool import Spool

SYNCED_AT_ONCE = Path("/dev/shm")
TARGETS = ("a", "b", "c")
LABELS = {name: f"label {name}" for name in TARGETS}


def opened(folder, budget=1 << 20, labels=LABELS, warn=None):
    warn = Said() if warn is None else warn
    spool = Spool(Path(folder, "spool"), warn)
    return Outbox(spool, labels, budget, warn), spool


def keys(outbox, target):
    """Of all that waits for a target, which is taken out."""
    found = []
    while waiting := outbox.first(target):
        found.append(outbox.content(waiting).key)
        outbox.done(target, waiting)
    return found


class Model:
    """The same by its rule: lists of keys and sizes."""

    def __init__(self, budget):
        self.budget = budget
        self.waiting = {name: [] for name in TARGETS}
        self.held = dict.fromkeys(TARGETS)
        self.dropped = dict.fromkeys(TARGETS, 0)

    def of(self, name):
        return sum(OVERHEAD + size for _, size in self.waiting[name])

    def total(self, kept=lambda name, each: True):
        """The content of each message counts once, whatever the number of its targets."""
        rows = [(n, each) for n in TARGETS for each in self.waiting[n] if kept(n, each)]
        return OVERHEAD * len(rows) + sum(size for _, size in {each for _, each in rows})

    def add(self, key, sizes, targets):
        """sizes: with the picture and without it."""
        held = self.total(lambda name, each: each[0] == self.held[name])
        rows = OVERHEAD * len(targets)
        size = next((each for each in sizes if held + rows + each <= self.budget), None)
        if size is None:
            for name in targets:
                self.dropped[name] += 1
            return None
        while targets and self.total() + rows + size > self.budget:
            free = {n: [k for k in self.waiting[n] if k[0] != self.held[n]] for n in TARGETS}
            most = max((n for n in TARGETS if free[n]), key=self.of)
            self.waiting[most].remove(free[most][0])
            self.dropped[most] += 1
        for name in targets:
            self.waiting[name].append((key, size))
        return size


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.integers(0, 2000), st.lists(st.sampled_from(TARGETS), unique=True)
        ),
        st.tuples(st.sampled_from(["hold", "deliver"]), st.sampled_from(TARGETS)),
        st.tuples(st.just("restart")),
    ),
    max_size=25,
)


@settings(max_examples=examples(40))
@given(STEPS, st.integers(1500, 6000))
def test_what_waits_is_what_the_rule_says_also_after_restarts(steps, budget):
    place = SYNCED_AT_ONCE if SYNCED_AT_ONCE.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        outbox, spool = opened(folder, budget)
        model = Model(budget)
        for number, (what, *rest) in enumerate(steps):
            if what == "add":
                one = message(number, bytes(rest[0]))
                body = len(f'{{"n": {number}}}')
                bare = len(f'{{"n": {number}, "picture_omitted": true}}')
                outbox.add(one, rest[1])
                model.add(one.key, (body + rest[0], bare) if rest[0] else (body,), rest[1])
            elif what == "restart":
                outbox.close()
                outbox, spool = opened(folder, budget)
                model.held = dict.fromkeys(TARGETS)
                model.dropped = dict.fromkeys(TARGETS, 0)
            else:
                (name,) = rest
                first = outbox.first(name)
                assert (first is None) == (not model.waiting[name])
                if first:
                    model.held[name] = model.waiting[name][0][0]
                    assert outbox.content(first).key == model.held[name]
                    if what == "deliver":
                        outbox.done(name, first)
                        model.waiting[name].pop(0)
            assert outbox.state()["bytes"] == model.total() <= budget
            counts = {name: outbox.counts(name)[1] for name in TARGETS}
            assert counts == model.dropped
            # nothing that is gone stays on the disk
            written = Counter(row.target for row in spool.waiting())
            assert written == Counter({n: len(each) for n, each in model.waiting.items() if each})
        outbox.close()
        outbox, spool = opened(folder, budget)
        left = {name: keys(outbox, name) for name in TARGETS}
        assert left == {name: [key for key, _ in model.waiting[name]] for name in TARGETS}
        assert spool._connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        outbox.close()


def test_a_message_that_cannot_fit_drops_nothing_else(folder):
    warn = Said()
    outbox, _ = opened(folder, 100_000, warn=warn)
    for number in range(20):
        outbox.add(message(number), ["a"])
    outbox.add(message(20, text="x" * 100_000), ["a", "b"])
    outbox.add(message(21, bytes(100_000)), ["a", "b"])
    assert outbox.counts("a")[:2] == (21, 1)
    assert ["dropped 1 of the messages, as they are too large" in line for line in warn] == [
        True,
        False,
    ]
    assert "left out 1 of the pictures, as they are too large" in warn[1]
    first = outbox.content(outbox.first("b"))
    assert (first.key, first.picture) == ("key-21", None)
    assert first.document()["picture_omitted"] is True
    assert keys(outbox, "a") == [f"key-{number}" for number in (*range(20), 21)]
    outbox.close()


def test_the_picture_of_a_message_counts_once_for_all_its_targets(folder):
    outbox, _ = opened(folder, 100_000)
    for number in range(20):
        outbox.add(message(number), ["a"])
    outbox.add(message(20, bytes(60_000)), ["a", "b", "c"])
    assert outbox.counts("a")[:2] == (21, 0)
    outbox.close()
    outbox, _ = opened(folder, 100_000)
    used = outbox.state()["bytes"]
    assert 60_000 < used < 80_000
    assert len(keys(outbox, "a")) == 21
    outbox.done("b", outbox.first("b"))
    assert 60_000 < outbox.state()["bytes"] < 62_000
    outbox.done("c", outbox.first("c"))
    assert outbox.state()["bytes"] == 0
    outbox.close()


def test_a_message_comes_back_as_it_was(folder):
    outbox, _ = opened(folder)
    sent = message(1, bytes(range(256)), "cleared", text="ä\n\ud800", deep={"a": [1.5, None]})
    outbox.add(sent, ["a"])
    outbox.close()
    outbox, _ = opened(folder)
    assert outbox.content(outbox.first("a")) == sent
    outbox.close()


def test_overflow_is_said_once_a_minute(folder):
    warn = Said()
    outbox, _ = opened(folder, 2000, warn=warn)
    for number in range(50):
        outbox.add(message(number), ["a"])
    assert outbox.counts("a") == (3, 47, 0)
    (line,) = warn
    assert line.startswith("label a: dropped 1 of the messages that waited")
    assert keys(outbox, "a") == ["key-47", "key-48", "key-49"]
    outbox.close()


def test_who_takes_a_warning_may_wait_for_another_thread_that_adds(folder):
    def warn(line):
        if line.startswith("label a: dropped"):
            other = Thread(target=outbox.add, args=(message(99), ["b"]))
            other.start()
            other.join(10)
            assert not other.is_alive()
            waited.append(line)

    waited = []
    outbox, _ = opened(folder, 2000, warn=warn)
    for number in range(10):
        outbox.add(message(number), ["a"])
    assert len(waited) == 1
    outbox.close()


def test_a_target_that_is_away_pushes_out_nothing_of_others(folder):
    outbox, _ = opened(folder, 20 * OVERHEAD)
    outbox.add(message(0), ["b"])
    for number in range(1, 100):
        outbox.add(message(number), ["a"])
    assert keys(outbox, "b") == ["key-0"]
    outbox.close()


def test_what_is_being_tried_is_not_dropped(folder):
    outbox, _ = opened(folder, 2 * OVERHEAD)
    outbox.add(message(0), ["a"])
    assert outbox.first("a")
    outbox.add(message(1, bytes(OVERHEAD)), ["a"])
    outbox.add(message(2, bytes(OVERHEAD)), ["b"])
    assert [outbox.counts(name)[:2] for name in "ab"] == [(1, 1), (0, 1)]
    assert keys(outbox, "a") == ["key-0"]
    outbox.close()


def test_messages_for_targets_that_are_not_named_any_more_stay_while_there_is_room(folder):
    outbox, _ = opened(folder)
    outbox.add(message(0), ["a"])
    outbox.close()
    warn = Said()
    outbox, _ = opened(folder, labels={"b": "label b"}, warn=warn)
    assert outbox.state()["of_other_targets"] == 1
    assert "1 of the messages in the spool wait for targets that are not named" in warn[0]
    outbox.close()
    outbox, _ = opened(folder, 2 * OVERHEAD, labels={"b": "label b"}, warn=warn)
    outbox.add(message(1), ["b"])
    assert outbox.state()["of_other_targets"] == 0
    assert keys(outbox, "b") == ["key-1"]
    outbox.close()


def fill(spool):
    """As if the disk were full from now on."""
    spool._connection.execute("PRAGMA max_page_count = 1")


def test_a_full_disk_is_said_and_loses_nothing(folder):
    warn = Said()
    outbox, spool = opened(folder, warn=warn)
    outbox.add(message(0), ["a"])
    fill(spool)
    for number in range(1, 4):
        outbox.add(message(number, bytes(100_000)), ["a", "b"])
    state = outbox.state()
    assert (state["in_memory_only"], state["trouble"]) == (6, "database or disk is full")
    assert ["kept in memory alone" in line for line in warn] == [True]
    first = outbox.first("a")
    assert outbox.content(first).key == "key-0"
    outbox.done("a", first)
    first = outbox.first("a")
    assert outbox.content(first).key == "key-1"
    outbox.done("a", first)
    spool._connection.execute("PRAGMA max_page_count = 100000")
    outbox.add(message(4), ["a"])
    assert (outbox.state()["in_memory_only"], outbox.state()["trouble"]) == (0, None)
    outbox.close()
    outbox, _ = opened(folder)
    assert keys(outbox, "a") == ["key-2", "key-3", "key-4"]
    assert keys(outbox, "b") == ["key-1", "key-2", "key-3"]
    outbox.close()


def test_a_disk_that_was_full_for_long_holds_up_no_sender_afterwards(folder):
    """What is in memory is written a little at a time, in order."""
    outbox, spool = opened(folder)
    fill(spool)
    for number in range(30):
        outbox.add(message(number, bytes(5000)), ["a"])
    spool._connection.execute("PRAGMA max_page_count = 100000")
    outbox.add(message(30), ["a"])
    assert outbox.state()["in_memory_only"] == 31 - 8
    outbox.tidy()
    assert outbox.state()["in_memory_only"] == 0
    outbox.close()
    outbox, _ = opened(folder)
    assert keys(outbox, "a") == [f"key-{number}" for number in range(31)]
    outbox.close()


def test_what_a_full_disk_leaves_in_memory_stays_within_the_budget(folder):
    outbox, spool = opened(folder, 400_000)
    fill(spool)
    for number in range(10):
        outbox.add(message(number, bytes(90_000)), ["a"])
    assert outbox.counts("a")[:2] == (4, 6)
    outbox.close()


def test_the_end_says_what_is_lost_where_the_disk_stays_full(folder):
    warn = Said()
    outbox, spool = opened(folder, warn=warn)
    fill(spool)
    outbox.add(message(0, bytes(100_000)), ["a"])
    outbox.close()
    assert warn[-1].startswith("messages that are lost")
    assert warn[-1].endswith(": 1")


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_spool_is_set_aside_and_a_new_one_is_used(folder, damage):
    outbox, _ = opened(folder)
    for number in range(20):
        outbox.add(message(number, bytes(5000)), ["a"])
    outbox.close()
    path = folder / "spool"
    content = bytearray(path.read_bytes())
    if damage == "text":
        content = bytearray(b"this is no database\n" * 100)
    else:
        start = 16 if damage == "header" else 4096
        content[start : start + 8192] = b"\xa5" * 8192
    path.write_bytes(content)
    warn = Said()
    outbox, _ = opened(folder, warn=warn)
    (line,) = warn
    assert "is damaged" in line
    (aside,) = folder.glob("spool.damaged-*Z")
    assert aside.read_bytes() == content
    outbox.add(message(1), ["a"])
    assert keys(outbox, "a") == ["key-1"]
    outbox.close()


@pytest.mark.parametrize("body", ["'{'", "CAST(x'ff' AS TEXT)"])
def test_a_row_whose_content_is_gone_is_skipped(folder, body):
    outbox, spool = opened(folder)
    outbox.add(message(0), ["a"])
    outbox.add(message(1), ["a"])
    spool._connection.execute(f"UPDATE messages SET body = {body} WHERE id = 1")
    first = outbox.first("a")
    assert outbox.content(first) is None
    outbox.done("a", first, lost=True)
    assert keys(outbox, "a") == ["key-1"]
    assert outbox.counts("a") == (0, 0, 1)
    outbox.close()


def test_a_database_of_another_program_is_left_alone(folder):
    with sqlite3.connect(folder / "spool") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = (folder / "spool").read_bytes()
    with pytest.raises(Exception, match="is a database of another program"):
        opened(folder)
    assert (folder / "spool").read_bytes() == before


def test_only_its_owner_may_read_it(folder):
    outbox, _ = opened(folder)
    outbox.add(message(0), ["a"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(["spool", "spool-wal", "spool-shm", "spool.lock"], 0o600)
    outbox.close()


def test_the_log_of_writes_is_copied_before_it_is_large(folder):
    outbox, _ = opened(folder, 1 << 30)
    for number in range(40):
        outbox.add(message(number, bytes(200_000)), ["a"])
        outbox.done("a", outbox.first("a"))
    assert (folder / "spool-wal").stat().st_size < 6 << 20
    assert (folder / "spool").stat().st_size < 2 << 20
    outbox.close()
