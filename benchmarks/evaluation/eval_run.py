"""vicort-eval: watch a benchmark's videos with several systems, and print its table.

options -> data set -> each video with each system -> record -> report. Results are in the record: a
second run resumes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vicort.benchmarks.evaluation import (
    etbench,
    held_out,
    ovo_bench,
    rvs,
    shapestream,
    streambench,
    streamingbench,
    videomme,
    world_choices,
)
from vicort.benchmarks.evaluation.ages import by_age, row_of
from vicort.benchmarks.evaluation.alerts_command import run_alerts
from vicort.benchmarks.evaluation.calibration_report import (
    calibrate_answers,
    rated_parts,
    report_calibration,
)
from vicort.benchmarks.evaluation.eval_arguments import JUDGED, EvalOptions, parse_options
from vicort.benchmarks.evaluation.eval_files import RECORD, write_report
from vicort.benchmarks.evaluation.evaluated_systems import declare, runnable, say, systems_of
from vicort.benchmarks.evaluation.fields import digests
from vicort.benchmarks.evaluation.figures import Figures
from vicort.benchmarks.evaluation.items import Dataset, Reply, Video
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.benchmarks.evaluation.ovo_predictions import read_predictions
from vicort.benchmarks.evaluation.own_sampling import OwnSampling
from vicort.benchmarks.evaluation.watching import Candidate, watch
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.entry_points import code_of
from vicort.runtime.errors import ConfigError, EngineError, SourceError, VicortError
from vicort.runtime.language.choice_calibration import ChoiceCalibration
from vicort.runtime.locations import find_engine_dir
from vicort.runtime.manifest import Manifest, ModelSpec, read_manifest
from vicort.runtime.policies.system import System, known_systems
from vicort.runtime.safe_text import print_safely
from vicort.runtime.standard_streams import standard_streams
from vicort.runtime.stream_statistics import percentiles

SHOWN_MISSING = 5


@standard_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line tool; returns its exit code."""
    try:
        return run(parse_options(arguments))
    except VicortError as error:
        print_safely(f"vicort-eval: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        print("vicort-eval: stopped; the same command resumes", file=sys.stderr)
        return code_of(interruption)


def run(options: EvalOptions) -> int:
    if options.predictions:
        return score_predictions(options)
    if options.answers:
        return calibrate_answers(options)
    systems = systems_of(options.systems or known_systems())
    engine_dir = options.engine_dir or find_engine_dir("tiny")
    if engine_dir is None:
        raise EngineError(
            "the tiny model has no engine set: build one with `vicort-build tiny`, or name one "
            "with --engine-dir"
        )
    manifest = read_manifest(engine_dir)
    if options.benchmark == "alerts":
        return run_alerts(options, engine_dir, manifest, systems)
    dataset = load(options, manifest.model)
    for remark in dataset.remarks:
        say(f"note: {remark}")
    unread = check_videos(dataset, options)
    options.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(options.out / RECORD, settings_of(options, dataset, manifest))
    given_at = ChoiceCalibration.of_folder(engine_dir).temperature
    with EngineSet.open(engine_dir, threads=options.threads) as engines:
        fps = "source" if options.own_sampling else options.fps
        chosen = {"fps": fps, "threads": options.threads}
        systems = runnable(engines, systems, named=bool(options.systems), **chosen)
        candidates = {name: Candidate.of(engines, each, **chosen) for name, each in systems.items()}
        declare(systems, ledger)
        unread |= watch_all(dataset, options, candidates, ledger, given_at)
    report(options, dataset, manifest, systems, ledger, unread, engine_dir)
    return 0


def load(options: EvalOptions, model: ModelSpec) -> Dataset:
    """The data set that was asked for, or the first videos of it."""
    if options.benchmark == "shapestream":
        fps = None if options.fps is None else options.fps
        if fps == "source":
            raise ConfigError("--fps source: ages count units, so give shapestream a rate")
        if options.held_out:
            dataset = held_out.load(options.cache, options.streams, say)
            return dataset.first(options.limit) if options.limit else dataset
        dataset = shapestream.load(
            model, options.streams, options.ages, options.age_in, options.cache, fps, say
        )
    elif options.benchmark == "calibration":
        dataset = world_choices.load(options.cache, options.streams, say)
    elif options.benchmark == "streamingbench":
        dataset = streamingbench.load(options.files, options.videos)
    elif options.benchmark == "ovo-bench":
        dataset = ovo_bench.load(options.files, options.videos, options.tasks)
    elif options.benchmark == "streambench":
        dataset = streambench.load(options.files, options.videos)
    elif options.benchmark == "etbench":
        dataset = etbench.load(options.files, options.videos, options.sources)
    elif options.benchmark == "videomme":
        dataset = videomme.load(options.files, options.videos)
    else:
        dataset = rvs.load(options.files, options.videos, options.image_fps)
    if len(dataset.items) != sum(len(video.items) for video in dataset.videos):
        raise ConfigError(
            f"{', '.join(map(str, options.files))}: a file is given twice, or two have the same "
            "name: give each file once"
        )
    if not dataset.videos:
        raise ConfigError(
            f"{', '.join(map(str, options.files))}: it has no questions: give the benchmark's data "
            "file"
        )
    return dataset.first(options.limit) if options.limit else dataset


def check_videos(dataset: Dataset, options: EvalOptions) -> dict[str, str]:
    """Missing videos with the reason, warned about once. Raises ConfigError if all are missing, or,
    if strict, any."""
    missing = dataset.missing
    where = ", ".join(map(str, options.videos))
    if missing:
        shown = ", ".join(missing[:SHOWN_MISSING]) + (", …" if len(missing) > SHOWN_MISSING else "")
        line = f"{len(missing)} of {len(dataset.videos)} videos are not in {where}: {shown}"
        if options.strict or len(missing) == len(dataset.videos):
            raise ConfigError(
                f"{line}: give their folders with --videos"
                + (", or leave out --strict" if options.strict else "")
            )
        say(f"warning: {line}")
    return dict.fromkeys(missing, "not there")


def sampling_of(options: EvalOptions, dataset: Dataset) -> OwnSampling | None:
    """None = the rate of the options. Raises ConfigError if the benchmark's own is not known."""
    if not options.own_sampling:
        return None
    if dataset.own_sampling is None:
        raise ConfigError(
            f"--sampling own: no public loader of {dataset.name} chooses frames by the question: "
            "leave it out"
        )
    return dataset.own_sampling


def settings_of(options: EvalOptions, dataset: Dataset, manifest: Manifest) -> dict[str, Any]:
    """What answers depend on, systems apart."""
    own = sampling_of(options, dataset)
    return {
        "benchmark": dataset.name,
        **dataset.settings,
        "protocol": options.carry,
        "context_s": None if options.context is None else float(options.context),
        "fps": f"own: {own.words}" if own else str(options.fps or manifest.model.fps),
        "max_tokens": options.max_tokens or dataset.max_tokens,
        "model": manifest.model.name,
        "precision": manifest.precision,
        **({} if manifest.kv == "float" else {"kv": manifest.kv}),  # as earlier records have it
        "backend": manifest.backend,
        "checkpoint": manifest.checkpoint,
        "image": manifest.model.frame_size,
        "chunk_frames": manifest.model.chunk_frames,
    }


def watch_all(
    dataset: Dataset,
    options: EvalOptions,
    candidates: Mapping[str, Candidate],
    ledger: Ledger,
    given_at: float = 1.0,
) -> dict[str, str]:
    """Each video with each system, unless the record has it already; returns the videos that cannot
    be read, and why.

    given_at: temperature of the sessions' choices; the record has those at temperature 1.
    """
    unread: dict[str, str] = {}
    sampling = sampling_of(options, dataset)
    most = options.max_tokens or dataset.max_tokens
    for number, video in enumerate(dataset.videos, 1):
        for name, candidate in candidates.items():
            if video.path is None or video.name in unread or (name, video.name) in ledger.watched:
                continue
            started = time.monotonic()
            try:
                watched = watch(video, candidate, options.carry, options.context, most, sampling)
            except SourceError as error:
                if options.strict:
                    raise
                unread[video.name] = str(error)
                say(f"warning: {error}")
                continue
            watched.replies = [reply.at_temperature_1(given_at) for reply in watched.replies]
            ledger.add(name, video.name, watched)
            say(
                f"[{number}/{len(dataset.videos)}] {video.name}, {name}: {len(watched.replies)} "
                f"asked, {time.monotonic() - started:.1f} s"
            )
    return unread


def report(
    options: EvalOptions,
    dataset: Dataset,
    manifest: Manifest,
    systems: Mapping[str, System],
    ledger: Ledger,
    unread: Mapping[str, str],
    engine_dir: Path | None = None,
) -> None:
    """Print the table, and write it with its conditions beside the record."""
    from vicort.benchmarks.common.machine import conditions

    seen = [video for video in dataset.videos if video.name not in unread]
    replies = {
        name: [reply for video in seen for reply in ledger.watched[name, video.name].replies]
        for name in systems
    }
    items = {item.id: item for video in seen for item in video.items}
    figures = Figures.of(dataset, items, replies, options.judge)
    settings = settings_of(options, dataset, manifest) | {"threads": options.threads}
    head = {
        "conditions": conditions() | settings | dataset.about,
        "judge": options.judge.name if dataset.name in JUDGED else None,
        "remarks": list(dataset.remarks),
        "videos": {"watched": len(seen), "of": len(dataset.videos), "left out": dict(unread)},
        "systems": {
            name: json.loads(json.dumps(_about(name, seen, ledger, replies[name])))
            for name in systems
        },
    }
    written = head | figures.to_json()
    if dataset.name == "shapestream":
        written["accuracy"] = by_age(
            row_of(name, items[reply.item], reply)
            for name, each in replies.items()
            for reply in each
        )
    text = _text(figures, settings, head)
    if dataset.name == "calibration":
        parts = {name: rated_parts(items, each) for name, each in replies.items()}
        for about in written["systems"].values():
            del about["summaries"]  # of hundreds of files
        report_calibration(options, parts, written, text, engine_dir if options.store else None)
    else:
        write_report(options, written, text)


def score_predictions(options: EvalOptions) -> int:
    """Scores OVO-Bench's result files; no model runs."""
    dataset = ovo_bench.load(options.files, options.videos, options.tasks)
    predictions = read_predictions(dataset.items, options.files, options.predictions)
    dataset = replace(dataset, remarks=(*dataset.remarks, *predictions.remarks))
    replies = {"predictions": list(predictions.replies.values())}
    figures = Figures.of(dataset, dataset.items, replies, options.judge)
    head = {
        "conditions": dataset.about | {"predictions": digests(options.predictions)},
        "remarks": list(dataset.remarks),
    }
    said = [f"{dataset.about['benchmark']}: predictions of {len(options.predictions)} files"]
    text = "\n".join([*said, *figures.head()]) + "\n\n" + figures.printed()
    options.out.mkdir(parents=True, exist_ok=True)
    write_report(options, head | figures.to_json(), text)
    return 0


def _about(
    name: str, seen: Sequence[Video], ledger: Ledger, replies: Sequence[Reply]
) -> dict[str, Any]:
    """What a system is, what went wrong with it, and how the last pass over each video went."""
    watched = {video.name: ledger.watched[name, video.name] for video in seen}
    answered = [reply for reply in replies if not reply.error]
    return {
        "is": ledger.systems[name],
        "asked": len(replies),
        "ttft_ms": percentiles([reply.ttft_ms for reply in answered]),
        "tokens_read": fmean(reply.tokens_read for reply in answered) if answered else None,
        "errors": [f"{reply.item}: {reply.error}" for reply in replies if reply.error],
        "warnings": {video: each.warnings for video, each in watched.items() if each.warnings},
        "summaries": {video: each.summary for video, each in watched.items()},
    }


def _text(figures: Figures, settings: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    videos = head["videos"]
    shown = ("protocol", "context_s", "fps", "max_tokens", "model", "precision", "backend", "image")
    benchmark = figures.dataset.about["benchmark"]
    lines = [
        f"{benchmark}: {videos['watched']} of {videos['of']} videos",
        ", ".join(f"{key} {settings[key]}" for key in shown if settings[key] is not None),
        *figures.head(),
    ]
    if head["judge"]:
        lines.append(f"judge: {head['judge']}")
    for name, about in head["systems"].items():
        if about["errors"]:
            lines.append(
                f"{name}: {len(about['errors'])} of {about['asked']} askings failed and count as "
                f"wrong; first: {about['errors'][0]}"
            )
    return "\n".join(lines) + "\n\n" + figures.printed()


if __name__ == "__main__":
    sys.exit(main())
