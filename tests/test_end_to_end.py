"""Real engines, the real runtime: against transformers' one pass, against the sequential twin, and
without torch."""

import functools
import itertools
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reference_model import Conversation, load_reference
from support.sizes import slow
from transformers import RepetitionPenaltyLogitsProcessor

from vicort.runtime.core import Answer, ChunkEvent, Frame, Question, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.policies.system import known_systems, load_system
from vicort.runtime.session import Session
from vicort.runtime.sources import open_source

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = Path(__file__).parents[1] / "export" / "tiny" / "checkpoint"
WORDS = 6
PENALTY = 30.0  # large enough to change the answer


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("overlap", [True, False])
def test_streaming_with_full_history_equals_transformers_in_one_pass(build_tiny, backend, overlap):
    """Chunks of 16 and the rest, uneven times, a text to go on with: the same greedy tokens,
    whatever the end-of-text token says."""
    torch.set_num_threads(1)
    frames = np.random.default_rng(0).integers(0, 256, (22, 112, 112, 3), np.uint8)
    times = [
        Fraction(t, 2)
        for t in [
            0,
            1,
            2,
            3,
            9,
            10,
            11,
            12,
            40,
            41,
            42,
            43,
            44,
            45,
            100,
            101,
            102,
            103,
            104,
            105,
            300,
            301,
        ]
    ]
    engines = EngineSet.open(build_tiny(backend))
    model = engines.manifest.model
    engines.manifest = engines.manifest.model_copy(
        update={"model": model.model_copy(update={"eos_tokens": ()})}
    )
    with Session(engines, load_system("full-history"), overlap=overlap, fps="source") as session:
        for index, (image, at) in enumerate(zip(frames, times, strict=True)):
            session.push(Frame(image, at, index))
        session.finish()
        question = "what color was the circle?"
        answer = session.ask(question, sampling=Sampling(max_tokens=WORDS))
        penalised = session.ask(
            question, sampling=Sampling(max_tokens=WORDS, repetition_penalty=PENALTY)
        )
        prompt = session.inspect().prompt
    temporal = [int(at * Fraction(model.tokens_per_second)) for at in times[::2]]
    asked = Conversation(
        prompt.prefix,
        torch.from_numpy(frames),
        temporal,
        prompt.question(question),
    )
    reference = load_reference(CHECKPOINT)
    expected, logits = asked.reference_answer(reference, WORDS)
    assert answer.tokens == WORDS
    assert answer.text == prompt.decode(expected)
    chances = torch.log_softmax(logits.double(), -1)[range(WORDS), expected]
    assert answer.probability == pytest.approx(float(chances.mean().exp()), rel=1e-3)
    assert answer.first_probability == pytest.approx(float(chances[0].exp()), rel=1e-3)
    changed, _ = asked.reference_answer(
        reference, WORDS, [RepetitionPenaltyLogitsProcessor(PENALTY)]
    )
    assert changed != expected
    assert penalised.text == prompt.decode(changed)


def cells(memory) -> list[bytes]:
    """Keys, values and positions of every cached visual token, in the order of the stream."""
    held = [page for unit in memory.tiers.units for page in memory.tiers.locations(unit)]
    tiers = [
        (memory.pool if page.on_device else memory.tiers.host_pool, page.slot, page.page.tokens)
        for page in held
    ]
    units = [
        part
        for pool, slot, n in tiers
        for part in (pool.data[slot, :, :, :, :n], pool.cell_positions[slot, 0, 0, :n])
    ]
    return [part.tobytes() for part in (*units, *long_term_cells(memory))]


def long_term_cells(memory) -> list[np.ndarray]:
    """The same of whole cells of long-term memory; of one that is not full, other cells are left
    over."""
    if memory.long_term is None:
        return []
    pool, full = memory.long_term.pool, int(memory.long_term.cells_in_use()) - 1
    assert full > 0
    return [pool.data[:full], pool.cell_positions[:full]]


@pytest.fixture(scope="module")
def opened(build_tiny):
    """The engine set of a backend, opened once."""
    with ExitStack() as stack:
        yield functools.cache(
            lambda backend: stack.enter_context(EngineSet.open(build_tiny(backend)))
        )


# each runs graphs, or shapes of them, that the others do not
DIFFERENT = ("vicostream", "codecflow", "resv", "videollm-online")
# run the graphs and shapes of the others; they differ in what they keep and read, which
# tests/runtime/ and test_cuda_pipeline.py compare
ALIKE = ("distinct", "streaming-window", "uniform")


@pytest.mark.parametrize(
    ("backend", "system"),
    [
        *(("onnxruntime", name) for name in known_systems() if name not in ALIKE + DIFFERENT),
        *(("openvino", name) for name in DIFFERENT),
        *slow(*(("openvino", name) for name in known_systems() if name not in DIFFERENT)),
        *slow(*(("onnxruntime", name) for name in ALIKE + DIFFERENT)),
    ],
)
def test_overlapped_and_sequential_agree_to_the_last_bit_on_a_real_file(opened, backend, system):
    engines = opened(backend)

    def told(overlap):
        events = []
        with (
            open_source(str(FIXTURES / "shapes.mp4")) as source,
            Session(
                engines, load_system(system), overlap=overlap, on_event=events.append, fps=4
            ) as session,
        ):
            for at in (2, 7, 11, None):
                session.submit(
                    Question(
                        "what is there now?",
                        None if at is None else Fraction(at),
                        str(at),
                        sampling=Sampling(max_tokens=8),
                    )
                )
            for frame in source.frames(session.wants):
                session.push(frame)
            session.finish()
            cached = cells(session.inspect().memory)
        answers = {
            e.id: (e.text, e.seen_until, e.read, e.pages) for e in events if isinstance(e, Answer)
        }
        chunks = [
            (e.index, e.frames, e.start, e.end, e.kept) for e in events if isinstance(e, ChunkEvent)
        ]
        return answers, chunks, cached

    assert told(True) == told(False)


def without_torch(*arguments: str) -> subprocess.CompletedProcess:
    """`vicort-run` in a process that cannot import torch, nor anything else of the export side."""
    banned = ("torch", "transformers", "onnx", "onnxscript", "vicort.export", "vicort.benchmarks")
    code = (
        f"import sys\nfor name in {banned}: sys.modules[name] = None\nfrom "
        "vicort.runtime.cli.run import main\nsys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )


def test_a_whole_run_works_with_torch_unimportable(tiny_engines):
    done = without_torch(
        str(FIXTURES / "shapes.mp4"),
        "--engine-dir",
        str(tiny_engines),
        "--ask",
        "what is there now?",
        "--format",
        "jsonl",
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["answer", "summary"]


# vicostream's token drop loses some things that follow each other in a chunk (docs/systems.md)
@pytest.mark.parametrize(
    ("system", "least"),
    [
        *((name, 0.9) for name in ("full-history", "distinct", "uniform", "rekv")),
        ("timechat-online", 0.9),
        ("vicostream", 0.85),
    ],
)
def test_the_embedded_model_answers_about_the_fixture(tiny_engines, system, least):
    sidecar = json.loads((FIXTURES / "shapes.json").read_text())
    with (
        Session.open(tiny_engines, system) as session,
        open_source(str(FIXTURES / "shapes.mp4")) as source,
    ):
        asked = [
            (
                case,
                session.submit(
                    Question(
                        case["question"], None if case["at"] is None else Fraction(str(case["at"]))
                    )
                ),
            )
            for case in sidecar["questions"]
        ]
        for frame in source.frames(session.wants):
            session.push(frame)
        session.finish()
    right = [case["answer"] == answer.result().text for case, answer in asked]
    assert sum(right) >= least * len(right)


def plain_shapes() -> dict[str, np.ndarray]:
    """Masks [120, 160] of shapes in the middle of a frame."""
    y, x = (np.mgrid[:120, :160] - np.array([60, 80]).reshape(2, 1, 1)) / 40
    distance = np.hypot(x, y)
    return {
        "circle": distance < 0.8,
        "square": np.maximum(abs(x), abs(y)) < 0.7,
        "ring": abs(distance - 0.62) < 0.2,
        "diamond": abs(x) + abs(y) < 0.95,
    }


@pytest.mark.parametrize("shapes", list(itertools.permutations(plain_shapes(), 3))[::3])
def test_the_default_system_loses_nothing_that_follows_directly(build_tiny, shapes):
    """One second each, on a plain background that stands still: the vision encoder's tokens of one
    thing are much like those of the next."""
    colors = {"green": (40, 160, 60), "blue": (50, 80, 210), "white": (235, 235, 235)}
    drawn = []
    for shape, color in zip(shapes, colors.values(), strict=True):
        image = np.full((120, 160, 3), 45, np.uint8)
        image[plain_shapes()[shape]] = color
        drawn += [image, image]
    with Session.open(build_tiny("onnxruntime"), fps="source") as session:
        for index, image in enumerate(drawn):
            session.push(Frame(image, Fraction(index, 2), index))
        said = [session.ask(f"what color was the {shape}?").text for shape in shapes]
    assert said == list(colors)


@pytest.mark.parametrize(
    "system", ["distinct", "full-history", "uniform", "freekv", "livevlm", "rekv", "resv"]
)
def test_a_question_about_a_part_of_the_stream_sees_that_part(tiny_engines, system):
    """A green circle in the first four seconds, and a blue one from second 16 to 20."""
    green, blue, none = (40, 160, 60), (50, 80, 210), (45, 45, 45)
    shown = [green] * 8 + [none] * 24 + [blue] * 8 + [none] * 8
    with Session.open(tiny_engines, system, fps=2) as session:
        for index, color in enumerate(shown):
            image = np.full((120, 160, 3), 45, np.uint8)
            image[plain_shapes()["circle"]] = color
            session.push(Frame(image, Fraction(index, 2), index))
        what, whether = "what color was the circle?", "was there a circle?"
        first = session.ask(what, until=Fraction(10))
        second = session.ask(what, since=Fraction(12))
        between = session.ask(whether, since=Fraction(6), until=Fraction(14))
        over = session.ask(whether, since=Fraction(24))
        whole = session.ask(whether)
    assert [each.text for each in (first, second, between, whole)] == ["green", "blue", "no", "yes"]
    assert over.read == ()
    for answer, since, until in ((first, 0, 10), (second, 12, 99), (between, 6, 14)):
        # a unit that overlaps the range may begin half a second before, or end as much after
        assert all(since - 0.5 <= start and end <= until + 0.5 for start, end in answer.read)
