"""Reads one file in a child process and reports how that ended."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from fuzzing.fuzz_files import Kind, prompt_files, split_packets

from vicort.runtime.cli.questions import read_questions, with_ids
from vicort.runtime.errors import SourceError, VicortError
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.manifest import read_manifest
from vicort.runtime.policies.system import load_system
from vicort.runtime.sources import open_source
from vicort.runtime.sources.decoder_sandbox import limit_memory, limit_time
from vicort.runtime.sources.limits import Limits
from vicort.runtime.sources.packets import DecodedPicture, PacketReader

MAX_LINE = 4_096  # characters of an error
PROCESSOR_SECONDS = 5.0  # for a file
VIDEO_TOKEN = 6  # of the embedded model
MAX_REPORT = 8_000  # bytes of a child's report


@dataclass(frozen=True)
class Outcome:
    kind: str  # answered, refused; or, as a fault: traceback, noise, crash, hang, memory
    detail: str
    peak: int  # bytes of memory that reading it took
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        return self.kind not in ("answered", "refused")


def tried(path: Path, kind: Kind, *, seconds: float, max_bytes: int) -> Outcome:
    """Reads the file in a child that is killed after `seconds`."""
    began = time.monotonic()
    kind_of_end, detail, peak = _tried(path, kind, seconds, max_bytes)
    return Outcome(kind_of_end, detail, peak, time.monotonic() - began)


def _tried(path: Path, kind: Kind, seconds: float, max_bytes: int) -> tuple[str, str, int]:
    reading, writing = os.pipe()
    noise_file = path.with_name("stderr")
    inherited = path.with_name("inherited")
    inherited.write_text("0")
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(path, kind, writing, noise_file, inherited)
    os.close(writing)
    ended = bool(select.select([reading], [], [], seconds)[0])
    report = os.read(reading, MAX_REPORT).decode("utf-8", "replace") if ended else ""
    os.close(reading)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    peak = max(0, usage.ru_maxrss * 1024 - int(inherited.read_text()))
    if not ended:
        return "hang", f"no end after {seconds:g} s", peak
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return "refused", f"no end after {PROCESSOR_SECONDS:g} s of processor time", peak
    if os.WIFSIGNALED(status):
        return "crash", f"signal {os.WTERMSIG(status)}", peak
    if peak > max_bytes:
        return "memory", f"{peak / 1e6:.0f} MB", peak
    noise = noise_file.read_text(errors="replace")
    if "Traceback" in noise:
        return "traceback", f"on stderr: {noise[-MAX_REPORT:]}", peak
    verdict, _, detail = report.partition(" ")
    return verdict, detail, peak


def judged(read: Callable[[], str]) -> str:
    """A report on one file: how that ended, and what it came to or why not."""
    try:
        return f"answered {read()}"
    except MemoryError:
        return "refused for its memory"
    except VicortError as error:
        line = str(error)
        if line.isprintable() and len(line) <= MAX_LINE:
            return f"refused {line}"
        return f"traceback an error that is no clean line: {line[:500]!r}"
    except BaseException:  # noqa: BLE001 - the run looks for any exception
        return f"traceback {traceback.format_exc()[-MAX_REPORT // 2 :]}"


def _memory() -> int:
    """Bytes of memory that this program has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _be_child(path: Path, kind: Kind, writing: int, noise_file: Path, inherited: Path) -> NoReturn:
    inherited.write_text(str(_memory()))
    os.dup2(os.open(noise_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    limit_memory(Limits().decoding_bytes)  # as a decoder process has them
    limit_time(PROCESSOR_SECONDS)
    report = judged(lambda: READERS[kind](path))
    os.write(writing, report.encode("utf-8", "backslashreplace")[:MAX_REPORT])
    os._exit(0)


def _watch(spec: str) -> str:
    with open_source(spec, isolate=False) as source:
        return (
            f"{sum(frame.image.nbytes > 0 for frame in source)} frames, {len(source.warnings)} "
            "warnings"
        )


def _watch_stdin(path: Path) -> str:
    os.dup2(os.open(path, os.O_RDONLY), 0)
    return _watch("-")


def _read_questions(path: Path) -> str:
    return f"{len(with_ids(read_questions(path)))} questions"


def _read_prompt(path: Path) -> str:
    """A tokenizer or a chat template; the other one is good."""
    folder = path.with_name("set")
    folder.mkdir(exist_ok=True)
    for name, content in (prompt_files() | {path.name: path.read_bytes()}).items():
        (folder / name).write_bytes(content)
    prompt = Prompt(folder, VIDEO_TOKEN)
    tokens = prompt.question("what is there now?")
    prompt.decode(tokens)
    return f"{len(tokens)} tokens"


def _read_packets(path: Path) -> str:
    """Reads on after a packet that is refused."""
    extradata, *pieces = split_packets(path.read_bytes()) or [b""]
    reader = PacketReader(path.name.partition(".")[0], extradata, motion=True)
    seen = refused = 0
    reads: list[Callable[[], Iterator[DecodedPicture]]] = [
        *(partial(reader.read, piece, i) for i, piece in enumerate(pieces)),
        reader.rest,
    ]
    for read in reads:
        try:
            seen += sum(each.image().nbytes > 0 for each in read())
        except SourceError as error:
            refused += 1
            if not str(error).isprintable():
                raise ValueError(repr(error)) from error
    return f"{seen} pictures, {refused} packets refused"


READERS: dict[Kind, Callable[[Path], str]] = {
    "video": lambda path: _watch(str(path)),
    "image": lambda path: _watch(str(path)),
    "stdin": _watch_stdin,
    "system": lambda path: load_system(path).name,
    "manifest": lambda path: read_manifest(path.parent).backend,
    "questions": _read_questions,
    "prompt": _read_prompt,
    "packets": _read_packets,
}
