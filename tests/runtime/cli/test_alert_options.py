"""The command line of alerts: which sources are read, and what cannot run beside them."""

import pytest

from vicort.runtime.alerts.alert_file import parse_alerts
from vicort.runtime.cli.alert_options import sources_of
from vicort.runtime.cli.arguments import parse_options
from vicort.runtime.errors import ConfigError

TWO = """
streams:
  front: {url: rtsp://front, system: full-history}
  yard: {url: "rtsp://yard", fps: 4, zones: {gate: [[0, 0], [1, 0], [1, 1]]}}
alerts:
  - {name: parcel, streams: [front], question: "is there a parcel?"}
  - {name: gate, streams: [yard], zone: gate, question: "is it open?"}
  - {name: cat, question: "is there a cat?"}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "alerts.yaml"
    path.write_text(TWO)
    return str(path)


@pytest.mark.parametrize(
    ("given", "streams", "sources"),
    [
        ([], ("front", "yard"), ["rtsp://front", "rtsp://yard"]),
        (["clip.mp4"], ("front", "yard"), ["clip.mp4", "clip.mp4"]),
        (["yard=clip.mp4"], ("yard",), ["clip.mp4"]),
        (["yard=b.mp4", "front=rtsp://a?x=y"], ("front", "yard"), ["rtsp://a?x=y", "b.mp4"]),
        (["back=clip.mp4"], ("front", "yard"), ["back=clip.mp4"] * 2),
        (["front=-"], ("front",), ["-"]),
    ],
)
def test_which_streams_run_and_what_they_read(given, streams, sources):
    assert sources_of(parse_alerts(TWO, "a.yaml"), given) == (streams, sources)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["a.mp4", "b.mp4"], "2 sources are given (a.mp4, b.mp4): give one, which every stream"),
        (["front=a.mp4", "b.mp4"], "some sources have the name of a stream, and others not"),
        (["front=a.mp4", "front=b.mp4"], "stream front is given two sources: leave one out"),
        (["front="], "a stream is given an empty source"),
        (["-"], "stdin can be read by one stream, and 2 would read it: name one as STREAM=-"),
    ],
)
def test_sources_that_fit_no_stream(given, line):
    with pytest.raises(ConfigError) as refused:
        sources_of(parse_alerts(TWO, "a.yaml"), given)
    assert str(refused.value).startswith(line)


def test_a_stream_has_its_own_system_and_rate(file):
    options = parse_options(["--alerts", file, "--system", "distinct", "--fps", "1"])
    front, yard = options.of_sources()
    assert [each.chosen_system.name for each in (front, yard)] == ["full-history", "distinct"]
    assert [each.fps for each in (front, yard)] == [1, 4]
    assert options.sessions == 3, "front, yard, and the gate of yard"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--until", "is it?"], "--alerts and --until cannot run together: leave one of them out"),
        (["--every", "2", "is it?"], "--alerts and --every cannot run together"),
        (["--at-changes", "what?"], "--alerts and --at-changes cannot run together"),
        (["--render", "out.mp4"], "--alerts and --render cannot run together"),
        (["--format", "srt"], "--format srt has no alerts: use text or jsonl with --alerts"),
        (["--decode", "gpu"], "--decode gpu keeps pictures in GPU memory"),
    ],
)
def test_what_cannot_run_beside_alerts(file, more, line):
    with pytest.raises(ConfigError) as refused:
        parse_options(["--alerts", file, *more])
    assert str(refused.value).startswith(line)


def test_what_needs_alerts():
    with pytest.raises(ConfigError, match=r"^--deliver sends alerts, and no --alerts FILE"):
        parse_options(["clip.mp4", "--deliver"])
