"""StreamingVLM's window (arXiv 2510.09608) against a plain statement of it: sink, recent text,
vision window, contiguous positions."""

from fractions import Fraction

import numpy as np
import pytest
from support.fake_engines import FakeEngineSet, rotate
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Answer, Question, Sampling
from vicort.runtime.session import Session

ASK, OTHER = "what color was the circle?", "what came after the star?"
WORDS = 4
TEXT = 40  # tokens of recent text: two turns and a bit
CHUNKS = 2
WINDOW = system(
    ingest=f"{{policy: sliding-window, chunks: {CHUNKS}}}",
    retrieval="{policy: all}",
    memory=f"{{device_mb: 2, when_full: drop-oldest}}\ntext: {{joins: true, tokens: {TEXT}}}",
)


class Run:
    """Tokens that came together: their rows' keys and values of each layer, and where they
    stand."""

    def __init__(self, kind, positions):
        self.kind = kind
        self.positions = np.array(positions)
        self.k = []
        self.v = []


class PlainWindow:
    """The transcript as a list of runs in the order of time, of which the oldest are struck out;
    what stays moves up."""

    def __init__(self, engines, prompt):
        self.engines = engines
        self.prompt = prompt
        self.first = len(prompt.prefix)
        self.runs = []
        self.units = 0
        self.origin = None
        self.last = None
        self._add(
            "prompt",
            [engines.embedding[t] for t in prompt.prefix],
            [(i, i, i) for i in range(self.first)],
        )

    def chunk(self, video):
        """Frames of one chunk."""
        m = self.engines.model
        self.units += len(video) // 2
        kept = CHUNKS * m.chunk_frames // 2
        self.runs = [
            run for run in self.runs if run.kind != "vision" or self.units - run.last < kept
        ]
        self._move_up()
        rows = self.engines.vision.function(frames=np.stack([frame.image for frame in video]))[
            "features"
        ].reshape(-1, m.width)
        self._add("vision", rows, self._positions(video))
        self.runs[-1].last = self.units

    def _positions(self, video):
        m, positions = self.engines.model, []
        for frame in video[::2]:
            step = (
                self.first
                if self.last is None
                else self.last[1] + int(frame.time - self.origin) - int(self.last[0] - self.origin)
            )
            self.origin = frame.time if self.origin is None else self.origin
            if self.runs[-1].kind == "text" and not positions:
                step = max(step, int(self.runs[-1].positions[-1, 0]) + 1)
            self.last = (frame.time, step)
            positions += [
                (step, self.first + h, self.first + w)
                for h in range(m.fixed_grid.rows)
                for w in range(m.fixed_grid.columns)
            ]
        return positions

    def ask(self, question, half=None):
        """The answer's tokens; it joins. half: a frame without its second one, which is seen twice,
        and not kept."""
        before = list(self.runs)
        if half:
            self._see(half)
        tokens = self._answer(question)
        if half:
            after = [run for run in self.runs if run not in before and run.kind != "half"]
            texts = [run for run in before if run in self.runs or run.kind == "vision"]
            self.runs = texts + after
        return tokens

    def _see(self, half):
        m = self.engines.model
        kept = CHUNKS * m.chunk_frames // 2
        self.runs = [
            run for run in self.runs if run.kind != "vision" or self.units + 1 - run.last < kept
        ]
        rows = self.engines.vision.function(frames=np.stack([half.image] * 2))["features"]
        last, origin = self.last, self.origin
        self._add("half", rows.reshape(-1, m.width), self._positions([half, half]))
        self.last, self.origin = last, origin

    def _answer(self, question):
        suffix = self.prompt.question(question)
        place = max(int(run.positions.max()) for run in self.runs) + 1
        hidden = self._add(
            "text",
            [self.engines.embedding[t] for t in suffix],
            [(place + i,) * 3 for i in range(len(suffix))],
        )
        tokens = []
        while True:
            token = int(np.argmax(hidden[-1] @ self.engines.embedding.T))
            if token in self.engines.model.eos_tokens:
                self._grow(token)
                break
            tokens.append(token)
            hidden = self._grow(token)
            if len(tokens) == WORDS:
                break
        texts = [run for run in self.runs if run.kind == "text"]
        while len(texts) > 1 and sum(len(run.positions) for run in texts) > TEXT:
            self.runs.remove(texts.pop(0))
        return tokens

    def _grow(self, token):
        run = self.runs.pop()
        place = int(run.positions[-1, 0]) + 1
        return self._add("text", [self.engines.embedding[token]], [(place,) * 3], grown=run)

    def _move_up(self):
        vision = next((i for i, run in enumerate(self.runs) if run.kind == "vision"), None)
        if vision is None:
            return
        end = self.first
        for run in self.runs[1:vision]:
            run.positions += end - run.positions[0, 0]
            end += len(run.positions)
        shift = self.runs[vision].positions[0, 0] - end
        for run in self.runs[vision:]:
            run.positions -= [shift, 0, 0] if run.kind == "vision" else shift
        self.last = (self.last[0], self.last[1] - shift)

    def _add(self, kind, rows, positions, grown=None):
        """Run rows through all layers, each seeing all runs, `grown` and the rows before it."""
        m, x, new = self.engines.model, np.array(rows, np.float64), Run(kind, positions)
        before = [*self.runs, *([grown] if grown else [])]
        for layer, weights in enumerate(self.engines._layers):
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in (("q", m.query_heads), ("k", m.kv_heads), ("v", m.kv_heads))
            )
            new.k.append(k)
            new.v.append(v)
            keys = np.concatenate([turned(run.k[layer], run.positions) for run in [*before, new]])
            values = np.concatenate([run.v[layer] for run in [*before, new]])
            cached = len(keys) - len(x)
            out, queries = np.zeros((len(x), m.query_heads, m.head_dim)), turned(q, new.positions)
            for row in range(len(x)):
                for head in range(m.query_heads):
                    kv = head // (m.query_heads // m.kv_heads)
                    seen = slice(0, cached + row + 1)
                    scores = keys[seen, kv] @ queries[row, head] / m.head_dim**0.5
                    weight = np.exp(scores - scores.max())
                    out[row, head] = weight @ values[seen, kv] / weight.sum()
            x = x + out.reshape(len(x), -1) @ weights["o"]
        if grown:
            new.positions = np.concatenate([grown.positions, new.positions])
            new.k = [np.concatenate(pair) for pair in zip(grown.k, new.k, strict=True)]
            new.v = [np.concatenate(pair) for pair in zip(grown.v, new.v, strict=True)]
        self.runs.append(new)
        return x


def turned(keys, positions):
    return rotate(keys, positions[:, None])


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stream_with_questions_is_what_the_plain_statement_says(overlap):
    engines, video = FakeEngineSet(seed=5), frames(24)
    # seconds; units of a second, chunks of four units; half a unit is there at 3.5, 6.5 and 10.5
    asked = [(1, ASK), (3.5, OTHER), (6.5, ASK), (8, ASK), (10.5, OTHER), (12, ASK)]
    events = []
    with Session(engines, WINDOW, on_event=events.append, overlap=overlap) as session:
        prompt, memory = session.inspect().prompt, session.inspect().memory
        for at, text in asked:
            session.submit(
                Question(
                    text,
                    Fraction(at) - Fraction(1, 4),
                    str(at),
                    sampling=Sampling(max_tokens=WORDS),
                )
            )
        for frame in video:
            session.push(frame)
        session.finish()
        texts = [[held.page.tokens for held in run] for run in memory.texts]
        time_positions = memory.pool.cell_positions[
            [held.slot for unit in memory.tiers.units for held in memory.tiers.locations(unit)]
        ][..., 0].max()
    plain, said, waiting = PlainWindow(engines, prompt), {}, []
    for number, frame in enumerate(video):
        for at, text in asked:
            if at - 0.25 < frame.time and str(at) not in said:
                ready = len(waiting) // 2 * 2
                if ready:
                    plain.chunk(waiting[:ready])
                    del waiting[:ready]
                said[str(at)] = plain.ask(text, *waiting)
        waiting.append(frame)
        if len(waiting) == engines.model.chunk_frames or number == len(video) - 1:
            plain.chunk(waiting)
            waiting = []
    for at, text in asked:
        if str(at) not in said:
            said[str(at)] = plain.ask(text, *waiting)
    answers = {event.id: event.text for event in events if isinstance(event, Answer)}
    assert answers == {at: prompt.decode(tokens) for at, tokens in said.items()}
    assert [sum(run) for run in texts] == [
        len(run.positions) for run in plain.runs if run.kind == "text"
    ]
    assert time_positions == max(
        run.positions[:, 0].max() for run in plain.runs if run.kind == "vision"
    )


def test_positions_stay_small_and_pages_few_however_long_the_stream():
    with Session(FakeEngineSet(), WINDOW) as session:
        pages = []
        for start in range(0, 400, 40):
            for frame in frames(40, start=start):
                session.push(frame)
            session.ask(ASK, sampling=Sampling(max_tokens=2))
            held = session.inspect().memory.pool.cell_positions
            pages.append((session.summary().pages["device"], int(held.max())))
        assert len(set(pages[5:])) == 1
        assert pages[-1][1] < len(session.inspect().prompt.prefix) + TEXT + 40
