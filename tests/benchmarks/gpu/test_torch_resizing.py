"""Frames resized by PyTorch, beside Pillow and the runtime's own preprocessor."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicort.benchmarks.common.vicort_stream import VicortStream
from vicort.benchmarks.common.workload import Workload, bench_system
from vicort.benchmarks.gpu import torch_resizing
from vicort.benchmarks.gpu.torch_resizing import TorchPreprocessor, resizer, with_a_resizer
from vicort.runtime.devices import preprocess
from vicort.runtime.devices.preprocess import Preprocessor
from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.errors import VicortError

SIDE = st.integers(8, 120)
IMAGES = Workload(160, 120).images


def image(height: int, width: int, number: int) -> np.ndarray:
    picture = Image.fromarray(IMAGES[number % len(IMAGES)])
    return np.asarray(picture.resize((width, height)))


@given(height=SIDE, width=SIDE, into=st.tuples(SIDE, SIDE))
@settings(max_examples=30, deadline=None)
def test_stretched_it_gives_what_pillow_gives(height: int, width: int, into) -> None:
    frame, out = image(height, width, 3), np.empty((1, *into, 3), np.uint8)
    TorchPreprocessor(None)([frame], out)
    wanted = Image.fromarray(frame).resize(into[::-1], Image.Resampling.BICUBIC)
    # Pillow rounds between its two passes
    error = np.abs(out[0].astype(int) - np.asarray(wanted))
    assert (error <= 2).mean() >= 0.99
    assert error.mean() < 0.5


@given(sizes=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4), into=st.tuples(SIDE, SIDE))
@settings(max_examples=20, deadline=None)
def test_letterboxed_it_puts_the_frame_where_the_runtime_does(sizes, into) -> None:
    frames = [image(*size, number) for number, size in enumerate(sizes) for _ in range(2)]
    ours, theirs = (np.full((len(frames), *into, 3), 77, np.uint8) for _ in range(2))
    TorchPreprocessor(into)(frames, ours)
    Preprocessor(*into)(frames, theirs)
    error = np.abs(ours.astype(int) - theirs)
    assert error.mean() < 0.5
    assert (error <= 3).mean() >= 0.98


def test_without_dali_a_session_runs_by_it_and_the_report_names_it(
    tiny_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resizer().startswith("NVIDIA DALI 2.")

    def missing():
        raise VicortError("NVIDIA DALI cannot be loaded")

    monkeypatch.setattr(preprocess, "import_dali", missing)
    monkeypatch.setattr(torch_resizing, "has_dali", lambda: False)
    assert resizer() == "PyTorch, since NVIDIA DALI is not installed"
    with EngineSet.open(tiny_engines) as engines:
        workload = Workload()
        with pytest.raises(VicortError, match="cannot be loaded"):
            VicortStream(engines, bench_system(), workload, overlap=True)
        with VicortStream(with_a_resizer(engines), bench_system(), workload, overlap=True) as watch:
            watch.push_chunks(2)
            assert watch.ask("what is there now?").text
