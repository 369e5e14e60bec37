"""Mean and deviation of colours against transformers: the file that its video processors read, and
the values that its class of this model has by itself (of the image processor, which is the same and
takes no torchvision)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sizes import examples

from vicort.export.qwen2_5_vl.configuration import _preprocessing
from vicort.runtime.errors import EngineError

COLOURS = st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=3, max_size=3)
PART = st.fixed_dictionaries(
    {"video_processor_type": st.just("Qwen2VLVideoProcessor")},
    optional={"image_mean": COLOURS, "image_std": COLOURS, "rescale_factor": st.just(1 / 255)},
)
FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


@settings(max_examples=examples(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.dictionaries(st.sampled_from(FILES), PART),
    nested=st.none() | st.fixed_dictionaries({}, optional={"video_processor": PART}),
)
def test_colours_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, parts: dict, nested: dict | None
) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.video_processing_utils import BaseVideoProcessor

    folder = tmp_path_factory.mktemp("model")
    files = parts | ({} if nested is None else {"processor_config.json": nested})
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if not parts and not nested:
        with pytest.raises(EngineError, match=r"has no preprocessor_config\.json"):
            _preprocessing(folder)
        return
    content = BaseVideoProcessor.get_video_processor_dict(folder)[0]
    right, got = Qwen2VLImageProcessorPil(**content), _preprocessing(folder)
    assert got["image_mean"] == pytest.approx(tuple(right.image_mean))
    assert got["image_std"] == pytest.approx(tuple(right.image_std))


def test_colours_that_are_not_normalised(tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_text(json.dumps({"do_normalize": False}))
    got = _preprocessing(tmp_path)
    assert (got["image_mean"], got["image_std"]) == ((0, 0, 0), (1, 1, 1))


def test_one_number_is_for_all_colours(tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    got = _preprocessing(tmp_path)
    assert (got["image_mean"], got["image_std"]) == ((0.5,) * 3, (0.25,) * 3)
