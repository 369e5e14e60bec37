"""vicort-run: watch sources, answer questions about them.

options -> source -> session -> events. What is typed is checked before anything heavy is loaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from vicort.runtime.cli.arguments import Options, parse_options
from vicort.runtime.cli.output import Output
from vicort.runtime.cli.question_router import QuestionRouter, TypedQuestions
from vicort.runtime.cli.question_socket import QuestionSocket
from vicort.runtime.cli.watch import NEVER_YES, POLL, RunContext, Watch
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.devices.trace import Trace
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import ConfigError, EngineError, VicortError
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import backend_of
from vicort.runtime.policies.system import load_system
from vicort.runtime.redact import redact, redact_url
from vicort.runtime.session import Session
from vicort.runtime.sources import Source, open_source

MODEL = "tiny"  # whose engines are used, and built if need be, where none are named
INTERRUPTED = 130  # exit code: 128 + SIGINT
STOP_SECONDS = 3.0  # that a source may take to end when all are to
READER_GONE = 141  # exit code: 128 + SIGPIPE
TERMINATED = 143  # exit code: 128 + SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which services are ended: the summary, the trace and the socket are seen to, as
    with Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit code."""
    try:
        with _terminated_like_interrupted():
            return run(parse_options(arguments))
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # so that the flush at exit stays quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except VicortError as error:
        print(f"vicort-run: {redact(str(error))}", file=sys.stderr)
        return error.exit_code


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(options: Options) -> int:
    """All sources at the same time; returns the highest of their exit codes."""
    output = Output(WRITERS[options.format](sys.stdout), sys.stderr, stats=options.stats)
    labels = _labels(options.sources)
    with ExitStack() as stack:
        sources = [
            stack.enter_context(_open(spec, options, output, label))
            for spec, label in zip(options.sources, labels, strict=True)
        ]
        trace = stack.enter_context(_traced(options.trace))
        engine_dir = options.engine_dir or _default_engines()
        router = QuestionRouter(options.sampling, len(sources))
        if options.serve_socket:
            stack.enter_context(QuestionSocket(options.serve_socket, router))
        context = RunContext(
            options,
            engine_dir if len(sources) == 1 else stack.enter_context(EngineSet.open(engine_dir)),
            output,
            trace,
            router,
            TypedQuestions(sys.stdin, router, output.warn) if options.typed_questions else None,
            threading.Event(),
            Session.open,
        )
        watches = [
            Watch(source, context, label) for source, label in zip(sources, labels, strict=True)
        ]
        code = watches[0].run() if len(watches) == 1 else watch_together(watches, context)
    if not any(standing.until_yes for standing in options.recurring):
        return code
    return 0 if any(watch.said_yes for watch in watches) else max(code, NEVER_YES)


def watch_together(watches: Sequence[Watch], context: RunContext) -> int:
    """Each source on a thread of its own. One that fails is warned of, and harms no other; returns
    the highest exit code."""
    codes: dict[Watch, int] = {}
    broken: list[BaseException] = []

    def run_one(watch: Watch) -> None:
        try:
            codes[watch] = watch.run()
        except BrokenPipeError as error:
            broken.append(error)
            context.stopping.set()
        except VicortError as error:
            context.output.warn(f"{watch.label}: {error}")
            codes[watch] = error.exit_code
        except BaseException as error:  # noqa: BLE001 - raised again below, by the thread that can
            broken.append(error)
            context.stopping.set()

    threads = [
        threading.Thread(target=run_one, args=(watch,), name=watch.label, daemon=True)
        for watch in watches
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            if context.stopping.wait(POLL):
                _stop(watches, threads)
                break  # a read that never ends is left behind
    except KeyboardInterrupt:
        context.stopping.set()
        _stop(watches, threads)
        raise
    if broken:
        raise broken[0]
    return max(codes.values(), default=0)


def _stop(watches: Sequence[Watch], threads: Sequence[threading.Thread]) -> None:
    """End every source at its next frame; one that gives none is waited for no longer than this."""
    for watch in watches:
        watch.source.stop()
    limit = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))


def _labels(specs: Sequence[str]) -> list[str]:
    """What tells sources apart in events: nothing for one, else their names as they may be shown,
    numbered where two are the same."""
    if len(specs) == 1:
        return [""]
    names = [redact_url(spec) for spec in specs]
    return [
        name if names.count(name) == 1 else f"{name}#{names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]


def _open(spec: str, options: Options, output: Output, label: str) -> Source:
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
        on_state=partial(output.event, source=label),
        motion=load_system(options.system).wants_motion,
        # of several, one that is not there yet holds up no other
        at_once=len(options.sources) == 1,
    )
    if options.realtime and source.live:
        source.close()
        raise ConfigError(
            f"--realtime is for files, and {source.name} is live: leave it out, or say --file"
        )
    if source.live and options.on_lag is None:
        output.warn(
            f"{source.name} looks live, and its frames wait while the pipeline is full: say "
            "--live to drop the oldest instead"
        )
    return source


def _decode(options: Options) -> Literal["auto", "cpu", "gpu"]:
    """Where frames are decoded: pixels on a GPU are of use only to engines that run there. Raises
    ConfigError if asked otherwise."""
    engine_dir = options.engine_dir or find_engine_dir(MODEL)
    on_gpu = engine_dir is not None and backend_of(engine_dir) == "tensorrt"
    if options.decode == "gpu" and not on_gpu:
        raise ConfigError(
            "--decode gpu is for engines on an NVIDIA GPU: leave it out, or build such with "
            "`vicort-build --backend tensorrt`"
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
    """The embedded model's engines; built in a process of their own if there are none, as the
    runtime knows nothing of building."""
    if found := find_engine_dir(MODEL):
        return found
    try:
        metadata.distribution("torch")
    except metadata.PackageNotFoundError as error:
        hint = (
            "`pip install 'vicort[export]'` and try again, or name an engine set with --engine-dir"
        )
        raise EngineError(
            f"no engines of the {MODEL} model are built, and building needs the export tools: "
            f"{hint}"
        ) from error
    print(
        f"vicort-run: building the engines of the {MODEL} model (once)", file=sys.stderr, flush=True
    )
    built = subprocess.run(
        [sys.executable, "-m", "vicort.export.build", MODEL], stdout=sys.stderr, check=False
    )
    if built.returncode or not (found := find_engine_dir(MODEL)):
        raise EngineError(
            f"the engines of the {MODEL} model could not be built (exit code "
            f"{built.returncode}): try `vicort-build {MODEL}`"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
