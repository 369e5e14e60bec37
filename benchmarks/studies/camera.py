"""A simulated camera: an hour of stream time through one session with questions, a part at true 1x,
and the number of streams that run at 1x.

    python -m vicort.benchmarks.studies.camera --engine-dir engines/tiny-fp32-openvino

The hour is compressed: the camera's clock runs `speed` times as fast as the machine's, and nothing
else changes. Each of its 90,000 frames has a due time, at which the session is asked whether it
wants the frame; those it wants (2 a second of stream time) are pushed as RGB arrays. So the
pipeline does the whole hour's work, at `speed` times the load of one camera. Decoding is only in
part `streams`. Lag is in real milliseconds: from the due time of a chunk's last frame until the
chunk is in memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vicort.benchmarks.common.long_stream import rss_mb
from vicort.benchmarks.common.machine import conditions, now
from vicort.benchmarks.common.spread import percentiles
from vicort.benchmarks.common.study import study_parser
from vicort.benchmarks.common.workload import QUESTIONS, Workload, bench_system, describe_system
from vicort.benchmarks.studies import camera_streams
from vicort.benchmarks.studies.camera_picture import draw
from vicort.runtime.cli.lag import LATE
from vicort.runtime.core import ChunkEvent, Event, Frame, Question
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError
from vicort.runtime.session import Session
from vicort.runtime.written_files import write_file

CAMERA_FPS = 25
DEVICE_MB, HOST_MB = 20.0, 4.0  # budgets that fill up within the first tenth of the hour
PARTS = ("hour", "real-time", "streams")


@dataclass(frozen=True)
class Plan:
    hour_s: float = 3600  # seconds of stream time
    speed: float = 30  # stream seconds a second
    real_time_s: float = 48
    ask_every_s: float = 20  # stream seconds
    rows: int = 60  # points of the curves
    streams_s: float = 40
    streams: tuple[int, ...] = (32, 64, 128)


QUICK = Plan(hour_s=120, speed=40, real_time_s=3, ask_every_s=1, rows=10, streams_s=4, streams=(2,))


class TimedCamera:
    """Pushes 25 frames a second of stream time, by a clock `speed` times as fast as real time."""

    def __init__(self, speed: float) -> None:
        self.speed, self.workload = speed, Workload()
        self._began = 0.0  # monotonic seconds

    def film(self, session: Session, seconds: float, each: Callable[[Fraction], None]) -> int:
        """Pushes every frame at its due time, after a call of `each` with its stream time. Returns
        the number of frames later than LATE."""
        late, self._began = 0, time.monotonic()
        for index in range(round(seconds * CAMERA_FPS)):
            at = Fraction(index, CAMERA_FPS)
            delay = self.moment(at) - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            late += delay < -LATE
            each(at)
            if session.wants(at):
                session.push(
                    Frame(self.workload.frame(int(at * self.workload.fps)).image, at, index)
                )
        return late

    def moment(self, at: Fraction) -> float:
        """When a frame of that time is due, in monotonic seconds."""
        return self._began + float(at) / self.speed


class Record:
    """Lag of chunks, answers and memory of a stream, in rows of equal stream time."""

    def __init__(self, camera: TimedCamera, seconds: float, rows: int) -> None:
        self._camera = camera
        self._width = seconds / rows
        self._lock = threading.Lock()
        self.lags: dict[int, list[float]] = defaultdict(list)
        self.memory: dict[int, dict[str, Any]] = {}
        self.asked: list[Future] = []

    def event(self, event: Event) -> None:
        if isinstance(event, ChunkEvent):
            lag = 1e3 * (time.monotonic() - self._camera.moment(event.end))
            with self._lock:
                self.lags[int(float(event.end) / self._width)].append(lag)

    def remember(self, session: Session, at: Fraction) -> None:
        """Memory, once a row."""
        row = int(float(at) / self._width)
        if row not in self.memory:
            self.memory[row] = {"rss_mb": rss_mb(), "pages": session.summary().pages}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "from_s": round(row * self._width, 3),
                "lag_ms": percentiles(self.lags[row], 1),
                **self.memory[row],
            }
            for row in sorted(self.memory)
            if self.lags[row]
        ]


def film(engines: EngineSet, seconds: float, speed: float, plan: Plan) -> dict[str, Any]:
    """One stream with questions; its curves, and its first against its last tenth."""
    camera = TimedCamera(speed)
    record = Record(camera, seconds, plan.rows)
    system = bench_system(device_mb=DEVICE_MB, host_mb=HOST_MB)
    before = now()
    with Session(engines, system, on_lag="drop-oldest", on_event=record.event) as session:
        late = camera.film(
            session, seconds, lambda at: _each(session, record, at, plan.ask_every_s)
        )
        session.finish()
        answers = [asked.result() for asked in record.asked]
        summary = session.summary()
    rows = record.rows()
    return {
        "stream_s": seconds,
        "speed": speed,
        "camera_frames": round(seconds * CAMERA_FPS),
        "camera_frames_a_second": CAMERA_FPS * speed,
        "frames": summary.frames,
        "frames_a_second": round(summary.fps, 1),
        "dropped": summary.dropped,
        "late_camera_frames": late,
        "chunks": summary.chunks,
        "asked": len(record.asked),
        "answered": sum(bool(answer.text) for answer in answers),
        "ttft_ms": percentiles([answer.ttft_ms for answer in answers]),
        "stage_ms": {stage: round(ms, 1) for stage, ms in summary.stage_ms.items()},
        "fork_ms": {stage: round(ms, 1) for stage, ms in summary.fork_ms.items()},
        "lag_ms": percentiles([lag for lags in record.lags.values() for lag in lags], 1),
        "tenths": _tenths(record, rows, plan.rows),
        "load_average_before": before["load_average"],
        "system": describe_system(system),
        "rows": rows,
    }


def _each(session: Session, record: Record, at: Fraction, ask_every_s: float) -> None:
    """Before a frame: samples memory, and asks a question if it is due."""
    record.remember(session, at)
    if at >= (len(record.asked) + 1) * ask_every_s:
        text = QUESTIONS[len(record.asked) % len(QUESTIONS)]
        record.asked.append(session.submit(Question(text, session.now)))


def _tenths(record: Record, rows: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """The first tenth of the stream against the last."""
    tenth = max(1, count // 10)
    sides = {"first": range(tenth), "last": range(count - tenth, count)}
    result: dict[str, Any] = {
        side: {
            "lag_ms": percentiles([lag for row in numbers for lag in record.lags[row]], 1),
            "rss_mb_at_end": record.memory[numbers[-1]]["rss_mb"],
            "pages_at_end": record.memory[numbers[-1]]["pages"],
        }
        for side, numbers in sides.items()
        if any(record.lags[row] for row in numbers)
    }
    if len(result) == len(sides):
        result["lag_p50_change"] = round(
            result["last"]["lag_ms"]["p50"] / result["first"]["lag_ms"]["p50"] - 1, 3
        )
        result["rss_mb_change"] = round(
            result["last"]["rss_mb_at_end"] - result["first"]["rss_mb_at_end"], 1
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = study_parser(__doc__, out=Path("benchmarks/results/camera.json"))
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="may be repeated; other parts of --out are kept",
    )
    parser.add_argument("--quick", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    try:
        result = _measured(options.engine_dir, options.only or PARTS, plan, options.out)
    except VicortError as error:
        print(f"camera: {error}", file=sys.stderr)
        return error.exit_code
    picture = draw(result, options.out.with_suffix(".png"))
    print("written:", options.out, picture or "(no picture: it needs the hour or the streams)")
    return 0


def _measured(engine_dir: Path, parts: Sequence[str], plan: Plan, out: Path) -> dict[str, Any]:
    """Measures the parts in order; each is written to `out` when it is done."""
    result: dict[str, Any] = {
        "conditions": conditions(),
        "engine_set": engine_dir.name,
        "parts": {},
    }
    if out.is_file() and set(parts) != set(PARTS):
        result["parts"] = json.loads(out.read_text())["parts"]
    for name in parts:
        print(f"{name} …", file=sys.stderr, flush=True)
        result["parts"][name] = now() | _part(name, engine_dir, plan)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(result, indent=1) + "\n", "--out")
    return result


def _part(name: str, engine_dir: Path, plan: Plan) -> dict[str, Any]:
    if name == "streams":
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "camera.mp4"
            camera_streams.write_clip(clip, plan.streams_s)
            return camera_streams.measure(engine_dir, clip, plan.streams_s, plan.streams)
    with EngineSet.open(engine_dir) as engines:
        if name == "hour":
            return film(engines, plan.hour_s, plan.speed, plan)
        return film(engines, plan.real_time_s, 1, plan)


if __name__ == "__main__":
    sys.exit(main())
