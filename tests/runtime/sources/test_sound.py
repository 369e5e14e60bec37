"""The sound of a file: the same packets, at the same times, through a process of its own too."""

from fractions import Fraction
from pathlib import Path

import av
import pytest
from support import videos

from vicort.runtime.errors import SourceError
from vicort.runtime.sources.opening import open_sound
from vicort.runtime.sources.sound import AHEAD


def heard(
    path: Path | str, *, isolate: bool
) -> tuple[str, list[tuple[Fraction, bytes]], list[str]]:
    """The codec, each packet with its time in seconds, and the warnings."""
    warnings: list[str] = []
    sound = open_sound(str(path), warn=warnings.append, isolate=isolate)
    assert sound
    packets = [(packet.pts * packet.time_base, bytes(packet)) for packet in sound.packets]
    codec = sound.codec
    sound.close()
    return codec, packets, warnings


def stored(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(track)
            if packet.size
        ]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le")]
)
def test_packets_and_times_are_those_of_the_file(tmp_path, name, codec, isolate):
    path = tmp_path / name
    videos.write_talking_video(path, sound=codec)
    found, packets, warnings = heard(path, isolate=isolate)
    assert found == codec.removeprefix("lib")
    assert packets == stored(path)
    assert warnings == []


@pytest.mark.parametrize("isolate", [True, False])
def test_times_count_from_the_start_of_the_container(tmp_path, isolate):
    path = tmp_path / "a.ts"
    videos.write_talking_video(path, start=5)
    with av.open(str(path)) as container:
        start = Fraction(container.start_time, av.time_base)
    assert start > 4
    _, packets, _ = heard(path, isolate=isolate)
    expected = [time - start for time, _ in stored(path)]
    assert all(
        abs(a - b) < Fraction(1, 10_000) for (a, _), b in zip(packets, expected, strict=True)
    )


@pytest.mark.parametrize("isolate", [True, False])
def test_a_source_without_sound_has_none(tmp_path, isolate):
    path = tmp_path / "silent.mp4"
    videos.write_video(path, 5)
    warnings: list[str] = []
    assert open_sound(str(path), warn=warnings.append, isolate=isolate) is None
    for other in ("testsrc:seconds=1", ("a.png", "b.png")):
        assert open_sound(other, warn=warnings.append, isolate=isolate) is None
    assert warnings == []


@pytest.mark.parametrize("isolate", [True, False])
def test_sound_whose_timestamps_jump_ends_there_with_a_warning(tmp_path, isolate):
    path = tmp_path / "jump.mkv"
    videos.write_talking_video(tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(path), "w") as output:
        tracks = {each: output.add_stream_from_template(each) for each in source.streams}
        for packet in source.demux():
            if packet.size:
                late = packet.stream.type == "audio" and packet.pts * packet.time_base > 1
                packet.pts += round(2 * AHEAD / packet.time_base) if late else 0
                packet.dts = packet.pts if late else packet.dts
                packet.stream = tracks[packet.stream]
                output.mux(packet)
    _, packets, warnings = heard(path, isolate=isolate)
    assert packets[-1][0] <= 1
    (line,) = warnings
    assert "timestamps of its sound jump" in line


def test_a_file_that_cannot_be_read_is_a_warning(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video at all" * 100)
    warnings: list[str] = []
    assert open_sound(str(path), warn=warnings.append) is None
    (line,) = warnings
    assert "its sound is left out" in line
    with pytest.raises(SourceError):
        open_sound(str(path), warn=warnings.append, isolate=False)


def test_a_caller_that_stops_early_does_not_wait_for_the_rest(tmp_path):
    path = tmp_path / "long.mkv"
    videos.write_talking_video(path, 60, sound="pcm_s16le")  # more than a pipe takes
    sound = open_sound(str(path), warn=lambda line: None)
    assert sound
    next(sound.packets)
    sound.close()
