"""vicort-eval alerts from its command line to its report, on streams of half a minute."""

from __future__ import annotations

import json
from contextlib import contextmanager
from fractions import Fraction

import pytest

from vicort.benchmarks.evaluation import alert_evaluation, alert_streams, alerts_command, eval_run
from vicort.benchmarks.evaluation.alert_readings import Readings, hear_alerts
from vicort.benchmarks.evaluation.alert_streams import make_alert_stream
from vicort.benchmarks.evaluation.eval_arguments import parse_options
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.export.tiny import looks
from vicort.export.tiny.looks import Look, look_without_photo
from vicort.export.tiny.world import SHAPES
from vicort.runtime.core import Spoken
from vicort.runtime.errors import ConfigError

SECONDS = 24.0


@pytest.fixture
def short_streams(monkeypatch):
    """Streams in which something comes soon, in a look that needs no photograph."""
    monkeypatch.setattr(alerts_command, "SECONDS", SECONDS)
    monkeypatch.setattr(alert_streams, "EMPTY", (2.0, 4.0))
    for name in ("held_out_look", "random_look"):
        monkeypatch.setattr(looks, name, lambda rng, seconds: Look())


def evaluate(engines, tmp_path, *arguments) -> int:
    common = ("--engine-dir", engines, "--out", tmp_path / "out", "--cache", tmp_path / "files")
    return eval_run.main(["alerts", *map(str, (*arguments, *common))])


def test_one_command_asks_chooses_a_rule_and_states_figures(
    tiny_engines, tmp_path, short_streams, capsys, monkeypatch
):
    hours = ("--hours", "1", "--validation-hours", "1")
    assert evaluate(tiny_engines, tmp_path, *hours) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    result = report["results"]["distinct"]
    assert set(result["alerts"]) == set(SHAPES)
    assert result["rule"]["fire"]["for"] in ("1 of 1", "1 of 2", "2 of 2", "2 of 3", "3 of 3",
                                             "3 of 4")  # fmt: skip
    stream = make_alert_stream(0, "held-out", SECONDS)
    assert result["all alerts"]["events"] == len(stream.things) > 0
    assert result["all alerts"]["hours"] == pytest.approx(SECONDS / 3600, abs=1e-4)
    assert result["all alerts"]["matched"] > 0  # the embedded model sees what is there
    assert "goals: F1" in capsys.readouterr().out

    def refuse(self, *arguments):
        raise AssertionError("a stream was watched again")

    monkeypatch.setattr(alert_evaluation.AlertWatcher, "_watch", refuse)
    assert evaluate(tiny_engines, tmp_path, *hours) == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["results"] == report["results"]
    assert evaluate(tiny_engines, tmp_path, *hours, "--ask-every", "1") == ConfigError.exit_code
    assert "keep the setting" in capsys.readouterr().err


def test_each_asking_sees_the_unit_that_is_just_complete(tiny_engines, tmp_path, short_streams):
    evaluate(tiny_engines, tmp_path, "--hours", "1", "--validation-hours", "1", "--fps", "2",
             "--ask-every", "2")  # fmt: skip
    record = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").open()]
    ledger = Ledger(tmp_path / "out" / "answers.jsonl", record[0]["settings"])
    found = ledger.watched["distinct", "held-out 0"].summary["read"]
    readings = Readings.from_json(found)
    assert readings.at == [1.5 + 2 * number for number in range(12)]
    assert {len(each) for each in readings.probabilities.values()} == {12}


class SpeakingSession:
    """Says three things after its frames."""

    rate = 4.0

    def __init__(self, on_event) -> None:
        self.on_event = on_event
        self.asked: list[str] = []

    def submit(self, question):
        self.asked.append(question.text)

    def wants(self, at):
        return True

    def push(self, frame):
        said = {Fraction(1): "red star", Fraction(2): "blue ring and white star"}.get(frame.time)
        if said:
            self.on_event(Spoken(frame.time, frame.time, said, 2, 1.0, 0.1))

    def finish(self, ending):
        self.on_event(Spoken(Fraction(5), Fraction(5), "yes", 1, 1.0, 0.1))


def test_a_report_fires_the_alerts_of_the_shapes_that_it_names(tmp_path):
    stream = make_alert_stream(1, "training", 3.0, look_without_photo)
    stream.write(tmp_path / "stream.mp4")
    sessions = []

    @contextmanager
    def open_session(on_event):
        sessions.append(SpeakingSession(on_event))
        yield sessions[-1]

    words = "say when a shape appears"
    fired = hear_alerts(tmp_path / "stream.mp4", ("star", "ring", "cross"), words, open_session)
    assert fired == {"star": [1.0, 2.0], "ring": [2.0], "cross": []}
    assert sessions[0].asked == [words]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--hours", "0"),
        ("--validation-hours", "0"),
        ("--seed", "-1"),
        ("--ask-every", "0"),
        ("--window", "no"),
        ("--fps", "0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError, match=arguments[0]):
        parse_options(["alerts", *arguments])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--ask-every", "0.75"), "a temporal unit at 4 frames a second takes 0.5 s"),
        (("--fps", "3"), "--fps 3: the streams have 4 frames a second: give 4, 2, 1"),
    ],
)
def test_askings_and_rates_that_do_not_fit_are_refused(
    tiny_engines, tmp_path, capsys, option, said
):
    assert evaluate(tiny_engines, tmp_path, *option) == ConfigError.exit_code
    assert said in capsys.readouterr().err
