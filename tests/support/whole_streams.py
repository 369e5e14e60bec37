"""A whole stream of frames through a session on a toy model, with questions about it."""

from fractions import Fraction

from support.fake_engines import FakeEngineSet
from support.systems import system

from vicort.runtime.core import Answer, ChunkEvent, Question, Sampling
from vicort.runtime.session import Session
from vicort.runtime.sources.source import Ending, Wanted

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"


def run(video, questions=(), chosen=None, engines=None, **options):
    """Events of a whole stream, in order, and its session's summary."""
    events = []
    engines = engines or FakeEngineSet()
    with Session(
        engines, chosen or system(), on_event=events.append, sampling=SHORT, **options
    ) as session:
        for question in questions:
            session.submit(question)
        session.finish(feed(session, video))
        return events, session.summary()


def feed(session, video):
    """Push what is wanted; returns how the video ends."""
    wanted, before = True, None
    for frame in video:
        wanted = session.wants(frame.time)
        if wanted == Wanted.BOTH:
            session.push(before)
        if wanted:
            session.push(frame)
        before = frame
    return None if wanted else Ending(before, before.time)


def answers(events):
    return [event for event in events if isinstance(event, Answer)]


def chunks(events):
    return [event for event in events if isinstance(event, ChunkEvent)]


def question(at, text=ASK, **options):
    return Question(text, None if at is None else Fraction(at), sampling=SHORT, **options)
