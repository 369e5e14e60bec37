"""Scoring, tables and judges, against tables made by hand."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.benchmarks.evaluation import ovo_bench, streamingbench
from vicort.benchmarks.evaluation.ages import wilson
from vicort.benchmarks.evaluation.items import Dataset, Group, Item, Reply
from vicort.benchmarks.evaluation.judge import CommandJudge, ExactJudge, Verdict, make_judge
from vicort.benchmarks.evaluation.rules import RULES, is_right, is_settled
from vicort.benchmarks.evaluation.score_tables import make_table, print_table, score_all
from vicort.runtime.errors import ConfigError


def item(rule: str, truth: str, name: str = "x", task: str = "task") -> Item:
    return Item(name, task, rule, truth, "?", (Fraction(1),))


def replies(*texts: str, name: str = "x", first: int = 1) -> list[Reply]:
    return [Reply(name, Fraction(first + second), text) for second, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("rule", "truth", "text", "right"),
    [
        ("first-letter", "B", "B", True),
        ("first-letter", "B", " B. blue", True),
        ("first-letter", "B", "The answer is B", False),
        # as theirs: the first character, whatever it is
        ("first-letter", "T", "The answer is B", True),
        ("first-letter", "B", "", False),
        ("letter-within", "B", "The answer is B", True),
        ("letter-within", "B", "b", False),
        ("letter-within", "A", "A or B", True),
        ("digits", "2", "2", True),
        ("digits", "2", "They did it 2 times.", True),
        ("digits", "2", "2 of 3", False),
        ("digits", "12", "1 and 2", True),  # as theirs: all digits put together
        ("digits", "2", "two", False),
        ("yes-or-no", "Yes", "Yes.", True),
        ("yes-or-no", "Yes", "Y", True),
        ("yes-or-no", "Yes", "yes", False),  # as theirs: case counts
        ("yes-or-no", "No", "N", True),
        ("yes-or-no", "No", "Not yet", True),
        ("yes-or-no", "No", "Yes", False),
        ("first-of-letters", "C", "The answer is C", True),
        ("first-of-letters", "A", "**A**", True),
        ("first-of-letters", "C", "Best option: C", True),
        ("first-of-letters", "C", "Best answer: C", True),
        ("first-of-letters-after-answer", "C", "Answer: C", True),
        ("first-of-letters-after-answer", "B", "Best answer: C", True),  # as theirs
        ("first-of-letters", "C", "Clearly A", True),  # as theirs: also inside a word
        ("first-of-letters", "A", "a", False),
        ("letter-word", "C", "The answer is (c).", True),
        ("letter-word", "C", "Clearly A", False),
        ("letter-word", "A", "a bus: B", True),  # as theirs: the article is an A
        ("letter-word", "B", "option 2", True),
        ("letter-word", "E", "E", False),
        ("yes-or-no-any-case", "Yes", "yes", True),
        ("yes-or-no-any-case", "No", " n ", True),
        ("yes-or-no-any-case", "No", "I do not know", True),  # as theirs: NO is in it
        ("yes-or-no-any-case", "No", "Yes", False),
        ("same-text", "red circle", "red circle", True),
        ("same-text", "red circle", "red", False),
    ],
)
def test_rules_decide_as_the_benchmarks_do(rule, truth, text, right):
    assert RULES[rule](truth, replies(text)) is right


PIECES = [
    "A",
    "b",
    "C",
    "D",
    "E",
    "5",
    "2",
    "the ",
    "Best option:",
    "Best answer:",
    "(",
    ")",
    " ",
    "_",
]
REPLY = st.lists(st.sampled_from([*PIECES, "The answer is ", "Because ", "\n"])).map("".join)


@given(text=REPLY, truth=st.sampled_from("ABCD"))
def test_the_rules_of_two_papers_find_a_letter_anywhere(text, truth):
    """Both in plain words: the first of four letters that is left; and the first word that is one
    of four letters, or else one of four digits."""
    left = text.replace("Best answer:", "").replace("Best option:", "")
    upper = [each for each in left if each in "ABCD"]
    assert RULES["first-of-letters"](truth, replies(text)) == (upper[:1] == [truth])
    apart = "".join(each if each.isalnum() or each == "_" else " " for each in text).upper()
    words = apart.split()
    said = [word for word in words if word in ("A", "B", "C", "D")]
    said = said or ["ABCD"[int(word) - 1] for word in words if word in ("1", "2", "3", "4")]
    assert RULES["letter-word"](truth, replies(text)) == (said[:1] == [truth])


@pytest.mark.parametrize(
    ("texts", "right"),
    [
        (["no", "no", "no", "Yes!"], True),  # at 4, the moment
        (["no", "yes"], True),  # at 2: two seconds early
        (["yes", "no", "no", "yes"], False),  # the first yes counts, three seconds early
        (["no"] * 5 + ["YES"], True),  # two seconds late
        (["no"] * 6 + ["yes"], False),
        (["no"] * 8, False),
        ([], False),
    ],
)
def test_a_proactive_answer_may_be_two_seconds_off(texts, right):
    polled = item("first-yes", "4")
    assert is_right(polled, replies(*texts)) is right
    assert is_settled(polled, replies(*texts)) is any("yes" in text.lower() for text in texts)


def test_what_was_not_answered_is_wrong():
    assert not is_right(item("yes-or-no", ""), [Reply("x", Fraction(1), error="too long")])
    assert not is_right(item("same-text", ""), [])


def table_of(dataset, answers: dict[str, dict[str, list[bool]]]):
    """By heading and group: what `make_table` says where each task's questions were right or wrong
    so."""
    items, given = {}, []
    for task, verdicts in answers.items():
        for number, right in enumerate(verdicts):
            name = f"{task}{number}"
            items[name] = item("same-text", "right", name, task)
            given += replies("right" if right else "wrong", name=name)
    table = make_table(dataset, score_all(items, given, ExactJudge()))
    return {
        title: {heading: (round(cell.accuracy, 4), cell.asked) for heading, cell in cells.items()}
        for title, cells in table.items()
    }


def test_ovo_bench_averages_tasks_and_then_categories():
    dataset = Dataset("ovo-bench", (), ovo_bench.GROUPS, "groups")
    answers = {
        "OCR": [True, True, True, False],
        "FPD": [False],
        "EPM": [True],
        "REC": [True, False],
        "SSR": [False] * 8,
        "CRR": [True],
    }
    assert table_of(dataset, answers) == {
        "Real-Time Visual Perception": {"OCR": (0.75, 4), "FPD": (0.0, 1), "Avg": (0.375, 5)},
        "Backward Tracing": {"EPM": (1.0, 1), "Avg": (1.0, 1)},
        "Forward Active Responding": {
            "REC": (0.5, 2),
            "SSR": (0.0, 8),
            "CRR": (1.0, 1),
            "Avg": (0.5, 11),
        },
        "overall": {"Avg": (0.625, 17)},
    }
    assert "overall" not in table_of(dataset, {"EPM": [True], "OCR": [True]}), (
        "two categories are no overall figure"
    )


def test_vicostream_averages_the_queries_of_an_entry_first():
    """Three queries of one entry, one right; one query of another entry, right: (1/3 + 1) / 2
    instead of 2 / 4."""
    items, given_ = {}, []
    for entry, verdicts in (("e", [True, False, False]), ("f", [True])):
        for number, right in enumerate(verdicts):
            name = f"{entry}.{number}"
            made = item("digits", "1", name, "REC")
            items[name] = replace(made, note={"entry": entry})
            given_ += replies("1" if right else "2", name=name)
    dataset = Dataset("ovo-bench", (), ovo_bench.GROUPS, "groups")
    vicostream, _ = ovo_bench.SCORINGS
    own, theirs = (
        make_table(dataset, score_all(items, given_, ExactJudge(), scoring))[
            "Forward Active Responding"
        ]["REC"]
        for scoring in (None, vicostream)
    )
    assert (own.accuracy, theirs.accuracy) == (0.5, pytest.approx(2 / 3))
    assert own.interval is not None
    assert theirs.interval is None


def test_a_printed_table_has_the_scorings_side_by_side():
    dataset = Dataset("streamingbench", (), streamingbench.GROUPS, scorings=streamingbench.SCORINGS)
    items = {
        name: item("first-letter", "C", name, "Counting") for name in ("said", "explained", "a")
    }
    given_ = [
        *replies("C", name="said"),
        *replies("The answer is C", name="explained"),
        *replies("a cat: C", name="a"),
    ]
    table, *others = (
        {"one": make_table(dataset, score_all(items, given_, ExactJudge(), scoring))}
        for scoring in (None, *dataset.scorings)
    )
    names = [scoring.name for scoring in dataset.scorings]
    assert print_table(table, others=dict(zip(names, others, strict=True))).splitlines() == [
        "Real-Time Visual Understanding",
        "system              CT     Avg",
        "                   n=3     n=3",
        "one              33.33   33.33",
        "  ViCoStream    100.00  100.00",
        "  SimpleStream   66.67   66.67",
        "",
        "Real-Time Visual Understanding: Avg by scoring rule",
        "system             own  ViCoStream  SimpleStream",
        "one              33.33      100.00         66.67",
    ]


def test_streamingbench_averages_questions():
    dataset = Dataset("streamingbench", (), streamingbench.GROUPS)
    answers = {
        "Object Perception": [True],
        "Object Recognition": [False, False],
        "Counting": [True],
        "Proactive Output": [True],
        "New": [True],
    }
    assert table_of(dataset, answers) == {
        "Real-Time Visual Understanding": {"OP": (0.3333, 3), "CT": (1.0, 1), "Avg": (0.5, 4)},
        "Contextual Understanding": {"PO": (1.0, 1), "Avg": (1.0, 1)},
        "other": {"New": (1.0, 1), "Avg": (1.0, 1)},
        "overall": {"Avg": (0.6667, 6)},
    }


def test_the_published_categories_of_ovo_bench_give_its_published_total():
    """Gemini 1.5 Pro in the paper: real-time 69.32, backward 62.54, forward 57.15, overall
    63.00."""
    dataset = Dataset(
        "ovo-bench", (), tuple(Group(name, {name: name}, "tasks") for name in "RBF"), "groups"
    )
    share = {"R": 6932, "B": 6254, "F": 5715}
    table = table_of(
        dataset, {name: [n < right for n in range(10_000)] for name, right in share.items()}
    )
    assert table["overall"]["Avg"][0] == 0.63


def test_a_printed_table_has_a_row_a_system():
    dataset = Dataset("streamingbench", (), streamingbench.GROUPS)
    counted = item("first-letter", "A", "q", "Counting")
    tables = {
        name: make_table(dataset, score_all({"q": counted}, replies(text, name="q"), ExactJudge()))
        for name, text in (("a", "A"), ("bb", "B"))
    }
    assert print_table(tables).splitlines() == [
        "Real-Time Visual Understanding",
        "system      CT     Avg",
        "           n=1     n=1",
        "a       100.00  100.00",
        "bb        0.00    0.00",
    ]


@pytest.mark.parametrize(
    ("truth", "said", "same"),
    [
        ("The red one.", "red one", True),
        ("red", "Red!", True),
        ("a red circle", "circle red", False),
        ("red", "reddish", False),
    ],
)
def test_the_exact_judge_forgives_case_articles_and_punctuation(truth, said, same):
    assert ExactJudge()([(item("judge", truth), said)]) == [Verdict(same, 5 if same else 0)]


JUDGE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert sorted(asked) == ["answer", "id", "prediction", "question"]
    pred = "yes" if asked["answer"] in asked["prediction"] else "no"
    print(json.dumps({"pred": pred, "score": len(asked["prediction"]) % 6}))
"""


def test_a_judge_of_the_users_is_a_program(tmp_path):
    program = tmp_path / "judge.py"
    program.write_text(JUDGE)
    judge = make_judge(["command", shlex.join([sys.executable, str(program)])])
    items = {name: item("judge", "blå", name, "color") for name in "abc"}
    scored = score_all(
        items,
        [
            *replies("en blå bil", name="a"),
            *replies("no", name="b"),
            Reply("c", Fraction(1), error="x"),
        ],
        judge,
    )
    assert [(each.credit, each.score) for each in scored] == [(1, 4), (0, 2), (0, 0)], (
        "no judge for what failed: no, and 0"
    )
    table = make_table(Dataset("rvs", (), (Group("RVS", {"color": "color"}),)), scored)
    assert (round(table["RVS"]["color"].accuracy, 4), table["RVS"]["color"].score) == (0.3333, 2)
    assert "33.33 / 2.00" in print_table({"one": table})
    assert str(program) in judge.name


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('{}')", "line 1 is '{}': give"),
        ('print(\'{"pred": "maybe", "score": 1}\')', "give"),
        ('print(\'{"pred": "yes", "score": 6}\')', "give"),
        ("pass", "gave 0 lines for 1 answers"),
        ("raise SystemExit(3)", "failed with exit code 3"),
    ],
)
def test_a_judge_that_does_not_judge_is_named(tmp_path, program, said):
    (tmp_path / "judge.py").write_text(program)
    with pytest.raises(ConfigError, match=said.replace("{", r"\{")):
        CommandJudge(shlex.join([sys.executable, str(tmp_path / "judge.py")]))(
            [(item("judge", "a"), "b")]
        )


@pytest.mark.parametrize(
    "words", [["gpt"], ["command"], ["exact", "x"], ["command", ""], ["command", "'"]]
)
def test_judges_that_there_are_not_are_refused(words):
    with pytest.raises(ConfigError, match="--judge"):
        make_judge(words)


def test_a_judge_that_is_no_program_is_named():
    with pytest.raises(ConfigError, match="does not run"):
        make_judge(["command", "/nowhere/judge"])([(item("judge", "a"), "b")])


def test_wilson_intervals_are_the_published_ones():
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, asked, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert [round(bound, 4) for bound in wilson(right, asked)] == [low, high]
