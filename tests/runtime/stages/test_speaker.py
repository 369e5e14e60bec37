"""VideoLLM-online's streaming end-of-sequence decision (arXiv 2406.11816) against a plain statement
of it, on a toy model."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet, rotate, toy_model
from support.sizes import examples
from support.streams import frames

from vicort.runtime.core import Answer, Frame, Question, Sampling, Spoken
from vicort.runtime.errors import ConfigError
from vicort.runtime.policies.speech import StreamingEos
from vicort.runtime.policies.system import System, load_system, parse_system
from vicort.runtime.session import Session
from vicort.runtime.stages.speaker import probability

ASK, OTHER = "when is there a star?", "what color was the circle?"
END = 2  # <|im_end|> of the tokenizer
LONGEST = 3


def speaking(
    threshold: float,
    device_mb: float = 3,
    silence: str = "<|im_end|>",
    longest: int = LONGEST,
    text: int = 4096,
    rule: str = "threshold",
) -> System:
    return parse_system(
        "name: speaking\nchunk: {frames: 2}\ndrop: {policy: none}\ningest: {policy: "
        "all}\nretrieval: {policy: all}\n"
        f"text: {{joins: true, tokens: {text}}}\n"
        f'speaks: {{policy: streaming-eos, silence: "{silence}", threshold: {threshold}, '
        f"rule: {rule}, longest: {longest}}}\n"
        f"memory: {{device_mb: {device_mb}, when_full: drop-oldest}}",
        "speaking.yaml",
    )


def is_silent(chances, threshold, rule):
    """The public code: silence below the threshold becomes impossible, then the best token decides;
    or the threshold alone."""
    if rule == "threshold":
        return chances[END] >= threshold
    left = chances.copy()
    if left[END] < threshold:
        left[END] = 0
    return int(np.argmax(left)) == END


class PlainSpeaker:
    """One list of tokens, which all that comes sees; nothing leaves it."""

    def __init__(self, engines, prompt, threshold, rule):
        self.engines = engines
        self.rule = rule
        self.m = engines.model
        self.prompt = prompt
        self.threshold = threshold
        self.positions: list[tuple[int, int, int]] = []
        # rotated
        self.k = [np.zeros((0, self.m.kv_heads, self.m.head_dim)) for _ in range(self.m.layers)]
        self.v = [np.zeros((0, self.m.kv_heads, self.m.head_dim)) for _ in range(self.m.layers)]
        self.first = len(prompt.prefix)
        self.shift = 0
        self.text_end = 0
        self.origin = None
        self._read(engines.embedding[prompt.prefix], [(i, i, i) for i in range(self.first)])

    def ask(self, question, words):
        """The answer's tokens; it joins."""
        return self._write(self._place(self.prompt.question(question)), words)

    def sees(self, unit):
        """Two frames -> (probability of silence, tokens that are said, [] = none)."""
        self.origin = unit[0].time if self.origin is None else self.origin
        t = (
            self.first
            + int((unit[0].time - self.origin) * Fraction(self.m.tokens_per_second))
            + self.shift
        )
        late = max(0, self.text_end + 1 - t)
        self.shift, t = self.shift + late, t + late
        grid = [
            (t, self.first + h, self.first + w)
            for h in range(self.m.fixed_grid.rows)
            for w in range(self.m.fixed_grid.columns)
        ]
        rows = self.engines.vision.function(frames=np.stack([frame.image for frame in unit]))[
            "features"
        ].reshape(len(grid), -1)
        logits = self._read(rows, grid)
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        chance = chances[END]
        if is_silent(chances, self.threshold, self.rule):
            return chance, []
        logits[END] = -np.inf
        return chance, self._write(logits, LONGEST, ends=True)

    def _write(self, logits, words, ends=False):
        tokens = []
        while (token := int(np.argmax(logits))) != END and len(tokens) < words:
            tokens.append(token)
            logits = self._place([token])
        if token == END or ends:
            self._place([END])
        return tokens

    def _place(self, tokens):
        start = max(max(place) for place in self.positions) + 1
        self.text_end = start + len(tokens) - 1
        return self._read(
            self.engines.embedding[tokens], [(start + i,) * 3 for i in range(len(tokens))]
        )

    def _read(self, rows, positions):
        """Logits behind the last row."""
        m, x, before = self.m, np.asarray(rows, np.float64), len(self.positions)
        self.positions += positions
        for layer, weights in enumerate(self.engines._layers):
            heads = {"q": m.query_heads, "k": m.kv_heads, "v": m.kv_heads}
            q, k, v = (
                (x @ weights[name]).reshape(len(x), count, m.head_dim)
                for name, count in heads.items()
            )
            places = np.array(positions)[:, None]
            turned, queries = rotate(k, places), rotate(q, places)
            self.k[layer], self.v[layer] = (
                np.concatenate([self.k[layer], turned]),
                np.concatenate([self.v[layer], v]),
            )
            out = np.zeros((len(x), m.query_heads, m.head_dim))
            for row, head in np.ndindex(len(x), m.query_heads):
                seen, kv = slice(0, before + row + 1), head // (m.query_heads // m.kv_heads)
                scores = self.k[layer][seen, kv] @ queries[row, head] / m.head_dim**0.5
                weight = np.exp(scores - scores.max())
                out[row, head] = weight @ self.v[layer][seen, kv] / weight.sum()
            x = x + out.reshape(len(x), -1) @ weights["o"]
        return undecided(x[-1] @ self.engines.embedding.T)


def run(engines, system, video, asked=(), overlap=True):
    """What was said, what was answered, and the session, closed."""
    events = []
    with Session(engines, system, on_event=events.append, overlap=overlap) as session:
        for at, text in asked:
            session.submit(
                Question(text, Fraction(at), str(at), sampling=Sampling(max_tokens=LONGEST))
            )
        for frame in video:
            session.push(frame)
        session.finish()
    return (
        [e for e in events if isinstance(e, Spoken)],
        {e.id: e.text for e in events if isinstance(e, Answer)},
        session,
    )


def gaps(count: int) -> list[Frame]:
    """Frames of which some are seconds later than the others."""
    late = {7: 3, 12: 40}
    passed = 0
    shifted = []
    for frame in frames(count):
        passed += late.get(frame.index, 0)
        shifted.append(Frame(frame.image, frame.time + passed, frame.index))
    return shifted


def paired(video: list[Frame]) -> list[list[Frame]]:
    """Units: a frame after which nothing comes for a second is shown twice."""
    units: list[list[Frame]] = [[]]
    for frame in video:
        if len(units[-1]) == 1 and frame.time - units[-1][0].time >= 1:
            units[-1] *= 2
        units += [[]] * (len(units[-1]) == 2)
        units[-1] = [*units[-1], frame]
    units[-1] *= 2 // len(units[-1])
    return units


class UndecidedEngines(FakeEngineSet):
    """Silence and the most probable word are near each other."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, eos_tokens=(END,))
        choose = self.head.function
        self.head.function = lambda **given: {"logits": undecided(choose(**given)["logits"])}


def undecided(logits: np.ndarray) -> np.ndarray:
    flatter = logits / 10
    flatter[..., END] += 3
    return flatter


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("rule", ["published", "threshold"])
@pytest.mark.parametrize("seed", [0, 10])
def test_decisions_and_words_are_what_the_plain_statement_says(seed, rule, overlap):
    engines, threshold = UndecidedEngines(seed), 0.2
    video, asked = gaps(24), [(0, ASK), (5, OTHER)]
    system = speaking(threshold, rule=rule)
    spoken, answers, session = run(engines, system, video, asked, overlap)
    prompt, plain, expected = (
        session.inspect().prompt,
        PlainSpeaker(engines, session.inspect().prompt, threshold, rule),
        [],
    )
    told = {"0": prompt.decode(plain.ask(ASK, LONGEST))}
    units = paired(video)
    for unit in units:
        if unit[1].time > 5 and "5" not in told:
            told["5"] = prompt.decode(plain.ask(OTHER, LONGEST))
        chance, tokens = plain.sees(unit)
        if tokens:
            expected.append((unit[1].time, prompt.decode(tokens), len(tokens), chance))
    assert answers == told
    assert [(each.at, each.text, each.tokens) for each in spoken] == [each[:3] for each in expected]
    np.testing.assert_allclose(
        [each.silence for each in spoken], [each[3] for each in expected], rtol=1e-3
    )
    assert 0 < len(spoken) < len(units)  # else one of the two branches was never taken
    overruled = any(each.silence >= threshold for each in spoken)
    assert overruled == (rule == "published")  # a word was more probable than that
    timeline = session.inspect().memory.timeline
    assert timeline.next_text == max(max(place) for place in plain.positions) + 1


LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=6)


@given(LOGITS, st.floats(0.05, 1), st.sampled_from(["published", "threshold"]))
@settings(max_examples=examples(200))
def test_the_rule_is_that_of_the_public_code(logits, threshold, rule):
    chances = np.exp(logits) / np.exp(logits).sum()
    word = np.delete(chances, END).max()
    assume(min(abs(chances[END] - word), abs(chances[END] - threshold)) > 1e-9)
    policy = StreamingEos(threshold=threshold, rule=rule)
    found = policy.is_silent(probability(np.array(logits), END), word)
    assert found == is_silent(chances, threshold, rule)
    if threshold >= 0.5:
        assert found == StreamingEos(threshold=threshold, rule="threshold").is_silent(
            chances[END], word
        )


def test_silence_leaves_nothing_in_the_stream():
    engines, video = FakeEngineSet(eos_tokens=(END,)), frames(16)
    quiet, _, silent = run(engines, speaking(1e-300), video)
    assert quiet == []
    assert not silent.inspect().memory.texts
    asked, _, _ = run(engines, parse_system(WHEN_ASKED, "asked.yaml"), video)
    assert asked == []
    loud, _, speaking_one = run(engines, speaking(1.0), video)
    assert [each.at for each in loud] == [frame.time for frame in video[1::2]]
    assert len(speaking_one.inspect().memory.texts) == len(loud)


WHEN_ASKED = (
    "name: asked\ndrop: {policy: none}\ningest: {policy: all}\nretrieval: {policy: all}\nmemory: "
    "{device_mb: 3, when_full: refuse}"
)


def test_words_are_never_empty_and_never_longer_than_allowed():
    """The first word is the best besides the end, whatever else ends an answer; what is cut off
    ends with silence's token."""
    engines = FakeEngineSet(seed=3, eos_tokens=(END, 0))
    for longest in (1, 5):
        spoken, _, session = run(engines, speaking(1.0, longest=longest), frames(12))
        assert {each.tokens for each in spoken} <= set(range(1, longest + 1))
        assert len(spoken) == 6
        ends = [sum(held.page.tokens for held in text) for text in session.inspect().memory.texts]
        assert ends == [each.tokens + 1 for each in spoken]


def test_overlapped_and_sequential_agree_to_the_last_bit():
    def told(overlap):
        engines = FakeEngineSet(seed=1, eos_tokens=(END,))
        spoken, answers, session = run(
            engines, speaking(0.01), frames(20), [(0, ASK), (4, OTHER)], overlap
        )
        memory = session.inspect().memory
        held = [page for unit in memory.tiers.units for page in memory.tiers.locations(unit)] + [
            page for text in memory.texts for page in text
        ]
        cells = [
            (
                memory.pool.data[p.slot, ..., : p.page.tokens, :].tobytes(),
                memory.pool.cell_positions[p.slot].tobytes(),
            )
            for p in held
        ]
        return [(s.at, s.text, s.silence) for s in spoken], answers, cells

    assert told(True) == told(False)


def test_memory_is_bounded_and_words_keep_their_order():
    """Units are forgotten, oldest first; text stays, up to its own budget; positions stay in the
    trained range."""
    engines = FakeEngineSet(
        seed=2, eos_tokens=(END,), max_position=160, page_tokens=16, max_rows=16
    )
    system, said = speaking(1.0, device_mb=1.1, longest=2, text=30), []
    with Session(engines, system, overlap=False, on_event=said.append) as session:
        memory = session.inspect().memory
        session.submit(Question(ASK, Fraction(0), sampling=Sampling(max_tokens=2)))
        for frame in frames(120):
            session.push(frame)
            texts = [[page.page.tokens for page in run] for run in memory.texts]
            assert sum(map(sum, texts)) <= 30
            for run in memory.texts:
                places = memory.pool.cell_positions[run[0].slot, 0, 0, : run[0].page.tokens, 0]
                assert places.tolist() == list(range(places[0], places[0] + len(places)))
            assert memory.pool.cell_positions.max() < 160
            assert memory.tiers.stream_slots.live <= memory.tiers.stream_slots.count
        session.finish()
    units = list(memory.tiers.units)
    assert units == list(range(60 - len(units), 60))
    assert len(units) < 60
    # so time was re-based
    assert 60 + sum(event.tokens + 1 for event in said if isinstance(event, Spoken)) > 160


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "speaks: {policy: loud}",
            "speaks policy 'loud' is unknown: choose one of streaming-eos, when-asked",
        ),
        ("speaks: {policy: streaming-eos, threshold: 0}", "speaks.threshold"),
        ("speaks: {policy: streaming-eos, longest: 100000}", "speaks.longest"),
        ("speaks: {policy: streaming-eos, rule: loud}", "speaks.rule"),
        ("speaks: {policy: streaming-eos}\ntext: {joins: false}", "set text.joins"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_system(f"{WHEN_ASKED}\n{text}", "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silence_that_the_model_does_not_have():
    with pytest.raises(ConfigError) as caught:
        run(FakeEngineSet(), speaking(0.5, silence="<|hush|>"), [])
    assert (
        "speaks.silence '<|hush|>' is no token of this model: choose one of <|endoftext|>"
        in str(caught.value)
    )
    assert "\n" not in str(caught.value)


def test_few_tokens_takes_only_engines_with_few():
    system = load_system("videollm-online")
    assert (system.chunk_frames, system.text.joins, system.drop.a_frame) == (2, True, 10)
    system.drop.check(system.name, toy_model(grid=(4, 5)))
    with pytest.raises(ConfigError) as caught:
        system.drop.check(system.name, toy_model(grid=(3, 7)))
    assert (
        "takes 10 tokens a frame, these engines give 10.5: build with a smaller --image-size"
        in str(caught.value)
    )


def test_probability_is_softmax():
    logits = np.random.default_rng(0).normal(size=50) * 30
    exact = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose([probability(logits, token) for token in range(50)], exact)
