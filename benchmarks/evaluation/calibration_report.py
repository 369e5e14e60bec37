"""What `vicort-eval calibration` prints, writes and stores: from replies of a run, or from answers
of the user."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vicort.benchmarks.evaluation.answers_file import read_answers
from vicort.benchmarks.evaluation.calibration_result import CalibrationResult
from vicort.benchmarks.evaluation.calibration_text import MEASURES, printed
from vicort.benchmarks.evaluation.eval_arguments import EvalOptions
from vicort.benchmarks.evaluation.fields import digests
from vicort.benchmarks.evaluation.items import Item, Reply
from vicort.benchmarks.evaluation.rated_choices import RatedChoices, logarithms_of
from vicort.benchmarks.evaluation.reliability_picture import draw
from vicort.benchmarks.evaluation.world_choices import PARTS
from vicort.runtime.errors import ConfigError
from vicort.runtime.language.choice_calibration import (
    ChoiceCalibration,
    FittedTemperature,
    engines_of,
)
from vicort.runtime.manifest import CALIBRATION_FILE, read_manifest
from vicort.runtime.safe_text import print_safely
from vicort.runtime.written_files import write_file

REPORT, TABLE, PICTURE = "report.json", "report.txt", "reliability.png"


def rated_parts(
    items: Mapping[str, Item], replies: Iterable[Reply]
) -> dict[str, list[RatedChoices]]:
    """The questions of each part of the data set. Replies that are errors are left out.

    replies: at temperature 1.
    """
    parts: dict[str, list[RatedChoices]] = {}
    for reply in replies:
        item = items[reply.item]
        if not reply.choices:
            continue
        question = RatedChoices(
            kind=item.note["kind"],
            group=item.note["stream"],
            logarithms=logarithms_of(reply.choices),
            right=list(reply.choices).index(item.truth),
            outside=reply.outside,
        )
        parts.setdefault(item.note["part"], []).append(question)
    return parts


def report_calibration(
    options: EvalOptions,
    parts: Mapping[str, Mapping[str, list[RatedChoices]]],
    content: dict[str, Any],
    head: str,
    engine_dir: Path | None,
) -> None:
    """Print tables, and write them with a picture; store the temperature where that was asked for.

    parts: the questions of each system by part. content: of report.json so far. engine_dir: the set
    whose temperature is stored. Raises ConfigError without questions to fit on or to report on.
    """
    results = {name: CalibrationResult.of(each) for name, each in parts.items()}
    content = content | {
        "measures": MEASURES,
        "calibration": {name: result.to_json() for name, result in results.items()},
    }
    titles = {part.name: part.title for part in PARTS}
    text = "\n\n".join(
        [f"{head}\n{MEASURES}"]
        + [f"{name}: {printed(result, titles)}" for name, result in results.items()]
    )
    write_file(
        options.out / REPORT, json.dumps(content, indent=1, ensure_ascii=False) + "\n", "--out"
    )
    write_file(options.out / TABLE, text + "\n", "--out")
    draw(content, options.out / PICTURE)
    print_safely(*text.split("\n"))
    _say(f"written: {', '.join(str(options.out / name) for name in (REPORT, TABLE, PICTURE))}")
    if engine_dir is not None:
        (result,) = results.values()
        store(result, engine_dir)


def store(result: CalibrationResult, engine_dir: Path) -> None:
    """Write the temperature to an engine set. Raises ConfigError, and writes nothing, if something
    speaks against it."""
    if result.remarks:
        raise ConfigError(
            f"--store: {result.remarks[0]}: nothing is stored, fit on more or other questions"
        )
    FittedTemperature(
        engines=engines_of(engine_dir),
        temperature=result.temperature,
        questions=result.fitted_on,
        ece_before=result.reported.before.ece,
        ece_after=result.reported.after.ece,
    ).store(engine_dir)
    _say(
        f"stored: temperature {result.temperature:.3f} in {engine_dir / CALIBRATION_FILE}; "
        "sessions that are opened from now on give the probabilities of choices at it"
    )


def calibrate_answers(options: EvalOptions) -> int:
    """Calibrates answers of the user; no model runs."""
    engine_dir = options.engine_dir
    temperature = 1.0
    if engine_dir is not None:
        read_manifest(engine_dir)
        temperature = ChoiceCalibration.of_folder(engine_dir).temperature
    elif options.store:
        raise ConfigError("--store needs --engine-dir: name the engine set that gave the answers")
    found = read_answers(options.answers, temperature)
    content = {
        "conditions": {"answers": digests(options.answers), "given at temperature": temperature}
    }
    head = f"answers of {len(options.answers)} files"
    options.out.mkdir(parents=True, exist_ok=True)
    stored_in = engine_dir if options.store else None
    report_calibration(options, {"answers": found}, content, head, stored_in)
    return 0


def _say(line: str) -> None:
    print_safely(f"vicort-eval: {line}", file=sys.stderr)
