"""Real engines that take frames of any size: against transformers, and several sources on one
engine set."""

from __future__ import annotations

import functools
from fractions import Fraction
from threading import Thread

import numpy as np
import pytest
import torch
from support.engine_sets import ANY_SIZE_PIXELS, any_size_set, talking_checkpoint
from support.reference_model import load_reference, pixel_values
from support.sizes import slow
from support.streams import frames
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vicort.runtime.core import ChunkEvent, Sampling
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.manifest import read_manifest
from vicort.runtime.policies.system import load_system
from vicort.runtime.session import Session

WORDS = Sampling(max_tokens=5)
ASK = "what color was the circle?"
WIDE, HIGH, SMALL = (84, 168), (196, 84), (56, 84)  # 3x6, 7x3 and 2x3 tokens


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engines(request):
    with EngineSet.open(any_size_set(request.param)) as opened:
        model = opened.manifest.model.model_copy(update={"eos_tokens": ()})
        opened.manifest = opened.manifest.model_copy(update={"model": model})
        yield opened


def watched(engines, video, name="full-history", **options):
    """The answer at the end, and the chunks before it."""
    chunks = []
    with Session(
        engines,
        load_system(name),
        sampling=WORDS,
        on_event=lambda event: chunks.append(event) if isinstance(event, ChunkEvent) else None,
        **options,
    ) as session:
        for frame in video:
            session.push(frame)
        session.finish()
        return session.ask(ASK), chunks


def said_by_transformers(engines, parts, words):
    """Greedy tokens over parts of a stream, each of its own size, in one pass."""
    with Session(engines, load_system("full-history")) as session:
        prompt, rate = session.inspect().prompt, int(engines.manifest.model.tokens_per_second)
    reference, first = load_reference(talking_checkpoint()), len(prompt.prefix)
    positions = [torch.arange(first).repeat(3, 1).T]
    pixels, grids = zip(
        *(pixel_values(torch.from_numpy(np.stack([f.image for f in part]))) for part in parts),
        strict=True,
    )
    for part, grid in zip(parts, grids, strict=True):
        rows, columns = (grid[0, 1:] // 2).tolist()
        for frame in part[::2]:
            t = int(frame.time * rate)
            places = [(t, y, x) for y in range(rows) for x in range(columns)]
            positions.append(torch.tensor(places) + first)
    question, tokens = prompt.question(ASK), []
    visual = [reference.config.video_token_id] * sum(map(len, positions[1:]))
    start = int(torch.cat(positions).max()) + 1
    for _ in range(words):
        text = [*question, *tokens]
        of_text = torch.arange(start, start + len(text)).repeat(3, 1).T
        with torch.no_grad():
            out = reference(
                input_ids=torch.tensor([[*prompt.prefix, *visual, *text]]),
                position_ids=torch.cat([*positions, of_text]).T[:, None],
                pixel_values_videos=torch.cat(pixels),
                video_grid_thw=torch.cat(grids),
                logits_to_keep=1,
                use_cache=False,
            )
        tokens.append(int(out.logits[0, -1].argmax()))
    return prompt.decode(tokens)


@functools.cache
def parts_of(sizes):
    """10 frames of each size."""
    return [frames(10, size=size, start=10 * i) for i, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def expected():
    """What transformers says of a stream of so many sizes, which no engine changes."""
    known = {}

    def tell(engines, sizes):
        if sizes not in known:
            known[sizes] = said_by_transformers(engines, parts_of(sizes), WORDS.max_tokens)
        return known[sizes]

    return tell


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "sizes", [(HIGH,), (SMALL, WIDE, HIGH), *slow(((WIDE,),), ((WIDE, HIGH),))]
)
def test_a_stream_equals_transformers_in_one_pass_whatever_its_size(
    engines, overlap, sizes, expected
):
    """And where the size changes in mid-stream, after 10 frames of each: chunks hold 8."""
    video = [frame for part in parts_of(sizes) for frame in part]
    answer, chunks = watched(engines, video, overlap=overlap)
    assert answer.text == expected(engines, sizes)
    assert [chunk.frames for chunk in chunks] == [8, 2] * len(sizes)


@pytest.mark.parametrize(
    "size", [(180, 320), (320, 180), (120, 160), (240, 240), (100, 40), (20, 20), (40, 600)]
)
def test_a_unit_has_as_many_tokens_as_the_models_processor_gives(size):
    """Its size is limited as the engine set's is; everything else is the checkpoint's own."""
    with EngineSet.open(any_size_set("onnxruntime")) as engines:
        _, chunks = watched(engines, frames(2, size=size))
    processor = Qwen2VLImageProcessorPil.from_pretrained(
        talking_checkpoint(), min_pixels=56 * 56, max_pixels=ANY_SIZE_PIXELS
    )
    picture = np.zeros((*size, 3), np.uint8)
    _, rows, columns = processor([picture], return_tensors="np")["image_grid_thw"][0]
    assert [chunk.tokens for chunk in chunks] == [rows * columns // 4]


@pytest.mark.parametrize("name", ["vicostream", "codecflow"])
def test_sources_of_different_aspect_run_on_one_engine_set_at_once(engines, name):
    """One thread a source, overlapped; each gives what it gives alone and sequentially."""
    sizes = ((180, 320), (320, 180), (240, 240), (120, 160))
    videos = [frames(20, size=size, seed=seed) for seed, size in enumerate(sizes)]

    def result(video, **options):
        answer, chunks = watched(engines, video, name, **options)
        return answer.text, answer.pages, [(c.start, c.end, c.tokens, c.kept) for c in chunks]

    found = {}

    def watch(number):
        found[number] = result(videos[number], overlap=True)

    threads = [Thread(target=watch, args=(number,)) for number in range(len(videos))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [result(video, overlap=False) for video in videos]
    assert [found[number] for number in range(len(videos))] == alone
    assert len({chunks[0][2] for _, _, chunks in alone}) > 1


def test_the_manifest_has_a_limit_and_no_size():
    model = read_manifest(any_size_set("openvino")).model
    assert (model.fixed_size, model.max_pixels, model.unit_tokens) == (None, 20_000, 25)
    assert model.frame_size == "up to 20000 pixels in the shape of the source, 168x84 at 16:9"
    assert Fraction(model.max_rows, 16).denominator == 1
