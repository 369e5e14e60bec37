"""Questions as they are typed, and as they are refused."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.cli.questions import parse_ask, read_questions, with_ids
from vicort.runtime.core import Question
from vicort.runtime.errors import QuestionError


@given(st.decimals(min_value=0, max_value=10**6, places=3))
def test_times_are_exact(seconds) -> None:
    assert parse_ask(f"@{seconds} what was it?") == Question("what was it?", Fraction(seconds))


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("what is there now?", Question("what is there now?")),
        ("  spaces context  ", Question("spaces context")),
        ("@0 first", Question("first", Fraction(0))),
        ("@.5\twhat   is\nit", Question("what   is\nit", Fraction(1, 2))),
        ("@+3. plus", Question("plus", Fraction(3))),
        ("mail me @home", Question("mail me @home")),
    ],
)
def test_asked(text: str, question: Question) -> None:
    assert parse_ask(text) == question


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "contains no question"),
        ("   ", "contains no question"),
        ("@3", "contains no question"),
        ("@3   ", "contains no question"),
        ("@", "is not a number of seconds"),
        ("@ 3 what", "is not a number of seconds"),
        ("@soon what", "'soon' is not a number of seconds"),
        ("@nan what", "is not a number of seconds"),
        ("@inf what", "is not a number of seconds"),
        ("@1e999 what", "is not a number of seconds"),
        ("@1/2 what", "is not a number of seconds"),
        ("@-1 what", "-1 s is before the start of the stream"),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    with pytest.raises(QuestionError) as caught:
        parse_ask(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '\ufeff{"at": 0.1, "question": "tenth"}\n\n{"at": null, "question": " end ", "id": '
        '"last"}\r\n'
        '{"question": "and?", "conversation": "c"}\n{"at": 7, "question": "où est-ce?"}'
    )
    assert read_questions(file) == [
        Question("tenth", Fraction(1, 10)),
        Question("end", None, "last"),
        Question("and?", None, "", "c"),
        Question("où est-ce?", Fraction(7)),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("what is it?", "is not JSON"),
        ('{"question": "cut', "is not JSON"),
        ('"a string"', "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "contains no question"),
        ('{"question": "  "}', "contains no question"),
        ('{"question": 3}', "question is 3, not a string"),
        ('{"question": null}', "question is None, not a string"),
        ('{"question": "a", "id": 7}', "id is 7, not a string"),
        ('{"question": "a", "at": "3"}', "at is '3', not a number of seconds"),
        ('{"question": "a", "at": true}', "at is True, not a number of seconds"),
        ('{"question": "a", "at": -0.5}', "at is -0.5, before the start of the stream"),
        ('{"question": "a", "at": NaN}', "is not JSON"),
        ('{"question": "a", "at": 1e400}', "1e400' is written out in more than 40 digits"),
        ('{"question": "a", "at": ' + "9" * 5000 + "}", "is written out in more than 40 digits"),
        ('{"question": "a", "at": -Infinity}', "is not JSON"),
        ('{"question": "a", "question": "b"}', "the key 'question' comes twice"),
        ('{"question": "a", "time": 3}', "unknown key 'time': the keys are at, question, id"),
    ],
)
def test_refused_lines_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"question": "fine"}}\n\n{line}\n')
    with pytest.raises(QuestionError) as caught:
        read_questions(file)
    assert f"{file}, line 3" in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"question": "où?"}'.encode("latin-1"))
    for path, complaint in (
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "latin.jsonl", "not UTF-8"),
    ):
        with pytest.raises(QuestionError, match=complaint):
            read_questions(path)


def test_ids() -> None:
    named = with_ids([Question("a"), Question("b", id="mine"), Question("c")])
    assert [question.id for question in named] == ["q1", "mine", "q3"]
    with pytest.raises(QuestionError, match="two questions have the id 'q2'"):
        with_ids([Question("a", id="q2"), Question("b")])


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_a_file_without_a_question_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(QuestionError, match="contains no question: give"):
        read_questions(file)
