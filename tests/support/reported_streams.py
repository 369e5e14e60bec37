"""Streams of a minute that are watched and asked about, and what is reported of them: the same of
equal engines on any device."""

from __future__ import annotations

from fractions import Fraction

from support.streams import frames
from support.systems import system

from vicort.runtime.core import Answer, ChunkEvent, Question, Sampling, Spoken
from vicort.runtime.policies.speech import StreamingEos
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=4)
ASK, OTHER = "what color was the circle?", "what came after the star?"
BY_HEAD = [name for name in known_systems() if load_system(name).long_term]  # on CPU engines only
SHARED = [name for name in known_systems() if name not in BY_HEAD]
SPILLING = system(
    retrieval="{policy: similar-chunks, top: 4}",
    memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}",
)


def small(name):
    """A system of the product, with the pages of a toy."""
    found = load_system(name)
    host = 0 if found.memory.host_mb == 0 else 0.02
    device = {"uniform": 2.5, "vicostream": 2.5, "videollm-online": 3}.get(name, 1.2)
    speaks = (
        found.speaks.model_copy(update={"longest": 2})
        if isinstance(found.speaks, StreamingEos)
        else found.speaks
    )
    return found.with_(memory={"device_mb": device, "host_mb": host}, speaks=speaks)


def watch(engines, chosen, video, questions=(), *, asks=(), **options):
    """A stream, with questions at times to come (several at once), and a conversation that is asked
    as it goes.

    -> answers by their id, chunks in their order, pages at the end
    """
    events = []
    with Session(engines, chosen, sampling=SHORT, on_event=events.append, **options) as session:
        for at in questions:
            session.submit(
                Question(ASK, None if at is None else Fraction(at), id=f"at {at}", sampling=SHORT)
            )
        for number, frame in enumerate(video):
            session.push(frame)
            if number in asks:
                session.submit(
                    Question(
                        OTHER, Fraction(0), id=f"turn {number}", conversation="a", sampling=SHORT
                    )
                )
        session.finish()
        pages = session.summary().pages
    said = {
        e.id: (e.text, e.seen_until, e.read, e.pages, e.tokens)
        for e in events
        if isinstance(e, Answer)
    }
    said |= {f"unasked, {e.at}": (e.text, e.silence) for e in events if isinstance(e, Spoken)}
    return (
        said,
        [(e.index, e.start, e.end, e.kept) for e in events if isinstance(e, ChunkEvent)],
        pages,
    )


def told(engines, name, **options):
    chosen = SPILLING if name == "spilling" else small(name)
    video = frames(120 if name == "spilling" else 48)
    return watch(engines, chosen, video, (0, "3.2", "3.2", 11, None), asks=(20, 40), **options)


ANY_SIZE = {"grid": None, "max_pixels": 96}  # six tokens of 4x4 pixels


def told_of_sizes(engines, **options):
    """A stream that changes its size, back and forth."""
    sizes = [(8, 12), (12, 8), (8, 8), (4, 20), (8, 12), (12, 8)]
    video = [f for i, size in enumerate(sizes) for f in frames(17, size=size, start=17 * i)]
    return watch(engines, system(), video, (3, 11, 30, None), **options)
