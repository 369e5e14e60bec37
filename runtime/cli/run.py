"""vicort-run: watch video sources and answer questions about them.

The command line is checked before any engine is loaded.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

from vicort.runtime.assembly import check_system
from vicort.runtime.child_command import run_child
from vicort.runtime.cli.alert_run import AlertRun
from vicort.runtime.cli.arguments import parse_options
from vicort.runtime.cli.info import EngineInfo, budget_text, info, lines
from vicort.runtime.cli.loading_bar import loading_bar
from vicort.runtime.cli.moments import check_moments
from vicort.runtime.cli.other_versions import outdated_text, refuse_other_schema
from vicort.runtime.cli.output import Output
from vicort.runtime.cli.question_router import QuestionRouter, TypedQuestions
from vicort.runtime.cli.question_socket import QuestionSocket
from vicort.runtime.cli.run_options import Options
from vicort.runtime.cli.service_status import ServiceStatus
from vicort.runtime.cli.watch import NEVER_YES, POLL, RunContext, Watch
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.devices.preprocess import import_dali
from vicort.runtime.devices.trace import Trace
from vicort.runtime.engines.bfloat16 import COST, computes_in_float32
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.engines.reference import check_reference
from vicort.runtime.entry_points import (
    BEFORE_LEAVING,
    EXIT_CODES,
    Terminated,
    TerminatedLikeInterrupted,
    code_of,
)
from vicort.runtime.errors import (
    ConfigError,
    EngineError,
    QuestionError,
    SourceError,
    VicortError,
)
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.log_options import log_to_stderr
from vicort.runtime.manifest import (
    Manifest,
    backend_of,
    is_other_schema,
    precision_of,
    read_manifest,
)
from vicort.runtime.memory.budget import MemoryRequest
from vicort.runtime.packages import install_command
from vicort.runtime.redact import redact_url
from vicort.runtime.rendering.notes import Notes
from vicort.runtime.safe_text import print_safely
from vicort.runtime.session import Session
from vicort.runtime.sources import Source, open_source
from vicort.runtime.sources.images import name_of
from vicort.runtime.sources.opening import Decode
from vicort.runtime.sources.sampler import known_rate
from vicort.runtime.standard_streams import (
    READER_GONE,
    exit_at_once,
    leave_quietly,
    standard_streams,
)

MODEL = "tiny"  # used without --engine-dir, and built if it is missing
EMBEDDED = (
    "the embedded {model} model answers ({folder}), which knows simple shapes and a few words: "
    "name another engine set with --engine-dir"
)
STOP_SECONDS = 1.0  # maximum wait for a source to stop
NO_STDOUT = "stdout is closed, so events are written nowhere: send them to a file or to /dev/null"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool and return its exit code. As a program that a signal ended, it ends
    here at once."""
    with standard_streams() as closed:
        code, by_signal = _main(arguments, closed)
        if by_signal and arguments is None:
            exit_at_once(code)
        return code


def _main(arguments: Sequence[str] | None, closed: Sequence[str]) -> tuple[int, bool]:
    """The exit code, and whether a signal ended the run."""
    try:
        with TerminatedLikeInterrupted():
            options = parse_options(arguments)
            if "stdout" in closed:
                print_safely(f"vicort-run: warning: {NO_STDOUT}", file=sys.stderr)
            with log_to_stderr(options.log_level), _sigterm_ends(options.success_on_sigterm):
                return run(options), False
        return 0, True  # ended by SIGTERM
    except KeyboardInterrupt as interruption:
        return code_of(interruption), True
    except BrokenPipeError:
        leave_quietly(sys.stdout)  # it is flushed again at exit, which must not print an error
        return READER_GONE, False
    except VicortError as error:
        print_safely(f"vicort-run: {error}", file=sys.stderr)
        return error.exit_code, False


@contextmanager
def _sigterm_ends(well: bool) -> Iterator[None]:
    """Within this context SIGTERM is an end like any other, if `well`."""
    before = EXIT_CODES[signal.SIGTERM]
    EXIT_CODES[signal.SIGTERM] = 0 if well else before
    try:
        yield
    except Terminated:
        if not well:
            raise
    finally:
        EXIT_CODES[signal.SIGTERM] = before


def run(options: Options) -> int:
    """Run all sources at the same time and return the highest of their exit codes."""
    if options.show_system:
        return show_system(options)
    if options.dry_run:
        return show_plan(options)
    output = Output(WRITERS[options.format](sys.stdout), sys.stderr, stats=options.stats)
    labels = _labels(options)
    alerts = AlertRun(options, options.alerts, output) if options.alerts else None
    notes = Notes() if options.render else None
    with ExitStack() as stack:
        sources, failed = _open_all(options, output, labels, stack)
        trace = stack.enter_context(_traced(options.trace))
        router = QuestionRouter(options.sampling, len(sources), options.form)
        if alerts:  # before engines are built, which takes long
            stack.enter_context(alerts.delivering(sources))
        if options.serve_socket:
            stack.enter_context(QuestionSocket(options.serve_socket, router))
        engine_dir = options.engine_dir or _default_engines(options.log_level)
        refuse_other_schema(engine_dir)
        if not options.engine_dir:
            output.tell(EMBEDDED.format(model=MODEL, folder=engine_dir))
        if computes_in_float32(backend_of(engine_dir), precision_of(engine_dir)):
            output.warn(COST)
        request = _memory_request(options)
        context = RunContext(
            options,
            stack.enter_context(_open_engines(engine_dir, options, request, output)),
            request,
            output,
            trace,
            router,
            TypedQuestions(sys.stdin, router, output.warn) if options.typed_questions else None,
            threading.Event(),
            stack.enter_context(_told_to_systemd(output)),
            Session.open,
            notes,
        )
        if alerts:
            watches = [
                alerts.watch(source, labels.index(label), context, label)
                for label, source in sources.items()
            ]
        else:
            watches = [Watch(source, context, label) for label, source in sources.items()]
        code = watches[0].run() if len(watches) == 1 else watch_together(watches, context)
        code = max(code, failed)
    if notes:
        from vicort.runtime.cli.video_output import write_video  # late: imports Pillow

        write_video(options, notes, output)
    if not any(each.until_yes for each in options.recurring):
        return code
    return 0 if any(watch.said_yes for watch in watches) else max(code, NEVER_YES)


@contextmanager
def _told_to_systemd(output: Output) -> Iterator[ServiceStatus]:
    status = ServiceStatus.of_environment(output.warn)
    try:
        yield status
    finally:
        status.stopping()


def show_system(options: Options) -> int:
    """Print the chosen system as a file for --system."""
    budgets = {"device_mb": options.device_mb, "host_mb": options.host_mb}
    system = options.chosen_system.with_(
        memory={key: value for key, value in budgets.items() if value is not None}
    )
    if options.preset:
        print_safely(f"# preset {options.preset}")
    print_safely(*system.to_yaml().splitlines())
    return 0


def show_plan(options: Options) -> int:
    """Print what a run would load and the budget of its sessions; refuse what it would refuse, but
    for sources, which are not opened."""
    folder = options.engine_dir or find_engine_dir(MODEL)
    if folder and not options.engine_dir and is_other_schema(folder):
        print_safely(outdated_text(folder))
        folder = None
    if folder is None:
        print(f"the engines of the {MODEL} model would be built first, by `vicort-build {MODEL}`")
        _print_preset(options)
        return 0
    refuse_other_schema(folder)
    request = _memory_request(options)
    found = info(folder, (), request)
    sources = len(options.sources)
    plans = {f", for each of {sources} sources" if sources > 1 else "": options}
    if options.streams:
        names = (f", for stream {name}" for name in options.streams)
        plans = dict(zip(names, options.of_sources(), strict=True))
    planned = [
        line for whose, own in plans.items() for line in _plan(own, whose, folder, found, request)
    ]
    if found.missing:
        raise EngineError(f"{folder} does not run here: {found.missing}")
    print_safely(*lines(found))
    _print_preset(options)
    print_safely(*planned)
    if doubt := _speech_doubt(options, read_manifest(folder).build_command):
        print_safely(f"  {'warning':11} {doubt}")
    return 0


def _plan(
    own: Options, whose: str, folder: Path, found: EngineInfo, request: MemoryRequest
) -> list[str]:
    """What a source would take. whose: says which one."""
    system = own.chosen_system
    fitted = check_system(
        system,
        folder,
        read_manifest(folder),
        found.machine,
        request,
        own.system_prompt,
        known_rate(own.fps),
    )
    rate = None if own.fps == "source" else float(own.fps or system.frame_rate(found.fps))
    plan = [
        f"  {'system':11} {system.name}{whose}",
        f"  {'budget':11} {budget_text(fitted.event(rate))}",
    ]
    return [*plan, *([f"  {'':11} {fitted.given_up}"] if fitted.given_up else [])]


def _speech_doubt(options: Options, build_command: str) -> str:
    system = options.chosen_system
    return system.speaks.doubt(system.name, build_command)


def _print_preset(options: Options) -> None:
    if options.preset:
        print(f"  {'preset':11} {options.preset}")


def _memory_request(options: Options) -> MemoryRequest:
    return MemoryRequest(options.device_mb, options.host_mb, options.sessions, options.memory_share)


def _open_engines(
    folder: Path, options: Options, request: MemoryRequest, output: Output
) -> EngineSet:
    """Engines for all sessions. What they would refuse is refused before engines are loaded."""

    def check(manifest: Manifest, machine: MachineMemory) -> None:
        if doubt := _speech_doubt(options, manifest.build_command):
            output.warn(doubt)
        for each in {own.chosen_system.name: own for own in options.of_sources()}.values():
            prompt, fps = each.system_prompt, known_rate(each.fps)
            check_system(each.chosen_system, folder, manifest, machine, request, prompt, fps)

    with loading_bar(sys.stderr) as progress:
        engines = EngineSet.open(
            folder,
            threads=options.threads,
            check=check,
            progress=progress,
            meanwhile=import_dali,
        )
    if options.verify_engines:
        check_reference(engines)
    return engines


def watch_together(watches: Sequence[Watch], context: RunContext) -> int:
    """Run each source on its own thread and return the highest exit code.

    A source that fails is reported as a warning, and the others continue.
    """
    codes: dict[Watch, int] = {}
    broken: list[BaseException] = []

    def run_one(watch: Watch) -> None:
        try:
            codes[watch] = watch.run()
        except BrokenPipeError as error:
            broken.append(error)
            context.stopping.set()
        except VicortError as error:
            context.output.warn(f"{watch.label}: {error}", watch.label)
            codes[watch] = error.exit_code
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            broken.append(error)
            context.stopping.set()

    threads = [
        threading.Thread(target=run_one, args=(watch,), name=watch.label, daemon=True)
        for watch in watches
    ]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if context.stopping.wait(POLL):
                _stop(watches, threads)
                break  # a read that does not return is abandoned
    except KeyboardInterrupt:
        context.stopping.set()
        _stop(watches, threads)
        raise
    if broken:
        raise broken[0]
    return max(codes.values(), default=0)


def _stop(watches: Sequence[Watch], threads: Sequence[threading.Thread]) -> None:
    """Stop every source at its next frame. Wait at most STOP_SECONDS for sources that deliver
    none."""
    for watch in watches:
        watch.source.stop()
    limit = time.monotonic() + STOP_SECONDS
    for thread in threads:
        if thread.ident is not None:  # it was started
            thread.join(max(0.0, limit - time.monotonic()))


def _labels(options: Options) -> list[str]:
    """The source labels in events: "" for a single source, otherwise names of streams, or redacted
    names, with a number where two names are the same."""
    if len(options.sources) == 1:
        return [""]
    if options.streams:
        return list(options.streams)
    names = [redact_url(name_of(spec)) for spec in options.sources]
    return [
        name if names.count(name) == 1 else f"{name}#{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _open_all(
    options: Options, output: Output, labels: Sequence[str], stack: ExitStack
) -> tuple[dict[str, Source], int]:
    """The sources by label, and an exit code: of several, a URL that cannot be opened is a warning,
    and the others run. Raises SourceError for anything else, or if none is left."""
    opened: dict[str, Source] = {}
    failure: SourceError | None = None
    for own, spec, label in zip(options.of_sources(), options.sources, labels, strict=True):
        try:
            opened[label] = stack.enter_context(_open(spec, own, output, label))
        except SourceError as error:
            if not label or not isinstance(spec, str) or "://" not in spec:
                raise
            failure = error
            output.warn(f"{label}: {error}", label)
    if failure and not opened:
        raise failure
    return opened, failure.exit_code if failure else 0


def _open(spec: str | tuple[str, ...], options: Options, output: Output, label: str) -> Source:
    source = open_source(
        spec,
        **options.reading,
        live=options.live,
        image_fps=options.image_fps,
        warn=partial(output.warn, source=label),
        decode=_decode(options),
        rtsp_transport=options.rtsp_transport,
        on_state=partial(output.event, source=label),
        motion=options.chosen_system.wants_motion,
        # with several sources, one that is not available yet must not delay the others
        at_once=len(options.sources) == 1,
    )
    if options.realtime and source.live:
        source.close()
        raise ConfigError(
            f"--realtime is for files, and {source.name} is live: leave --realtime out, or use "
            "--file"
        )
    if options.render and source.live:
        from vicort.runtime.cli.video_check import cannot_be_read_twice  # late: imports Pillow

        source.close()
        raise cannot_be_read_twice(source.name)
    try:
        for question in options.questions:
            check_moments(question, source)
    except QuestionError:
        source.close()
        raise
    if source.live and options.on_lag is None and not options.alerts:
        output.warn(
            f"{source.name} looks live, and its frames wait while the pipeline is full: use "
            "--live to drop the oldest frames instead",
            label,
        )
    return source


def _decode(options: Options) -> Decode:
    """Where to decode frames. Only engines on a GPU can read frames in GPU memory.

    Raises ConfigError for --decode gpu with other engines.
    """
    engine_dir = options.engine_dir or find_engine_dir(MODEL)
    on_gpu = engine_dir is not None and backend_of(engine_dir) == "tensorrt"
    if options.alerts:  # whose masks and evidence need pictures in host memory
        return "cpu"
    if options.decode == "gpu" and not on_gpu:
        raise ConfigError(
            "--decode gpu needs engines for an NVIDIA GPU: leave it out, or build them with "
            "`vicort-build --backend tensorrt`"
        )
    return options.decode if on_gpu else "cpu"


@contextmanager
def _traced(path: Path | None) -> Iterator[Trace | None]:
    """A trace that is written at the end, also after an error, unless it is empty."""
    if path is None:
        yield None
        return
    trace = Trace()

    def write() -> None:
        if trace.kept:
            trace.write(path)

    BEFORE_LEAVING.append(write)
    try:
        yield trace
    finally:
        BEFORE_LEAVING.remove(write)
        write()


def _default_engines(log_level: str | None) -> Path:
    """The engines of the embedded model. They are built in a child process if they are missing or
    of another schema, because the runtime does not import the export tools."""
    found = find_engine_dir(MODEL)
    if found and not is_other_schema(found):
        return found
    if found:
        print_safely(f"vicort-run: {outdated_text(found)}", file=sys.stderr)
    try:
        metadata.distribution("torch")
    except metadata.PackageNotFoundError as error:
        hint = (
            f"`{install_command('export')}` and try again, or name an engine set with --engine-dir"
        )
        raise EngineError(
            f"no engines of the {MODEL} model are built, and building needs the export tools: "
            f"{hint}"
        ) from error
    print(
        f"vicort-run: building the engines of the {MODEL} model (once)", file=sys.stderr, flush=True
    )
    command = [sys.executable, "-m", "vicort.export.build", MODEL]
    command += ["--log-level", log_level] if log_level else []
    built = run_child(command, stdout=sys.stderr)
    if built.returncode or not (found := find_engine_dir(MODEL)):
        raise EngineError(
            f"the engines of the {MODEL} model could not be built (exit code "
            f"{built.returncode}): try `vicort-build {MODEL}`"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
