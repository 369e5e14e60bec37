"""vicort-eval calibration from its command line to its report, its picture and an engine set."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manifests import manifest
from support.scripted_session import ScriptedSession

from vicort.benchmarks.evaluation import calibration_report, eval_run, world_choices
from vicort.benchmarks.evaluation.answers_file import read_answers
from vicort.benchmarks.evaluation.calibration_report import rated_parts
from vicort.benchmarks.evaluation.calibration_result import REPORTED
from vicort.benchmarks.evaluation.eval_arguments import parse_options
from vicort.benchmarks.evaluation.items import Reply, at_temperature_1
from vicort.benchmarks.evaluation.ledger import Ledger
from vicort.benchmarks.evaluation.watching import Candidate
from vicort.benchmarks.evaluation.world_choices import PARTS, choices_by_kind
from vicort.export.tiny import evaluation_files
from vicort.export.tiny.evaluation_files import HELD_OUT, SETTINGS, evaluation_stream
from vicort.export.tiny.world_questions import all_questions
from vicort.runtime.language.choice_calibration import (
    ChoiceCalibration,
    FittedTemperature,
    engines_of,
)

# (probability of yes, how many of 20 such are yes): sure, and too often wrong
SAID = ((0.99, 16), (0.9, 14), (0.1, 5), (0.02, 3))


def lines(split=True):
    """160 answers, fitted on and reported in turns."""
    found = []
    for at in range(2):
        for probability, right in SAID:
            for number in range(20):
                line = {
                    "event": "answer",
                    "id": f"{at}{number}",
                    "choices": {"yes": probability, "no": 1 - probability},
                    "truth": "yes" if number < right else "no",
                    "stream": f"{at} {number}",
                }
                found.append(line | ({"split": ("fit", "report")[at]} if split else {}))
    return found


def write(path, content):
    path.write_text("".join(json.dumps(line) + "\n" for line in content))
    return path


def calibrate(out, *arguments) -> int:
    return eval_run.main(["calibration", *map(str, arguments), "--out", str(out)])


@pytest.fixture
def engines(tmp_path):
    """An engine set, as far as a manifest goes."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest()))
    return tmp_path / "set"


def test_answers_of_the_user_are_calibrated_and_stored(tmp_path, engines, capsys, monkeypatch):
    drawn = []  # a test of pictures draws one
    monkeypatch.setattr(calibration_report, "draw", lambda *what: drawn.append(what))
    file = write(tmp_path / "answers.jsonl", lines())
    assert calibrate(tmp_path / "out", "--answers", file, "--engine-dir", engines, "--store") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    result = report["calibration"]["answers"]
    plain = min(
        (sum(-math.log(_plain(line, t)) for line in lines() if line["split"] == "fit"), t)
        for t in (1 + 0.001 * step for step in range(4000))
    )[1]
    assert result["temperature"] == pytest.approx(plain, abs=0.001)
    assert result["fitted_on"] == result[REPORTED]["before"]["questions"] == 80
    assert result[REPORTED]["after"]["ece"] < result[REPORTED]["before"]["ece"]
    stored = ChoiceCalibration.of_folder(engines).fitted
    assert stored is not None
    assert stored.temperature == pytest.approx(result["temperature"], abs=1e-6)
    assert stored.questions == 80
    assert stored.ece_before == pytest.approx(result[REPORTED]["before"]["ece"], abs=1e-5)
    assert stored.ece_after == pytest.approx(result[REPORTED]["after"]["ece"], abs=1e-5)
    said = capsys.readouterr()
    assert f"stored: temperature {result['temperature']:.3f}" in said.err
    assert "reliability diagram" in said.out
    assert (tmp_path / "out" / "report.txt").read_text() == said.out
    assert drawn == [(report, tmp_path / "out" / "reliability.png")]


@pytest.mark.parametrize(
    ("reported", "words"),
    [("sure and right", "does not carry over"), ("as fitted", "at the bound")],
)
def test_a_temperature_that_nothing_speaks_for_is_not_stored(
    tmp_path, engines, capsys, monkeypatch, reported, words
):
    monkeypatch.setattr(calibration_report, "draw", lambda *what: None)
    right = [line | {"choices": {"yes": 0.8, "no": 0.2}, "truth": "yes"} for line in lines()]
    fit = right if reported == "as fitted" else lines()
    content = [
        one if one["split"] == "fit" else other for one, other in zip(fit, right, strict=True)
    ]
    file = write(tmp_path / "answers.jsonl", content)
    assert calibrate(tmp_path / "out", "--answers", file, "--engine-dir", engines, "--store") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert words in said
    assert "nothing is stored" in said
    assert (tmp_path / "out" / "report.json").exists()
    assert not (engines / "calibration.json").exists()


def _plain(line, temperature):
    """Probability of the right answer at a temperature."""
    powers = {text: p ** (1 / temperature) for text, p in line["choices"].items()}
    return powers[line["truth"]] / sum(powers.values())


def test_answers_of_a_calibrated_set_lead_to_the_same_temperature(tmp_path, engines):
    """What was given at a temperature is measured as it would have been at 1."""
    write(tmp_path / "answers.jsonl", lines())
    read = read_answers([tmp_path / "answers.jsonl"])
    at = ChoiceCalibration(
        FittedTemperature(
            engines=engines_of(engines), temperature=2.5, questions=1, ece_before=0, ece_after=0
        )
    )
    given_at = []
    for line in lines():
        shares = at.choices([math.log(each) for each in line["choices"].values()])
        given_at.append(line | {"choices": dict(zip(line["choices"], shares, strict=True))})
    write(tmp_path / "given.jsonl", given_at)
    again = read_answers([tmp_path / "given.jsonl"], 2.5)
    for part in read:
        for one, other in zip(read[part], again[part], strict=True):
            assert other.logarithms == pytest.approx(one.logarithms)


@given(
    st.lists(st.floats(1e-3, 1), min_size=2, max_size=5).map(lambda x: [e / sum(x) for e in x]),
    st.floats(0.2, 5),
)
def test_a_temperature_is_taken_back(probabilities, temperature):
    texts = [str(number) for number in range(len(probabilities))]
    powers = [each ** (1 / temperature) for each in probabilities]
    given = {text: each / sum(powers) for text, each in zip(texts, powers, strict=True)}
    assert list(at_temperature_1(given, temperature).values()) == pytest.approx(probabilities)


def test_streams_take_turns_where_no_split_is_given(tmp_path):
    content = [line | {"stream": str(number // 3)} for number, line in enumerate(lines(False))]
    found = read_answers([write(tmp_path / "a.jsonl", content)])
    assert {each.group for each in found["fit"]} == {str(n) for n in range(0, 54, 2)}
    assert {each.group for each in found["report"]} == {str(n) for n in range(1, 54, 2)}


def test_a_probability_that_was_rounded_to_0_is_no_certainty(tmp_path):
    content = [line | {"choices": {"yes": 1.0, "no": 0.0}} for line in lines()[::40]]
    (first, *_) = read_answers([write(tmp_path / "a.jsonl", content)])["fit"]
    assert first.logarithms == pytest.approx((0.0, math.log(5e-7)), abs=1e-6)


def test_other_events_are_skipped_and_kinds_are_kept(tmp_path):
    content = [{"event": "chunk"}, lines()[0] | {"kind": "door", "outside": 0.25}, lines()[80]]
    found = read_answers([write(tmp_path / "a.jsonl", content)])
    assert [(each.kind, each.outside) for each in found["fit"]] == [("door", 0.25)]
    assert [(each.kind, each.outside) for each in found["report"]] == [("all", None)]


LINE = lines()[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"truth": "yes"}', "line 1: it has no `choices`"),
        (json.dumps(LINE | {"choices": {"yes": 1}}), "of two texts or more"),
        (json.dumps(LINE | {"truth": "maybe"}), "`truth` is 'maybe': give one of"),
        (json.dumps(LINE | {"truth": ["yes"]}), "`truth` is "),
        (json.dumps(LINE | {"choices": {"yes": "1", "no": 0}}), "probability of 'yes' is '1'"),
        (json.dumps(LINE | {"choices": {"yes": 1.2, "no": 0}}), "probability of 'yes' is 1.2"),
        (json.dumps(LINE | {"choices": {"yes": 0.5, "no": 0.2}}), "sum to 0.7"),
        (json.dumps(LINE | {"choices": {"yes": math.nan, "no": 1}}), "probability of 'yes' is nan"),
        (json.dumps(LINE | {"split": "test"}), "`split` is 'test': give fit or report"),
        ("{", "line 1 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("[1]", "line 1 is no object"),
        ("", "no line has `choices`"),
        ('{"event": "chunk"}', "no line has `choices`"),
        (json.dumps(LINE), "to report on"),
        (json.dumps(LINE) + "\n" + json.dumps(lines(False)[1]), "some answers have a `split`"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, capsys, content, words):
    (tmp_path / "a.jsonl").write_text(content)
    assert calibrate(tmp_path / "out", "--answers", tmp_path / "a.jsonl") == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--answers", "a", "--store"], "--store needs --engine-dir"),
        (["--answers", "a", "--system", "distinct"], "--system has no meaning"),
        (["--answers", "a", "--streams", "3"], "--streams has no meaning"),
        (["--answers", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["--store", "--system", "distinct", "--system", "full-history"], "--store and 2 systems"),
        (["--context", "3"], "--protocol restart"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tmp_path, capsys, arguments, words):
    assert calibrate(tmp_path / "out", *arguments) == 2
    assert words in capsys.readouterr().err


def test_its_defaults():
    options = parse_options(["calibration"])
    assert options.streams == world_choices.STREAMS
    assert len(options.systems) == 1
    assert not options.store
    assert options.out.name == "calibration"


def test_parts_share_no_stream_and_need_no_photographs():
    seen = set()
    for part in PARTS:
        for setting in world_choices._settings(part):
            for number in range(part.first_seed, part.first_seed + world_choices.STREAMS):
                stream, look, _ = evaluation_stream(setting, HELD_OUT + number)
                assert stream.things not in seen
                seen.add(stream.things)
                assert "photo" not in look.background
                assert part.background in (None, look.background)
    fitted, same, other, known = PARTS
    assert fitted.background == same.background != other.background
    assert known.background is None
    assert len({part.name for part in PARTS}) == len(PARTS) == 4
    names = {setting.name for setting in SETTINGS}
    assert set(world_choices.KINDS_OF_FILES) <= names


def test_every_true_answer_is_one_of_the_choices():
    choices = choices_by_kind()
    for setting in SETTINGS:
        for seed in range(HELD_OUT, HELD_OUT + 7):
            stream, _, _ = evaluation_stream(setting, seed)
            for asked in all_questions(stream.things):
                if asked.kind in choices:
                    assert asked.answer in choices[asked.kind]
    assert all(len(set(each)) == len(each) > 1 for each in choices.values())


FAST = {"sizes": ((128, 96),), "fps": 4, "bitrate": 120_000}


class ChoosingSession(ScriptedSession):
    """Gives each choice the share of its place from the last on, at a temperature."""

    temperature = 1.75

    def submit(self, question):
        answer = super().submit(question).result()
        choices = question.constraint.choices
        shares = [(place + 1) ** (1 / self.temperature) for place in range(len(choices))]
        given = {text: each / sum(shares) for text, each in zip(choices, shares, strict=True)}
        done: Future = Future()
        done.set_result(replace(answer, text=choices[-1], choices=given, outside=0.125))
        return done


def test_the_world_is_asked_with_choices(tmp_path, monkeypatch):
    """A run over one kind of file, with sessions that give what is known at a temperature: the
    record has it at temperature 1."""
    named = {setting.name: setting for setting in SETTINGS}
    setting = replace(named["gaps"], objects=(2,), **FAST)
    monkeypatch.setattr(evaluation_files, "SETTINGS", (setting,))
    data = world_choices.load(tmp_path / "files", 1)
    assert [video.name.split()[0] for video in data.videos] == [part.name for part in PARTS]
    candidate = Candidate(partial(ChoosingSession, lambda question, seen: ""))
    ledger = Ledger(tmp_path / "answers.jsonl", {})
    options = parse_options(["calibration"])
    given_at = ChoosingSession.temperature
    assert not eval_run.watch_all(data, options, {"any": candidate}, ledger, given_at)
    replies = [each for watched in ledger.watched.values() for each in watched.replies]
    assert {reply.item for reply in replies} == set(data.items)
    for reply in replies:
        item = data.items[reply.item]
        count = len(item.choices)
        shares = [(place + 1) / (count * (count + 1) / 2) for place in range(count)]
        assert (
            list(reply.choices) == list(item.choices) == list(choices_by_kind()[item.note["kind"]])
        )
        assert list(reply.choices.values()) == pytest.approx(shares)
        assert reply.outside == 0.125
    parts = rated_parts(data.items, replies)
    assert {name: len(part) for name, part in parts.items()} == {
        part.name: sum(item.note["part"] == part.name for item in data.items.values())
        for part in PARTS
    }
    for question in parts["fit"]:
        assert question.logarithms[0] == pytest.approx(
            math.log(2 / len(question.logarithms) / (len(question.logarithms) + 1))
        )
    first = data.items[replies[0].item]
    assert parts["fit"][0].right == first.choices.index(first.truth)


def test_replies_keep_their_choices_through_the_record():
    reply = Reply("a", Fraction(1), choices={"yes": 0.1 + 0.2, "no": 0.7}, outside=1e-9)
    assert Reply.from_json(json.loads(json.dumps(reply.to_json()))) == reply
    without = Reply("a", Fraction(1), "text")
    assert not {"choices", "outside"} & without.to_json().keys()
    assert Reply.from_json(json.loads(json.dumps(without.to_json()))) == without
