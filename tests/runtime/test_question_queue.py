"""When queued questions are asked."""

from concurrent.futures import Future
from fractions import Fraction

import pytest

from vicort.runtime.asked_question import AskedQuestion
from vicort.runtime.callback_threads import CallbackThreads
from vicort.runtime.core import Question
from vicort.runtime.known_failures import KnownFailures
from vicort.runtime.question_queue import QuestionQueue


@pytest.mark.parametrize(
    ("at", "moved", "found"),
    [(1, 2, (2, 1)), (2, 2, (2, None)), (2, 5, (5, 2)), (1, 5, (5, 1))],
)
def test_a_question_whose_time_has_passed_is_asked_now_and_keeps_its_own_time(at, moved, found):
    """Also where the stream moves between the question and its answer."""
    queue, future = QuestionQueue(4), Future()
    queue.advance(Fraction(2))
    question = Question("what is there now?", Fraction(at))
    asked = AskedQuestion(question, future, None, CallbackThreads(), KnownFailures())
    queue.add_all([(asked, future)])
    queue.advance(Fraction(moved))
    assert queue.take_ready() == [asked]
    assert (asked.question.at, asked.requested) == found
