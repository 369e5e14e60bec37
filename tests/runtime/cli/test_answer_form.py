"""Choices, expressions, schemas and grammars, as they are written in commands and JSON lines."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.error_lines import one_line
from support.plain_schema import SCHEMAS
from support.sizes import examples

from vicort.runtime.cli.answer_form import FORM_KEYS, AnswerForm
from vicort.runtime.cli.arguments import parse_options
from vicort.runtime.cli.moments import WrittenQuestion
from vicort.runtime.cli.question_router import QuestionRouter
from vicort.runtime.cli.questions import parse_typed, read_questions
from vicort.runtime.core import Constraint, Question, Sampling
from vicort.runtime.errors import QuestionError

YES_NO = Constraint(("yes", "no"))
ASK = ["clip.mp4", "--ask", "what?"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text('{"type": "boolean"}')
    (tmp_path / "rules.lark").write_text('start: "a" | "b"\n')
    (tmp_path / "bad.json").write_text('{"type": "bool"}')
    (tmp_path / "latin.json").write_bytes(b'{"const": "\xe9"}')
    return tmp_path


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ([], None),
        (["--choices", "yes, no"], YES_NO),
        (["--regex", "yes|no"], Constraint(regex="yes|no")),
        (["--json-schema", "schema.json"], Constraint(json_schema='{"type": "boolean"}')),
        (["--grammar", "rules.lark"], Constraint(lark='start: "a" | "b"\n')),
    ],
)
def test_an_option_is_about_every_question_of_the_command(files, options, constraint):
    (files / "q.jsonl").write_text('{"question": "own?", "regex": "own"}\n{"question": "free?"}\n')
    every = ["--every", "2", "how?", "--until", "now?", "--at-changes", "new?"]
    parsed = parse_options([*ASK, "--questions", "q.jsonl", *every, *options])
    asked, own, free = parsed.questions
    repeated = [each.question for each in parsed.recurring]
    assert own.constraint == Constraint(regex="own")
    for question in (asked, free, *repeated, *parsed.at_changes):
        assert question.constraint == constraint
    assert parsed.form == AnswerForm(constraint)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--choices", "yes", "--regex", "no"], "--choices and --regex"),
        (["--json-schema", "a", "--grammar", "b"], "--json-schema and --grammar"),
        (["--choices", ""], "is empty"),
        (["--choices", "yes,,no"], "is empty"),
        (["--choices", "yes,no,yes"], "comes twice"),
        (["--regex", "("], "unclosed group"),
        (["--json-schema", "missing.json"], "cannot be read"),
        (["--json-schema", "latin.json"], "not UTF-8"),
        (["--json-schema", "bad.json"], "bool"),
        (["--grammar", "bad.json"], "Lark grammar"),
        (["--logprobs", "21"], "0 to 20"),
        (["--logprobs", "3", "--choices", "yes,no"], "no logprobs"),
    ],
)
def test_what_no_answer_can_be_is_refused_before_engines_are_loaded(files, options, said):
    with pytest.raises(QuestionError, match=said) as caught:
        parse_options([*ASK, *options])
    one_line(caught.value)


def test_a_report_is_not_asked_of_questions_with_choices():
    form = AnswerForm(None, 3)
    assert form.fill(Question("a?")).logprobs == 3
    assert form.fill(Question("a?", logprobs=1)).logprobs == 1
    assert form.fill(Question("a?", constraint=YES_NO)).logprobs is None
    assert AnswerForm(YES_NO).fill(Question("a?", logprobs=1)).logprobs == 1


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"choices": None, "regex": None}, None),
        ({"choices": ["yes", "no"]}, YES_NO),
        ({"regex": "a+"}, Constraint(regex="a+")),
        ({"lark": 'start: "a"'}, Constraint(lark='start: "a"')),
    ],
)
def test_a_line_says_what_its_answer_may_be(fields, constraint):
    assert parse_typed(json.dumps({"question": "a?"} | fields), "line").constraint == constraint


@settings(max_examples=examples(30), deadline=None)
@given(SCHEMAS)
def test_a_schema_of_a_line_is_taken_as_it_is(schema):
    line = json.dumps({"question": "a?", "json_schema": schema, "logprobs": 2})
    question = parse_typed(line, "line")
    assert json.loads(question.constraint.json_schema) == schema
    assert question.logprobs == 2


def test_numbers_of_a_schema_are_kept():
    schema = {"type": "number", "minimum": 0.5, "maximum": 12, "multipleOf": 0.25}
    question = parse_typed(json.dumps({"question": "a?", "json_schema": schema}), "line")
    assert json.loads(question.constraint.json_schema) == schema


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"choices": []}, "is empty"),
        ({"choices": "yes,no"}, "list of texts"),
        ({"choices": ["yes", 3]}, "3 is no text"),
        ({"choices": ["yes", ["no"]]}, "no text"),
        ({"choices": ["yes"], "regex": "yes"}, "choices and regex"),
        ({"regex": ""}, "is empty"),
        ({"regex": 3}, "no text"),
        ({"regex": "["}, "unclosed"),
        ({"json_schema": '{"type": "boolean"}'}, "which is an object"),
        ({"json_schema": {"type": "bool"}}, "bool"),
        ({"lark": {}}, "no text"),
        ({"logprobs": 21}, "0 to 20"),
        ({"logprobs": True}, "0 to 20"),
        ({"logprobs": 1.5}, "0 to 20"),
        ({"logprobs": 1, "choices": ["yes"]}, "no logprobs"),
        ({"logits": 1}, "unknown key"),
    ],
)
def test_a_line_that_asks_for_what_no_answer_can_be_is_refused(fields, said, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("\n" + json.dumps({"question": "a?"} | fields) + "\n")
    with pytest.raises(QuestionError, match=said) as caught:
        read_questions(file)
    assert f"{file}, line 2" in one_line(caught.value)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "enum", "items", "minimum", "pattern", "$ref", "a"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=examples(150), deadline=None)
@given(st.dictionaries(st.sampled_from(FORM_KEYS), ANYTHING, min_size=1, max_size=2))
def test_whatever_a_line_asks_of_its_answer_it_is_taken_or_refused(fields):
    try:
        question = parse_typed(json.dumps({"question": "a?"} | fields), "line")
    except QuestionError as error:
        one_line(error)
    else:
        assert question.logprobs is None or 0 <= question.logprobs <= 20


def test_typed_questions_have_the_form_of_the_command_unless_they_say_their_own():
    asked = []
    router = QuestionRouter(Sampling(), form=AnswerForm(YES_NO))
    router.enter("", asked.append)
    router.ask("is it there?", "line")
    router.ask('{"question": "how many?", "regex": "[0-9]"}', "line")
    assert [each.constraint for each in asked] == [YES_NO, Constraint(regex="[0-9]")]


def test_a_question_about_a_range_keeps_the_form_of_its_answer():
    class AnySource:
        keeps_wall_clock, name = False, "clip"

    line = '{"question": "a?", "choices": ["yes", "no"], "since": "0:00:01"}'
    question = parse_typed(line, "line")
    assert isinstance(question, WrittenQuestion)
    placed = question.of_source(AnySource(), Fraction(5))
    assert type(placed) is Question
    assert (placed.constraint, placed.since) == (YES_NO, 1)
