"""Every system with toy engines, a video, and questions about it."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import FULL, system

from vicort.runtime.core import Frame, Question, Sampling
from vicort.runtime.policies.system import known_systems, load_system

SHORT = Sampling(max_tokens=2)
ASK = "what color was the circle?"
DROPPING = "{policy: chunk-intra, threshold: 0.2}"
SMALL = "{device_mb: 1.1, host_mb: 0.02, when_full: drop-oldest}"
ONE_CHUNK = {"chunks": 1}
SMALLER = {  # so that long-term memory is full soon, and read in parts
    "freekv": load_system("freekv").with_(ingest=ONE_CHUNK, long_term={"budget": 8}),
    "livevlm": load_system("livevlm").with_(
        ingest=ONE_CHUNK, long_term={"tokens": 80, "keep": 0.9}
    ),
    "rekv": load_system("rekv").with_(ingest=ONE_CHUNK, long_term={"top": 2}),
    "resv": load_system("resv").with_(ingest=ONE_CHUNK, long_term={"most_tokens": 4}),
}
THINNED = "{device_mb: 1.1, when_full: thin-evenly}"
SYSTEMS = {
    name: SMALLER.get(name, published)
    for name in known_systems()
    if not (published := load_system(name)).text.joins
} | {
    "full": system(**FULL),
    "spilling": system(drop=DROPPING, memory=SMALL),
    "alike": load_system("distinct").with_(
        memory={"device_mb": 1.3, "host_mb": 0.02, "when_full": "drop-alike"}
    ),
    "thinned": system(retrieval="{policy: even-units, units: 3}", memory=THINNED),
    "sliding": system(ingest="{policy: sliding-window, chunks: 2}", retrieval="{policy: all}"),
    "distinct chunks": system(
        drop=DROPPING, retrieval="{policy: distinct-chunks, units: 5}", memory=SMALL
    ),
}
# seconds from and to, in quarters; None = no limit
RANGES = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted),
    st.tuples(st.integers(0, 60), st.none()),
    st.tuples(st.none(), st.integers(0, 60)),
)


def asked(at: int, conversation: str | None = None, within=None) -> Question:
    """at, within: in quarters of a second."""
    since, until = (
        None if quarters is None else Fraction(quarters, 4) for quarters in within or (None, None)
    )
    return Question(ASK, Fraction(at, 4), "", conversation, SHORT, since, until)


@cache
def pictures(count: int) -> list[Frame]:
    """Random pictures of which a quarter changes from one to the next, or nothing."""
    random, image = np.random.default_rng(5), frames(1)[0].image
    shown = []
    for number in range(count):
        row, column = 4 * random.integers(0, 2, 2)
        if random.random() < 0.6:
            image = image.copy()
            image[row : row + 4, column : column + 4] = random.integers(0, 256, (4, 4, 3), np.uint8)
        shown.append(Frame(image, Fraction(number, 2), number))
    return shown


def engines(**changes) -> FakeEngineSet:
    return FakeEngineSet(seed=1, layers=2, **changes)
