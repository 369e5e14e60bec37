"""What the studies share: options, sessions that have seen a file, and a result in JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import System, load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source
from vicort.runtime.written_files import write_file


def study_parser(
    description: str | None, streams: int | None = None, out: Path | None = None
) -> argparse.ArgumentParser:
    """Options --engine-dir, --out (default: no file) and, with a default for it, --streams."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine-dir",
        type=Path,
        default=Path("engines/tiny-fp32-openvino"),
        help="engine set (default: %(default)s)",
    )
    if streams is not None:
        words = "streams of the synthetic world (default: %(default)s)"
        parser.add_argument("--streams", type=int, default=streams, help=words)
    words = f"JSON file for the result{' (default: %(default)s)' * (out is not None)}"
    parser.add_argument("--out", type=Path, default=out, help=words)
    return parser


def finish(result: Any, out: Path | None, shown: Any = None) -> int:
    """Prints `shown`, or the whole result, and writes the result to `out`; returns exit code 0."""
    print(json.dumps(result if shown is None else shown, indent=1))
    if out:
        write_file(out, json.dumps(result, indent=1) + "\n", "--out")
    return 0


def with_budget(name: str, device_mb: float = 512, host_mb: float = 1024) -> System:
    """A system with a budget that does not follow the machine."""
    return load_system(name).with_(memory={"device_mb": device_mb, "host_mb": host_mb})


def session_after(path: Path | str, engines: EngineSet, system: System, **options: Any) -> Session:
    """A session that has seen a whole file. options: the session's."""
    session = Session(engines, system, **options)
    with open_source(str(path)) as source:
        for frame in source.frames(session.wants):
            session.push(frame)
    session.finish(source.ending)
    return session
