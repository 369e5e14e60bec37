"""vicort-eval alerts: watch the streams, choose each system's rule, and print the table."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from vicort.benchmarks.common.machine import conditions
from vicort.benchmarks.evaluation.alert_arguments import ALERT_FPS
from vicort.benchmarks.evaluation.alert_evaluation import AlertPlan, AlertWatcher
from vicort.benchmarks.evaluation.alert_readings import Standing
from vicort.benchmarks.evaluation.alert_report import AlertFigures, table
from vicort.benchmarks.evaluation.eval_arguments import EvalOptions
from vicort.benchmarks.evaluation.eval_files import RECORD, write_report
from vicort.benchmarks.evaluation.evaluated_systems import declare, runnable, say
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.language.choice_calibration import ChoiceCalibration
from vicort.runtime.manifest import Manifest
from vicort.runtime.policies.system import System

SECONDS = 3600.0  # of a stream


def run_alerts(
    options: EvalOptions, engine_dir: Path, manifest: Manifest, systems: Mapping[str, System]
) -> int:
    """Standing alerts over hours of the synthetic world."""
    from vicort.export.tiny.world import SHAPES

    plan = AlertPlan(
        options.hours,
        options.validation_hours,
        options.seed,
        Standing(SHAPES, options.ask_every, options.window),
        options.fps if isinstance(options.fps, Fraction) else ALERT_FPS,
        options.cache,
        SECONDS,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    settings = plan.settings(manifest)
    temperature = ChoiceCalibration.of_folder(engine_dir).temperature
    if temperature != 1:
        settings["temperature"] = temperature
    ledger = Ledger(options.out / RECORD, settings)
    with EngineSet.open(engine_dir, threads=options.threads) as engines:
        fitted = {name: plan.fitted(each) for name, each in systems.items()}
        fitted = runnable(engines, fitted, named=True, fps=plan.fps, threads=options.threads)
        declare(fitted, ledger)
        watcher = AlertWatcher(plan, engines, fitted, ledger, options.threads, say)
        watcher.watch_all()
    figures = {name: AlertFigures.of(name, each, plan, watcher) for name, each in fitted.items()}
    head = {
        "conditions": conditions() | settings | {"threads": options.threads},
        "hours": {"validation": options.validation_hours, "test": options.hours},
        "systems": ledger.systems,
    }
    content = head | {"results": {name: each.to_json() for name, each in figures.items()}}
    write_report(options, content, table(figures))
    return 0
