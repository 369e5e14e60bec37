"""Input from strangers: bombs, escapes and nonsense cost one line, a little time and a little
memory."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import videos
from support.error_lines import one_line
from support.sizes import slow

from vicort.runtime.cli.question_router import QuestionRouter, TypedQuestions
from vicort.runtime.cli.question_socket import QuestionSocket
from vicort.runtime.cli.questions import (
    MAX_LINE,
    parse_ask,
    parse_typed,
    read_questions,
    with_ids,
)
from vicort.runtime.core import Sampling
from vicort.runtime.errors import ConfigError, EngineError, QuestionError, SourceError
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.policies.system import load_system, parse_system
from vicort.runtime.safe_text import is_text, read_text, shown
from vicort.runtime.sources import open_source, piped
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.piped import SEEK_FAILED, ByteFile
from vicort.runtime.sources.pixels import Converter

GOOD_SYSTEM = """
name: mine
drop: {policy: none}
ingest: {policy: recent-chunks, chunks: 4}
retrieval: {policy: even-units, units: 8}
memory: {device_mb: 10, host_mb: 0, when_full: drop-oldest}
"""


# ---- video ----


def with_size(path: Path, fourcc: bytes, width: int, height: int) -> None:
    """Write another size into the sample description of an MP4's video."""
    content = bytearray(path.read_bytes())
    start = content.index(fourcc, content.index(b"stsd")) + 28
    content[start : start + 4] = struct.pack(">HH", width, height)
    path.write_bytes(content)


def test_a_folder_with_bombs_among_its_images(tmp_path: Path) -> None:
    videos.write_image(tmp_path / "1.png", videos.image(1))
    (tmp_path / "2.png").write_bytes(videos.png(100_000, 100_000))
    (tmp_path / "3.png").write_bytes(
        videos.png(16_000, 16_000)
    )  # FFmpeg itself would take this one
    with open_source(str(tmp_path)) as source:
        assert [videos.number(frame.image) for frame in source] == [1]
    assert len(source.warnings) == 2
    assert all("is left out" in line for line in source.warnings)


def test_the_limit_of_images_is_the_users(tmp_path: Path) -> None:
    videos.write_image(tmp_path / "1.png", videos.image(1))
    with (
        open_source(str(tmp_path), limits=Limits(pixels=19_199)) as source,
        pytest.raises(SourceError, match="none of the 1 images"),
    ):
        list(source)


def test_a_video_that_declares_an_enormous_picture(tmp_path: Path) -> None:
    path = tmp_path / "bomb.mp4"
    videos.write_video(path, 2)
    with_size(path, b"avc1", 60_000, 60_000)
    try:
        # where FFmpeg believes the stream more than its container
        with open_source(str(path)) as source:
            assert all(frame.image.shape == (120, 160, 3) for frame in source)
    except SourceError as error:
        one_line(error)


def test_a_raw_video_of_a_hundred_thousand_by_a_hundred_thousand(tmp_path: Path) -> None:
    path = tmp_path / "bomb.y4m"
    path.write_bytes(b"YUV4MPEG2 W100000 H100000 F25:1 C420\nFRAME\n" + bytes(1_000))
    with pytest.raises(SourceError) as caught:
        open_source(str(path))
    one_line(caught.value)
    path.write_bytes(b"YUV4MPEG2 W16000 H16000 F25:1 C420\nFRAME\n" + bytes(1_000))
    with pytest.raises(SourceError, match="16000x16000, more than"):
        open_source(str(path))


def test_a_million_frames_a_second(tmp_path: Path) -> None:
    path = tmp_path / "fast.y4m"
    path.write_bytes(b"YUV4MPEG2 W16 H16 F1000000:1 C420\n" + (b"FRAME\n" + bytes(384)) * 3)
    with pytest.raises(SourceError, match=r"1e\+06 frames per second, more than 1000"):
        open_source(str(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mp4", ".m3u8", ".sdp", ""])
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nURL\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'URL'\n",
        (
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP "
            "96\na=rtpmap:96 H264/90000\n"
        ),
    ],
    ids=["playlist", "concat", "sdp"],
)
def test_a_file_that_leads_elsewhere_is_not_followed(
    tmp_path: Path, suffix: str, text: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        path = tmp_path / f"innocent{suffix}"
        path.write_text(
            text.replace("URL", f"http://127.0.0.1:{server.getsockname()[1]}/secret.ts")
        )
        with pytest.raises(SourceError) as caught, open_source(str(path)) as source:
            list(source)
        one_line(caught.value)
        with pytest.raises(TimeoutError):
            server.accept()


def run_on(script: str, data: bytes | None, repeat: bytes = b"") -> subprocess.CompletedProcess:
    """Python with that on its stdin, and `repeat` after it for as long as it is taken."""
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def feed() -> None:
        try:
            child.stdin.write(data)
            while repeat:
                child.stdin.write(repeat)
            child.stdin.close()
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    output, errors = child.stdout.read(), child.stderr.read()
    return subprocess.CompletedProcess(child.args, child.wait(), output, errors)


WATCH_STDIN = """
from pathlib import Path
from vicort.runtime.errors import SourceError
from vicort.runtime.sources import open_source, piped
piped.MAX_BYTES_WITHOUT_PICTURE = 20_000_000
try:
    with open_source("-") as source:
        print(sum(1 for frame in source), "frames")
except SourceError as error:
    print(error)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize(
    ("start", "repeat"),
    [
        (
            b"\x1a\x45\xdf\xa3\x84\x42\x86\x81\x01\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff",
            b"\xec\x42\x00" + bytes(512),
        ),
        (
            b"",
            b"\x47\x40\x00\x10\x00\x00\xb0\x0d\x00\x01\xc1\x00\x00\x00\x01\xf0\x00\x2a\xb1\x04\xb2"
            + b"\xff" * 167,
        ),
        (b"\0\0\0\x14ftypisom\0\0\2\0isom", b"\0\0\4\0free" + bytes(1016)),
        (
            b"FLV\x01\x01\0\0\0\x09\0\0\0\0",
            b"\x12\0\x01\0\0\0\0\0\0\0\0" + bytes(256) + b"\0\0\x01\x0b",
        ),
    ],
    ids=["matroska", "mpegts", "mp4", "flv"],
)
def test_headers_without_end_on_stdin(start: bytes, repeat: bytes) -> None:
    done = run_on(WATCH_STDIN, start, repeat * 200)
    line, memory = done.stdout.decode().splitlines()
    assert line.startswith("stdin "), done
    assert int(memory.split()[1]) < 200_000  # kB
    assert b"Traceback" not in done.stderr


def test_a_byte_file_ends_without_pictures_and_goes_on_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(piped, "MAX_BYTES_WITHOUT_PICTURE", 10)
    file = ByteFile(io.BytesIO(bytes(30)))
    assert (len(file.read(6)), len(file.read(6)), file.read(6), file.spent) == (6, 4, b"", True)
    file.see_picture()
    assert (len(file.read(20)), file.spent) == (10, True)


def test_a_byte_file_is_led_nowhere(tmp_path: Path) -> None:
    """PyAV would print the traceback of what `seek` raises."""
    (tmp_path / "file").write_bytes(b"0123")
    with (tmp_path / "file").open("rb", buffering=0) as raw:
        file = ByteFile(raw)
        assert [file.seek(-5), file.seek(2**70), file.seek(1, 77), file.seek(2)] == [
            SEEK_FAILED
        ] * 3 + [2]


def test_colours_that_there_are_not(tmp_path: Path) -> None:
    """FFmpeg converts no picture of a reserved colour matrix. Found by the fuzz run: seed 3, file
    10521."""
    path = tmp_path / "clip.mp4"
    videos.write_video(path, 3)
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
    picture.colorspace = 3
    assert videos.number(Converter()(picture)) == 0


def test_a_stream_that_appears_in_the_middle_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyAV raises IndexError at its first packet, and can be asked for the next one. Found by the
    fuzz run: seed 2, file 2287."""
    videos.write_video(tmp_path / "clip.ts", 20)
    with open_source(str(tmp_path / "clip.ts"), isolate=False) as source:
        whole, calls = source._container, []

        class Surprised:
            def __getattr__(self, name):
                return getattr(whole, name)

            def demux(self, stream):
                calls.append(stream)
                for number, packet in enumerate(whole.demux(stream)):
                    yield packet
                    if number == 4 and len(calls) < 3:
                        raise IndexError("list index out of range")

        monkeypatch.setattr(source, "_container", Surprised())
        assert [videos.number(frame.image) for frame in source] == list(range(20))
        assert len(calls) == 3
        monkeypatch.undo()


# ---- YAML ----


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [touch HACKED]",
        "!!python/name:os.system",
        "[" * 5_000,
        "9" * 5_000,
        "0x" + "f" * 6_000,
        "2001-99-99",
        "!!timestamp x",
        "!!int ''",
        "!!bool x",
        "{policy: [a]}",
        "{1: 2}",
        "{device_mb: .inf, when_full: drop-oldest}",
        "{device_mb: 1.0e+300, when_full: drop-oldest}",
        "{device_mb: 0x" + "f" * 6_000 + ", when_full: drop-oldest}",
    ],
    ids=lambda value: value[:24],
)
@pytest.mark.parametrize("key", ["name", "drop", *slow("ingest", "retrieval", "memory")])
def test_a_system_file_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        f"{key}: {value}" if line.startswith(f"{key}:") else line
        for line in GOOD_SYSTEM.splitlines()
    ]
    assert parse_system(GOOD_SYSTEM, "good.yaml").name == "mine"
    with pytest.raises(ConfigError) as caught:
        parse_system("\n".join(lines), "bad.yaml")
    one_line(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_system_file_repeats_nothing() -> None:
    bomb = "a0: &a0 [lol, lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    with pytest.raises(ConfigError, match="aliases") as caught:
        parse_system(
            GOOD_SYSTEM.replace("memory:", "about:") + bomb + "memory: *a29\n", "bomb.yaml"
        )
    one_line(caught.value)


def test_a_system_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        load_system(path)


@given(st.text(alphabet="{}[]:,-&*!|>'\"#%@ \n\tab1.", max_size=60))
def test_any_text_is_a_system_or_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_system(text, "any.yaml")
    one_line(caught.value)


# ---- chat templates ----

TOKENIZER = Path(__file__).parents[2] / "export" / "tiny" / "checkpoint" / "tokenizer.json"


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch HACKED') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(1000000000000) %}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ raise_exception('two\nlines') }}",
        "{{ raise_exception('\x1b[31m') }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ {}['a' * 2000].b }}",
        "{% if %}",
        "{{ " + "(" * 3_000 + ")" * 3_000 + " }}",
    ],
    ids=lambda template: template[:24],
)
def test_a_chat_template_does_nothing_but_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(EngineError, match="chat template fails") as caught:
        Prompt(tmp_path, video_token=0)
    one_line(caught.value)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[" * 100_000, b"[1]", b'{"chat_template": 7}', b"9" * 5_000],
    ids=lambda content: str(content[:8]),
)
def test_a_chat_template_that_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError) as caught:
        Prompt(tmp_path, video_token=0)
    one_line(caught.value)


def test_a_tokenizer_without_the_token_that_stands_for_a_video(tmp_path: Path) -> None:
    """Found by spoiling the embedded model's."""
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(EngineError, match="has no token 9999999 for a video") as caught:
        Prompt(tmp_path, video_token=9_999_999)
    one_line(caught.value)


def test_a_chat_template_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(EngineError, match="more than 16777216 bytes"):
        Prompt(tmp_path, video_token=0)


# ---- questions ----

HOSTILE = [
    '{"at": 1e999999999, "question": "x"}',
    '{"at": 1e-999999999, "question": "x"}',
    '{"at": 1e39, "question": "x"}',
    '{"at": -1' + "0" * 400 + ', "question": "x"}',
    '{"at": ' + "9" * 5_000 + ', "question": "x"}',
    '{"at": 1.' + "1" * 5_000 + ', "question": "x"}',
    '{"at": ' + "[" * 60_000,
    '{"a":' * 13_000,
    '{"at": ' + "[1]" + ', "question": "x"}',
    '{"question": "\\ud800"}',
    '{"question": "x", "id": "\\udfff"}',
    '{"question": "x", "conversation": "\\udfff"}',
    '{"' + "k" * 60_000 + '": 1, "question": "x"}',
    '{"question": "' + "x" * MAX_LINE + '"}',
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:24])
def test_a_hostile_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(QuestionError) as caught:
        read_questions(path)
    one_line(caught.value)
    with pytest.raises(QuestionError) as caught:
        parse_typed(line, "stdin, line 1")
    one_line(caught.value)


def test_half_a_character_on_the_command_line() -> None:
    with pytest.raises(QuestionError, match="lone surrogate"):
        parse_ask("what is \udcff?")  # what Python makes of a byte that is no UTF-8
    with pytest.raises(QuestionError, match="lone surrogate"):
        parse_typed("what is \udcff?", "stdin, line 1")


def test_a_hundred_thousand_questions_in_a_second(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"question": "x"}\n' * 100_000)
    assert with_ids(read_questions(path))[-1].id == "q100000"


def test_a_questions_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(QuestionError, match="cannot be read"):
        read_questions(path)


def test_a_typed_line_without_end_costs_a_warning() -> None:
    warnings: list[str] = []
    asked: list[str] = []
    router = QuestionRouter(Sampling())
    router.enter("a", lambda question: asked.append(question.text) or Future())
    typed = TypedQuestions(
        io.StringIO("x" * 300_000 + "\nwhat is there?\n" + "y" * 200_000), router, warnings.append
    )
    assert typed.ended.wait(10)
    assert asked == ["what is there?"]
    assert [f"more than {MAX_LINE}" in line for line in warnings] == [True, True]


def test_a_hostile_client_gets_lines_and_the_next_one_an_answer(tmp_path: Path) -> None:
    router = QuestionRouter(Sampling())
    router.enter("a", lambda question: Future())
    path = Path(os.path.relpath(tmp_path / "s")) if len(str(tmp_path)) > 90 else tmp_path / "s"
    with QuestionSocket(path, router), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        lines = [line for line in HOSTILE if len(line) < MAX_LINE]
        with client.makefile("r", encoding="utf-8") as answers:
            for line in [*lines, "\ud800", '{"id": "\\ud800", "question": 7}']:
                client.sendall(line.encode("utf-8", "surrogatepass") + b"\n")
                if line != "\ud800":  # bytes that are no UTF-8 are replaced, and asked
                    assert json.loads(answers.readline())["event"] == "error"
            client.sendall(b"x" * 2 * MAX_LINE)
            assert "65536" in json.loads(answers.readline())["message"]


# ---- what they share ----


def test_a_text_of_the_greatest_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("four")
    assert read_text(tmp_path / "a", 4) == "four"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_text(tmp_path / "a", 3)


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_values_are_shown_short_and_in_one_line(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 200


def test_huge_values_are_shown_short() -> None:
    nested: list = []
    for _ in range(10_000):
        nested = [nested] * 10
    assert (
        max(len(shown(value)) for value in (10**5_000, "x" * 10**6, Fraction(1, 10**6_000))) <= 100
    )
    assert shown(nested).isprintable()


@given(st.text())
def test_text_is_what_can_be_written(text: str) -> None:
    assert is_text(text)
    assert not is_text(text + "\ud800")
