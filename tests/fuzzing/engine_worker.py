"""Reads one file after another as `vicort-run` does, up to an answer, in a process that lives on:
`python -m fuzzing.engine_worker SET READING WRITING`.

SET: an engine set; READING and WRITING: numbers of pipes. Each line that comes is [path, kind]; the
line that goes is [report, seconds, own, decoder]: how long the file took, how many bytes of memory
this process had more than before at its highest, and the largest decoder process in all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from fuzzing.fuzz_child import judged
from fuzzing.fuzz_files import Kind

from vicort.runtime import Session
from vicort.runtime.cli.questions import read_questions, with_ids
from vicort.runtime.core import Answer, Frame, Question
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import TruncatedSource
from vicort.runtime.manifest import FILE_NAME, fingerprint
from vicort.runtime.policies.system import DEFAULT_SYSTEM, System, load_system
from vicort.runtime.sources import open_source

QUESTION = "what is there now?"
MAX_FRAMES = 48  # of a file that go to the engines
MAX_SECONDS = 10.0  # of reading frames: some files never end
MAX_QUESTIONS = 3
POLL = 0.02  # seconds between looks at the decoder's memory


class Worker:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engines = EngineSet.open(folder, threads=1)

    def run(self, path: Path, kind: Kind) -> str:
        """Returns what the file came to. Raises VicortError where it is refused."""
        if kind in ("video", "image"):
            return self._watched(str(path))
        if kind == "stdin":
            file = os.open(path, os.O_RDONLY)
            os.dup2(file, 0)
            os.close(file)
            return self._watched("-")
        if kind == "system":
            return self._asked(self._engines, [Question(QUESTION)], load_system(path))
        if kind == "questions":
            return self._asked(self._engines, with_ids(read_questions(path)))
        return self._set_used(path)

    def _watched(self, spec: str) -> str:
        end = time.monotonic() + MAX_SECONDS
        seen = 0
        with Session.open(self._engines) as session:
            try:
                with open_source(spec) as source:
                    for frame in source.frames(session.wants):
                        session.push(frame)
                        seen += 1
                        if seen == MAX_FRAMES or time.monotonic() > end:
                            break
            except TruncatedSource:  # what was read before is answered about
                if not seen:
                    raise
            return f"{seen} frames, {_checked(session.ask(QUESTION))}"

    def _asked(
        self,
        engines: EngineSet,
        questions: Sequence[Question],
        system: System | str = DEFAULT_SYSTEM,
    ) -> str:
        """About a few frames of noise."""
        rng = np.random.default_rng(0)
        with Session.open(engines, system) as session:
            for i in range(20):
                image = rng.integers(0, 256, (112, 112, 3), np.uint8)
                session.push(Frame(image, Fraction(i, 2), i))
            answers = [session.submit(question) for question in questions[:MAX_QUESTIONS]]
            session.finish()
            return f"{[_checked(answer.result()) for answer in answers]}"

    def _set_used(self, path: Path) -> str:
        """The engine set with another tokenizer, chat template or manifest, as a stranger would
        hand it on: its hashes are right."""
        folder = path.with_name("engine-set")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder, folder)
        shutil.copy(path, folder)
        if path.name != FILE_NAME:
            manifest = json.loads((self._folder / FILE_NAME).read_text())
            manifest["files"][path.name] = vars(fingerprint(path))
            (folder / FILE_NAME).write_text(json.dumps(manifest))
        with EngineSet.open(folder, threads=1) as engines:
            return self._asked(engines, [Question(QUESTION)])


class DecoderMemory:
    """The most memory of any decoder process of this program, looked at again and again."""

    def __init__(self) -> None:
        self.most = 0  # bytes; reset by who reads it
        self._strangers: set[int] = set()
        self._family = {os.getpid()}  # this process, the decoder server, decoders
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(POLL)

    def look(self) -> None:
        for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            if number in self._strangers or number == os.getpid():
                continue
            status = status_of(number)
            parent = status.get("PPid", 0)
            if parent not in self._family:
                self._strangers.add(number)
                continue
            self._family.add(number)
            if parent != os.getpid():
                self.most = max(self.most, status.get("VmHWM", 0) * 1024)


def status_of(process: int | str) -> dict[str, int]:
    """The whole numbers of /proc/PROCESS/status; empty once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", "").split() for line in lines]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _checked(answer: Answer) -> str:
    if not isinstance(answer.text, str):
        raise TypeError(repr(answer))
    return answer.text


def main() -> int:
    folder, reading, writing = sys.argv[1:]
    worker, decoders = Worker(Path(folder)), DecoderMemory()
    with open(int(reading)) as asked, open(int(writing), "w") as told:
        print(json.dumps("ready"), file=told, flush=True)
        for line in asked:
            path, kind = json.loads(line)
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest memory so far
            before, decoders.most = status_of("self")["VmHWM"] * 1024, 0
            began = time.monotonic()
            report = judged(partial(worker.run, Path(path), kind))
            seconds = time.monotonic() - began
            own = status_of("self")["VmHWM"] * 1024 - before
            print(json.dumps([report, seconds, own, decoders.most]), file=told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
