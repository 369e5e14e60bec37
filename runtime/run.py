"""vicort-run: watch sources, answer questions about them.

options -> source -> session -> events. What is typed is checked before anything heavy is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from vicort.runtime.arguments import Options, parse_options
from vicort.runtime.errors import ConfigError, EngineError, TruncatedSource, VicortError
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import backend_of
from vicort.runtime.output import Output
from vicort.runtime.redact import redact
from vicort.runtime.session import Session
from vicort.runtime.sources import Source, open_source
from vicort.runtime.trace import Trace
from vicort.runtime.writers import WRITERS

MODEL = "tiny"  # whose engines are used, and built if need be, where none are named
INTERRUPTED = 130  # exit code: 128 + SIGINT
READER_GONE = 141  # exit code: 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit code."""
    try:
        return run(parse_options(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit stays quiet too
        return READER_GONE
    except VicortError as error:
        print(f"vicort-run: {redact(str(error))}", file=sys.stderr)
        return error.exit_code


def run(options: Options) -> int:
    """All sources, one after another; returns the highest of their exit codes."""
    output = Output(WRITERS[options.format](sys.stdout), sys.stderr, stats=options.stats)
    with ExitStack() as stack:
        sources = [stack.enter_context(_open(spec, options, output)) for spec in options.sources]
        trace = stack.enter_context(_traced(options.trace))
        engine_dir = options.engine_dir or _default_engines()
        return max([watch(source, options, engine_dir, output, trace) for source in sources])


def watch(source: Source, options: Options, engine_dir: Path, output: Output, trace: Trace | None) -> int:
    """One source from its first frame to its summary; returns its exit code: 0, or that of a source that breaks off."""
    with Session.open(
        engine_dir,
        options.system,
        fps=options.fps,
        overlap=options.overlap,
        on_lag=options.on_lag or "wait",
        sampling=options.sampling,
        trace=trace,
        on_event=output.event,
    ) as session:
        for question in options.questions:
            session.submit(question, partial(output.token, question.id, question.text))
        try:
            with output.progress_of(source):
                code = feed(source, session, options.realtime, output)
            session.finish()
        except KeyboardInterrupt:
            output.event(session.summary())
            output.close()
            session.cancel()
            raise
        output.event(session.summary())
        output.check()
    return code


def feed(source: Source, session: Session, realtime: bool, output: Output) -> int:
    """Push the frames that the session wants, each when it is due; returns an exit code."""
    pace = Pace() if realtime else None

    def wants(at: Fraction) -> bool:
        if pace:
            pace.wait(at)
        return session.wants(at)

    try:
        for frame in source.frames(wants):
            session.push(frame)
            output.progress(frame.index + 1)
            output.check()
    except TruncatedSource as error:  # what was seen is answered all the same
        output.warn(str(error))
        return error.exit_code
    return 0


class Pace:
    """Plays a source by its timestamps."""

    def __init__(self) -> None:
        self._first: tuple[float, Fraction] | None = None  # monotonic seconds, and the source's

    def wait(self, at: Fraction) -> None:
        """Sleep until a frame of that time is due; the first one is due at once."""
        now = time.monotonic()
        began, first = self._first = self._first or (now, at)
        time.sleep(max(0.0, began + float(at - first) - now))


def _open(spec: str, options: Options, output: Output) -> Source:
    source = open_source(
        spec,
        stream=options.stream,
        live=options.live,
        image_fps=options.image_fps,
        warn=output.warn,
        decode=_decode(options),
        rtsp_transport=options.rtsp_transport,
        patience=options.patience,
        limits=options.limits,
        on_state=output.event,
    )
    if options.realtime and source.live:
        source.close()
        raise ConfigError(f"--realtime is for files, and {source.name} is live: leave it out, or say --file")
    if source.live and options.on_lag is None:
        output.warn(f"{source.name} looks live, and its frames wait while the pipeline is full: say --live to drop the oldest instead")
    return source


def _decode(options: Options) -> Literal["auto", "cpu", "gpu"]:
    """Where frames are decoded: pixels on a GPU are of use only to engines that run there. Raises ConfigError if asked otherwise."""
    engine_dir = options.engine_dir or find_engine_dir(MODEL)
    on_gpu = engine_dir is not None and backend_of(engine_dir) == "tensorrt"
    if options.decode == "gpu" and not on_gpu:
        raise ConfigError(
            "--decode gpu is for engines on an NVIDIA GPU: leave it out, or build such with `vicort-build --backend tensorrt`"
        )
    return options.decode if on_gpu else "cpu"


@contextmanager
def _traced(path: Path | None) -> Iterator[Trace | None]:
    """A trace that is written in the end, however that comes, if anything was recorded."""
    trace = Trace() if path else None
    try:
        yield trace
    finally:
        if path and trace and trace.kept:
            trace.write(path)


def _default_engines() -> Path:
    """The embedded model's engines; built in a process of their own if there are none, as the runtime knows nothing of building."""
    if found := find_engine_dir(MODEL):
        return found
    try:
        metadata.distribution("torch")
    except metadata.PackageNotFoundError as error:
        hint = "`pip install 'vicort[export]'` and try again, or name an engine set with --engine-dir"
        raise EngineError(f"no engines of the {MODEL} model are built, and building needs the export tools: {hint}") from error
    print(f"vicort-run: building the engines of the {MODEL} model (once)", file=sys.stderr, flush=True)
    built = subprocess.run([sys.executable, "-m", "vicort.export.build", MODEL], stdout=sys.stderr, check=False)
    if built.returncode or not (found := find_engine_dir(MODEL)):
        raise EngineError(f"the engines of the {MODEL} model could not be built (exit code {built.returncode}): try `vicort-build {MODEL}`")
    return found


if __name__ == "__main__":
    sys.exit(main())
