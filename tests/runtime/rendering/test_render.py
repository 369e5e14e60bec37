"""The written video, decoded again: the pictures and times of the source, notes at their times, the
sound, and no file where something failed."""

import io
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support import videos

from vicort.runtime.core import Answer, Frame, Spoken
from vicort.runtime.errors import SourceError
from vicort.runtime.rendering import video_file
from vicort.runtime.rendering.lettering import Typeface
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.rendering.render import render
from vicort.runtime.rendering.video_file import SOUND, check_encoder
from vicort.runtime.sources import Source, open_source
from vicort.runtime.sources.opening import open_sound

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"
TWO_SECONDS = 50
ANSWER = Answer(
    "q1", Fraction(0), Fraction(0), "what is there now?", "a circle", 1.0, 1, (), 1, 1, None
)


def asked(at, question="what is there now?", text="a red circle", probability=0.9):
    at = Fraction(str(at))
    return replace(ANSWER, at=at, question=question, text=text, probability=probability)


def written(source, path, *events, until=None, warnings=None, progress=lambda frames: None):
    """Render a source as vicort-run does after a run that gave these events."""
    notes = Notes()
    with open_source(source) as first:
        for time in [frame.time for frame in first]:
            if until is None or time <= until:
                notes.frame(time)
    for event in events:
        notes.event(event)
    warn = (lambda line: None) if warnings is None else warnings.append
    with open_source(source) as again:
        return render(
            again,
            open_sound(source, warn=warn),
            notes,
            Typeface(),
            path,
            threads=1,
            warn=warn,
            progress=progress,
        )


def decoded(path):
    """The time of each picture, and the pictures."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return (
            [frame.pts * frame.time_base for frame in frames],
            [frame.to_ndarray(format="rgb24") for frame in frames],
        )


def read_again(path):
    """The same as vicort reads it."""
    with open_source(str(path)) as source:
        return [(frame.time, frame.image.copy()) for frame in source]


def folder_of(path):
    return sorted(os.listdir(path.parent))


def differs(a, b):
    """Where two pictures differ by more than an encoder makes of it."""
    return np.abs(a.astype(int) - b).max(axis=2) > 40


RATES = {
    "25": [Fraction(i, 25) for i in range(30)],
    "29.97": [Fraction(1001 * i, 30_000) for i in range(30)],
    "23.976": [Fraction(1001 * i, 24_000) for i in range(30)],
    "variable": [Fraction(i * i, 90_000) * 37 for i in range(30)],
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
@pytest.mark.parametrize("rate", RATES)
def test_pictures_and_their_times_are_those_of_the_source(tmp_path, rate, suffix):
    source, path = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    videos.write_video(source, RATES[rate])
    result = written(str(source), path)
    times, pictures = decoded(path)
    expected = [time for time, _ in read_again(source)]
    tolerance = Fraction(1, 1000) if suffix == ".mkv" else Fraction(0)  # of the container
    assert all(abs(a - b) <= tolerance for a, b in zip(times, expected, strict=True))
    assert [videos.number(picture) for picture in pictures] == list(range(30))
    assert result.frames == 30
    assert folder_of(path) == ["in.mp4", path.name]


def test_the_file_is_what_browsers_play(tmp_path):
    source, path = tmp_path / "in.mkv", tmp_path / "out.mp4"
    videos.write_video(source, 25, codec="mjpeg", pixel_format="yuvj420p")
    written(str(source), path)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (160, 120)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_colours_are_those_of_the_source(tmp_path):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, 5)
    written(str(source), path)
    for (_, before), (_, after) in zip(read_again(source), read_again(path), strict=True):
        for spot in ((15, 40), (15, 120), (105, 40), (105, 120)):
            assert np.abs(before[spot].astype(int) - after[spot]).max() <= 4


def test_a_note_is_drawn_from_its_moment_on_and_only_on_the_lowest_third(tmp_path):
    source = tmp_path / "in.mp4"
    videos.write_video(source, [Fraction(i, 10) for i in range(150)])
    written(str(source), tmp_path / "plain.mp4")
    written(str(source), tmp_path / "noted.mp4", asked(1.5))
    times, plain = decoded(tmp_path / "plain.mp4")
    times_too, noted = decoded(tmp_path / "noted.mp4")
    assert times == times_too
    changed = [differs(a, b) for a, b in zip(plain, noted, strict=True)]
    shown = [time for time, where in zip(times, changed, strict=True) if where.any()]
    assert (shown[0], shown[-1]) == (Fraction(3, 2), Fraction(114, 10))  # for ten seconds
    assert len(shown) == 100
    assert not any(where[:76].any() for where in changed)  # blocks of the codec are 4 pixels high


def test_an_answer_stays_until_the_next_question(tmp_path):
    source = tmp_path / "in.mp4"
    videos.write_video(source, [Fraction(i, 5) for i in range(60)])
    events = [asked(1, text="first"), asked(5, "and then?", "second")]
    written(str(source), tmp_path / "both.mp4", *events)
    written(str(source), tmp_path / "one.mp4", events[0])
    times, both = decoded(tmp_path / "both.mp4")
    _, one = decoded(tmp_path / "one.mp4")
    first = next(time for time, a, b in zip(times, both, one, strict=False) if differs(a, b).any())
    assert first == 5


def test_what_was_said_by_itself_is_drawn(tmp_path):
    source = tmp_path / "in.mp4"
    videos.write_video(source, TWO_SECONDS)
    written(str(source), tmp_path / "plain.mp4")
    written(str(source), tmp_path / "a.mp4", Spoken(Fraction(1), Fraction(1), "a circle", 1, 1, 0))
    pairs = zip(decoded(tmp_path / "plain.mp4")[1], decoded(tmp_path / "a.mp4")[1], strict=False)
    changed = [differs(a, b).any() for a, b in pairs]
    assert changed == [False] * 25 + [True] * 25


def test_the_last_picture_is_held_until_the_last_answer_can_be_read(tmp_path):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, TWO_SECONDS)
    result = written(str(source), path, asked(2))
    times, pictures = decoded(path)
    assert result.seconds == 2 + 3 + Fraction(len("what is there now?a red circle"), 20)
    assert 0 < result.seconds - times[-1] <= Fraction(1, 25)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == result.seconds
    assert len(times) == result.frames
    held = pictures[TWO_SECONDS:]
    assert len(held) == result.frames - TWO_SECONDS > 0
    assert {videos.number(picture) for picture in held} == {TWO_SECONDS - 1}
    assert differs(pictures[TWO_SECONDS - 1], held[-1]).any()


def test_a_question_between_two_slow_pictures_is_shown_at_its_moment(tmp_path):
    source, path = tmp_path / "in.mkv", tmp_path / "out.mp4"
    videos.write_video(source, [Fraction(0), Fraction(6), Fraction(20), Fraction(21)])
    written(str(source), path, asked(2))
    times, pictures = decoded(path)
    assert times == [0, 2, 6, 12, 20, 21]  # it goes after ten seconds
    plain = [videos.image(number) for number in (0, 0, 1, 1, 2, 3)]
    noted = [differs(*pair)[100:].any() for pair in zip(plain, pictures, strict=True)]
    assert noted == [False, True, True, False, False, False]


def test_the_last_picture_lasts_as_the_container_says(tmp_path):
    pictures = [Image.fromarray(videos.image(number)) for number in range(3)]
    pictures[0].save(
        tmp_path / "in.gif", save_all=True, append_images=pictures[1:], duration=[100, 3000, 700]
    )
    result = written(str(tmp_path / "in.gif"), tmp_path / "out.mp4")
    assert result.seconds == Fraction(19, 5)
    assert decoded(tmp_path / "out.mp4")[0] == [0, Fraction(1, 10), Fraction(31, 10)]
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == result.seconds


def test_a_picture_that_is_turned_is_written_upright(tmp_path):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, 5)
    videos.turn(source, (0, 1, -1, 0))  # a quarter turn clockwise
    upright = [image for _, image in read_again(source)]
    written(str(source), path)
    _, pictures = decoded(path)
    assert pictures[0].shape == upright[0].shape == (160, 120, 3)
    assert videos.corners(pictures[0]) == videos.corners(upright[0]) != [0, 1, 2, 3]


def test_images_of_any_size_become_one_size(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (width, height) in enumerate([(161, 121), (80, 120), (320, 240)]):
        videos.write_image(folder / f"{number}.png", videos.image(number, width, height))
    written(str(folder), tmp_path / "out.mp4")
    times, pictures = decoded(tmp_path / "out.mp4")
    assert times == [0, Fraction(1, 2), 1]
    assert [picture.shape for picture in pictures] == [(122, 162, 3)] * 3
    assert videos.number(pictures[0]) == 0
    assert videos.number(pictures[2]) == 2
    assert (pictures[1][:, :35] < 30).all()  # bars
    assert (pictures[1][:, -35:] < 30).all()
    assert videos.number(pictures[1][:, 41:121]) == 1


def test_a_very_large_picture_is_reduced(tmp_path):
    videos.write_image(tmp_path / "a.png", np.zeros((120, 6000, 3), np.uint8))
    written(str(tmp_path / "a.png"), tmp_path / "out.mp4")
    assert decoded(tmp_path / "out.mp4")[1][0].shape == (82, 4096, 3)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "libopus"), (".mov", "pcm_s16le")]
)
def test_sound_is_copied(tmp_path, suffix, codec):
    source, path = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    videos.write_talking_video(source, sound=codec)
    warnings = []
    written(str(source), path, asked(1), warnings=warnings)
    assert warnings == []
    lead_in = suffix == ".mkv"  # which Matroska cannot hold
    assert packets(path) == packets(source)[lead_in:]


def packets(path):
    """What is said, and when, to a millisecond."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [
            (round(packet.pts * packet.time_base, 3), bytes(packet))
            for packet in container.demux(track)
            if packet.size
        ]


def test_sound_and_pictures_stay_together(tmp_path):
    source, path = tmp_path / "in.ts", tmp_path / "out.mp4"
    videos.write_talking_video(source, start=3)
    written(str(source), path)

    def apart(path):
        with av.open(str(path)) as container:
            streams = (container.streams.video[0], container.streams.audio[0])
            picture, sound = (stream.start_time * stream.time_base for stream in streams)
            return float(picture - sound)

    assert apart(path) == pytest.approx(apart(source), abs=0.0001)


def test_sound_that_players_do_not_take_is_left_out_with_a_warning(tmp_path):
    source, path = tmp_path / "in.mkv", tmp_path / "out.mp4"
    videos.write_talking_video(source, sound="pcm_s16le")
    warnings = []
    written(str(source), path, warnings=warnings)
    (line,) = warnings
    assert "pcm_s16le" in line
    assert ".mkv" in line
    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].frames == TWO_SECONDS


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damaged_sound_costs_its_own_packets_alone(tmp_path, suffix):
    source, path = tmp_path / "in.ts", tmp_path / f"out{suffix}"
    videos.write_talking_video(source)
    sound = open_sound(str(source), warn=print, isolate=False)

    def damaged():
        for number, packet in enumerate(sound.packets):
            bad = av.Packet(bytes(64))
            bad.pts = bad.dts = packet.pts
            bad.time_base = packet.time_base
            yield bad if number % 20 == 5 else packet

    warnings = []
    with open_source(str(source)) as again:
        result = render(
            again,
            replace(sound, packets=damaged()),
            Notes(),
            Typeface(),
            path,
            threads=1,
            warn=warnings.append,
            progress=lambda frames: None,
        )
    whole = len(packets(source))
    lost = len(range(5, whole, 20))
    assert len(packets(path)) == whole - lost
    assert len(decoded(path)[0]) == result.frames == TWO_SECONDS
    assert warnings == [
        f"{lost} packets of the sound of {source} are damaged, and left out of {path}"
    ]


@pytest.mark.parametrize("format", SOUND)
def test_formats_take_the_sound_that_they_are_said_to_take(format, tmp_path):
    with av.open(str(tmp_path / "a"), "w", format=format) as container:
        names = {"dts": "dca"}  # of decoders
        assert {names.get(each, each) for each in SOUND[format]} <= container.supported_codecs


def test_a_run_that_ended_early_gives_a_shorter_video(tmp_path):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_talking_video(source, 4)
    written(str(source), path, until=Fraction(1))
    times, _ = decoded(path)
    assert times[-1] == 1
    assert packets(path)[-1][0] < Fraction(27, 25)


def test_a_source_that_breaks_off_is_written_as_far_as_it_goes(tmp_path):
    source, path = tmp_path / "in.mkv", tmp_path / "out.mp4"
    videos.write_video(tmp_path / "whole.mkv", 250, noise=True)
    videos.cut(tmp_path / "whole.mkv", source, 0.5)
    notes = Notes()
    with open_source(str(source)) as again:
        for time in range(11):
            notes.frame(Fraction(time))
        result = render(
            again,
            None,
            notes,
            Typeface(),
            path,
            threads=1,
            warn=print,
            progress=lambda frames: None,
        )
    assert 50 < result.frames < 200
    assert len(decoded(path)[0]) == result.frames


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failure", [Interrupted, SourceError])
def test_a_failure_leaves_what_was_there(tmp_path, failure, there):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, TWO_SECONDS)
    if there:
        path.write_bytes(b"before")
    before = folder_of(path)

    def fail(frames):
        if frames == 30:
            raise failure("enough")

    with pytest.raises(failure):
        written(str(source), path, asked(1), progress=fail)
    assert folder_of(path) == before
    assert not there or path.read_bytes() == b"before"


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_interruption_while_the_index_is_moved_leaves_nothing(tmp_path, monkeypatch, calls):
    """PyAV calls the file then, and drops a KeyboardInterrupt that comes there."""
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, TWO_SECONDS)
    left = calls

    class Interrupting(io.FileIO):
        def read(self, size=-1):
            nonlocal left
            left -= 1
            if left == 0:
                raise Interrupted
            return super().read(size)

    monkeypatch.setattr(
        video_file, "open", lambda name, *given, **_: Interrupting(name), raising=False
    )
    with pytest.raises(Interrupted):
        written(str(source), path)
    assert folder_of(path) == ["in.mp4"]


def test_a_full_disk_is_one_error(tmp_path):
    source, path = tmp_path / "in.mp4", tmp_path / "out.mp4"
    videos.write_video(source, 200, noise=True)
    program = f"""
import resource
from fractions import Fraction
from pathlib import Path
from vicort.runtime.errors import ConfigError
from vicort.runtime.rendering.lettering import Typeface
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.rendering.render import render
from vicort.runtime.sources import open_source
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with open_source({str(source)!r}, isolate=False) as source:
        render(source, None, Notes(), Typeface(), Path({str(path)!r}), threads=1, warn=print,
               progress=lambda frames: None)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith(f"--render {path} cannot be written (File too large)")
    assert done.stderr == ""
    assert folder_of(path) == ["in.mp4"]


class Counted(Source):
    """Frames that are made when they are asked for; counts those that are in memory."""

    def __init__(self, count):
        super().__init__("counted", frames_total=count)
        self.count, self.alive, self.most = count, 0, 0

    def frames(self, wants=None):
        for index in range(self.count):
            image = np.full((64, 64, 3), index % 256, np.uint8)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(image, self._gone)
            yield Frame(image, Fraction(index, 25), index)

    def _gone(self):
        self.alive -= 1


def test_frames_do_not_pile_up(tmp_path):
    source = Counted(400)
    render(
        source,
        None,
        Notes(),
        Typeface(),
        tmp_path / "out.mp4",
        threads=1,
        warn=print,
        progress=lambda frames: None,
    )
    assert source.most <= 3


def test_progress_counts_frames_of_the_source(tmp_path):
    source = tmp_path / "in.mp4"
    videos.write_video(source, 5)
    seen = []
    written(str(source), tmp_path / "out.mp4", progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_a_pyav_without_an_encoder_for_h264_is_an_error(monkeypatch):
    check_encoder()
    monkeypatch.setattr(video_file.av, "codecs_available", {"h264", "mpeg4"})
    with pytest.raises(video_file.ConfigError, match="needs the encoder libx264"):
        check_encoder()


def test_text_from_strangers_is_one_line_without_controls():
    notes = Notes()
    notes.event(asked(1, "what\x1b[2J is\nthere?", "red\u202e circle " + "x" * 5000, 0.3))
    (note,) = notes.in_order
    assert note.question == "what\\u001b[2J is there?"
    assert "\u202e" not in note.answer
    assert note.letters < 1100
    assert note.answer.endswith("(a guess: 0.30)")


@pytest.mark.parametrize("name", ["h264_10bits.mp4", "h265_video.mp4", "nasa_13013.mp4"])
def test_real_files(tmp_path, name):
    if not (source := VIDEOS / name).exists():
        pytest.skip(f"{source} is not at hand")
    written(str(source), tmp_path / "out.mp4", asked(1))
    expected = [time for time, _ in read_again(source)]
    assert [time for time, _ in read_again(tmp_path / "out.mp4")][: len(expected)] == expected
