"""A simulated day: a question about its first minute is answered where a system remembers that far,
and where not, the answer says so."""

import json
from fractions import Fraction

import pytest

from vicort.export.tiny.evaluation_files import HELD_OUT
from vicort.export.tiny.model import SIDE
from vicort.export.tiny.painter import Painter
from vicort.export.tiny.world import make_stream
from vicort.runtime.core import Frame, Sampling
from vicort.runtime.policies.system import known_systems
from vicort.runtime.session import Session

DAY = 86_400  # seconds, of a temporal unit each: 10,800 chunks
THINGS = 7
EMPTY = 64  # different pictures of nothing, over and over
# full-history ends where its memory ends (test_endless.py); videollm-online is asked otherwise.
# with the budgets of their YAML files and the embedded model
REMEMBERS_A_DAY = {"vicostream", "distinct", "livevlm", "timechat-online"}
# but a question reads a unit in five minutes or so: it may be none of that minute
HOLDS_A_DAY = {"uniform"}


def day(seed, seconds):
    """Frames, two a second: seven things in the first minute, then nothing; and what came."""
    stream = make_stream(seed, THINGS, tail=EMPTY)
    painter, end = Painter(stream, SIDE, SIDE), int(stream.things[-1].end) + 1
    nothing = [painter.frame(end + number / 2) for number in range(EMPTY)]

    def frames():
        for number in range(2 * seconds):
            image = painter.frame(number / 2) if number < 2 * end else nothing[number % EMPTY]
            yield Frame(image, Fraction(number, 2), number)

    return frames(), stream.things


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "name", [name for name in known_systems() if name not in ("full-history", "videollm-online")]
)
def test_a_day_later_the_first_minute_is_remembered_or_the_answer_says_that_it_is_not(
    tiny_engines, name
):
    frames, things = day(HELD_OUT + 77, DAY)
    with Session.open(tiny_engines, name) as session:
        for frame in frames:
            session.push(frame)
        answers = [
            session.ask(f"what color was the {thing.shape}?", sampling=Sampling(max_tokens=4))
            for thing in things
        ]
    right = sum(answer.text == thing.color for answer, thing in zip(answers, things, strict=True))
    since = {answer.memory_from for answer in answers}
    print(
        json.dumps(
            {
                "system": name,
                "right": right,
                "of": len(things),
                "memory_from": [float(each) for each in since],
            }
        )
    )
    if name in REMEMBERS_A_DAY:
        assert since == {0}
        assert right >= 2
    elif name in HOLDS_A_DAY:
        assert since == {0}
    else:
        assert min(since) > 60
