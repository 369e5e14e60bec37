"""The trace against the Trace Event Format's own rules."""

import json
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.devices.trace import Trace
from vicort.runtime.errors import ConfigError

SPANS = st.lists(
    st.tuples(
        st.sampled_from(["vision", "prefill", "answer"]), st.integers(0, 50), st.integers(0, 20)
    ),
    max_size=40,
)


def written(trace: Trace, path: Path) -> tuple[list[dict], dict[int, str]]:
    """The spans of a written trace, and the name of each row."""
    trace.write(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    return [event for event in events if event["ph"] == "X"], names


def test_spans_become_complete_events_in_microseconds(tmp_path: Path) -> None:
    trace = Trace()
    trace.span("prefill", "chunk 0", 5_000_500, 5_002_000, chunk=0, frames=16)
    trace.span("vision", "chunk 1", 5_000_000, 5_001_000)
    spans, names = written(trace, tmp_path / "trace.json")
    assert [
        (names[span["tid"]], span["name"], span["ts"], span["dur"], span["args"]) for span in spans
    ] == [
        ("vision", "chunk 1", 0.0, 1.0, {}),
        ("prefill", "chunk 0", 0.5, 1.5, {"chunk": 0, "frames": 16}),
    ]
    assert not (tmp_path / "trace.json.part").exists()


@given(SPANS)
def test_nothing_is_lost_and_no_row_overlaps(
    tmp_path_factory: pytest.TempPathFactory, given_spans: list[tuple[str, int, int]]
) -> None:
    trace = Trace()
    for number, (track, start, length) in enumerate(given_spans):
        trace.span(track, str(number), start * 1000, (start + length) * 1000)
    spans, names = written(trace, tmp_path_factory.mktemp("trace") / "trace.json")
    origin = min((start for _, start, _ in given_spans), default=0)
    seen = {
        int(span["name"]): (names[span["tid"]].split()[0], span["ts"] + origin, span["dur"])
        for span in spans
    }
    assert seen == dict(enumerate(given_spans))
    for row in names:
        mine = sorted(
            (span["ts"], span["ts"] + span["dur"]) for span in spans if span["tid"] == row
        )
        assert all(before[1] <= after[0] for before, after in pairwise(mine))


def test_threads_may_write_at_once_and_the_latest_are_kept(tmp_path: Path) -> None:
    trace = Trace(spans=500)

    def record(track: str) -> None:
        for i in range(400):
            trace.span(track, str(i), i, i + 1)

    threads = [threading.Thread(target=record, args=(f"track{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trace.kept == len(written(trace, tmp_path / "trace.json")[0]) == 500


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--trace .* cannot be written"):
        Trace().write(tmp_path / "none" / "trace.json")
