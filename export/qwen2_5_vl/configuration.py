"""Reads the configuration files of a Qwen2.5-VL checkpoint in Hugging Face layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import EngineError
from vicort.runtime.file_kinds import misfit
from vicort.runtime.safe_text import brief, read_text, shown

MODEL_TYPE = "qwen2_5_vl"
# last rows of a run whose queries the language graph returns; our choice: LiveVLM gives no value
# for
# its r
OBSERVED_ROWS = 16
PADDED_TO = 128  # columns
MAX_JSON = 16 << 20  # bytes of a configuration file
# of Qwen2VLVideoProcessor in transformers, for what its file leaves out
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESCALE = 1 / 255
PATCH_SIZES = ("patch_size", "merge_size", "temporal_patch_size")  # of both configurations
LARGEST = 1e12  # of a number in a configuration
FPS = 2.0  # frames per second in training


def padded_width(intermediate: int) -> int:
    """Kernels take numbers of columns that 64 divides; a larger one that it does not divide, 3,420
    in the published models, becomes a multiple of 128."""
    if intermediate <= PADDED_TO or intermediate % (PADDED_TO // 2) == 0:
        return intermediate
    return -(-intermediate // PADDED_TO) * PADDED_TO


@dataclass(frozen=True)
class VisionConfiguration:
    depth: int
    width: int
    intermediate: int
    heads: int
    patch: int  # pixels, side of a patch
    merge: int  # patches per side of one visual token
    window: int  # pixels, side of an attention window
    # blocks that attend over the whole unit; the others attend within windows
    full_attention: tuple[int, ...]
    mean: tuple[float, float, float]  # of RGB, on a scale of 0 to 1
    std: tuple[float, float, float]

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def token_pixels(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch * self.merge

    @property
    def padded_intermediate(self) -> int:
        """The intermediate width in engines."""
        return padded_width(self.intermediate)

    @property
    def window_tokens(self) -> int:
        """Side of an attention window in visual tokens."""
        return self.window // self.token_pixels


@dataclass(frozen=True)
class LanguageConfiguration:
    layers: int
    width: int
    intermediate: int
    query_heads: int
    kv_heads: int
    vocabulary: int
    epsilon: float  # of the RMS norms
    theta: float  # base of the rotary frequencies
    # numbers of rotary frequencies of t, h and w; they sum to head_dim / 2
    sections: tuple[int, int, int]
    max_position: int  # positions stay below it: the trained range
    tied: bool  # the output head is the token embedding

    @property
    def head_dim(self) -> int:
        return self.width // self.query_heads


@dataclass(frozen=True)
class Configuration:
    vision: VisionConfiguration
    language: LanguageConfiguration
    tokens_per_second: float  # steps of the temporal position per second
    fps: float  # frames per second in training
    eos_tokens: tuple[int, ...]
    video_token: int  # id of the placeholder of visual tokens


def read_configuration(folder: Path) -> Configuration:
    """The configuration of a checkpoint folder, in the flat layout of the published models or the
    nested one of transformers 5.

    Raises EngineError if a file or a value is missing, or is not supported by this model code.
    """
    path = folder / "config.json"
    outer = _read_json(path, needed=True)
    if outer.get("model_type") != MODEL_TYPE:
        raise EngineError(
            f"{path} is of a {outer.get('model_type')!r} model, only {MODEL_TYPE!r} is "
            "supported: name a Qwen2.5-VL checkpoint"
        )
    text = outer.get("text_config") or outer
    seen = outer.get("vision_config") or {}
    for name, part in (("text_config", text), ("vision_config", seen)):
        if not isinstance(part, dict):
            _require(path, name, type(part).__name__, ("an object",))
    preprocessing = _preprocessing(folder)
    generation = _read_json(folder / "generation_config.json")
    eos = _first(generation, text, outer, key="eos_token_id", default=151645)
    language = _language(text, outer, path)
    _require(
        path, "vision_config.out_hidden_size", seen.get("out_hidden_size", 3584), (language.width,)
    )
    return Configuration(
        vision=_vision(seen, preprocessing, path),
        language=language,
        tokens_per_second=_positive(
            path, "vision_config.tokens_per_second", seen.get("tokens_per_second", 4)
        ),
        fps=preprocessing["fps"],
        eos_tokens=tuple(
            _token(path, "eos_token_id", each, language)
            for each in (eos if isinstance(eos, list) else [eos])
        ),
        video_token=_token(
            path,
            "video_token_id",
            _first(outer, text, key="video_token_id", default=151656),
            language,
        ),
    )


def _token(path: Path, name: str, value: Any, language: LanguageConfiguration) -> int:
    if type(value) is not int or not 0 <= value < language.vocabulary:
        raise EngineError(
            f"{path}: {name} is {shown(value)}, allowed are tokens from 0 to "
            f"{language.vocabulary - 1}: download the checkpoint again"
        )
    return value


def _vision(
    seen: Mapping[str, Any], preprocessing: Mapping[str, Any], path: Path
) -> VisionConfiguration:
    """`seen` is config.json's vision_config; missing values have the defaults of transformers."""
    _require(path, "vision_config.hidden_act", seen.get("hidden_act", "silu"), ("silu",))
    _require(
        path,
        "vision_config.temporal_patch_size",
        seen.get("temporal_patch_size", UNIT_FRAMES),
        (UNIT_FRAMES,),
    )
    _require(
        path,
        "vision_config.in_channels",
        _first(seen, key="in_channels", default=seen.get("in_chans", 3)),
        (3,),
    )
    vision = VisionConfiguration(
        depth=seen.get("depth", 32),
        width=seen.get("hidden_size", 3584),
        intermediate=seen.get("intermediate_size", 3420),
        heads=seen.get("num_heads", 16),
        patch=seen.get("patch_size", 14),
        merge=seen.get("spatial_merge_size", 2),
        window=seen.get("window_size", 112),
        full_attention=_whole(
            path, "fullatt_block_indexes", seen.get("fullatt_block_indexes", (7, 15, 23, 31))
        ),
        mean=preprocessing["image_mean"],
        std=preprocessing["image_std"],
    )
    _check_numbers(vision, path)
    for key, value in zip(PATCH_SIZES, (vision.patch, vision.merge, UNIT_FRAMES), strict=True):
        _require(preprocessing["file"], key, preprocessing.get(key, value), (value,))
    if vision.window < vision.token_pixels:
        raise EngineError(
            f"{path}: vision_config.window_size is {vision.window}, at least "
            f"{vision.token_pixels} (one visual token) is needed"
        )
    return vision


def _language(
    text: Mapping[str, Any], outer: Mapping[str, Any], path: Path
) -> LanguageConfiguration:
    rotary = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rotary, dict):
        _require(path, "rope_scaling", rotary, ("an object",))
    _require(path, "hidden_act", text.get("hidden_act", "silu"), ("silu",))
    _require(path, "use_sliding_window", text.get("use_sliding_window") or False, (False,))
    _require(
        path,
        "rope_scaling type",
        rotary.get("rope_type", rotary.get("type", "default")),
        ("default", "mrope"),
    )
    try:
        language = LanguageConfiguration(
            layers=text["num_hidden_layers"],
            width=text["hidden_size"],
            intermediate=text["intermediate_size"],
            query_heads=text["num_attention_heads"],
            kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            vocabulary=text["vocab_size"],
            epsilon=_positive(path, "rms_norm_eps", text.get("rms_norm_eps", 1e-5)),
            theta=_positive(
                path, "rope_theta", _first(rotary, text, key="rope_theta", default=1e6)
            ),
            sections=cast(  # three, which is checked below
                "tuple[int, int, int]",
                _whole(path, "mrope_section", rotary.get("mrope_section", (16, 24, 24))),
            ),
            max_position=text.get("max_position_embeddings", 32768),
            tied=bool(outer.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        )
    except KeyError as error:
        raise EngineError(
            f"{path} has no {error.args[0]}: download the checkpoint again, or name another"
        ) from error
    _check_numbers(language, path)
    for name, part, whole in (
        ("num_attention_heads", language.query_heads, language.width),
        ("num_key_value_heads", language.kv_heads, language.query_heads),
    ):
        if whole % part:
            raise EngineError(
                f"{path}: {name} is {part}, which does not divide {whole}: download the "
                "checkpoint again"
            )
    _require(path, "head_dim", text.get("head_dim") or language.head_dim, (language.head_dim,))
    if (
        len(language.sections) != 3
        or 0 in language.sections
        or 2 * sum(language.sections) != language.head_dim
    ):
        raise EngineError(
            f"{path}: mrope_section {list(language.sections)} must sum to "
            f"{language.head_dim // 2}, half the head's {language.head_dim}"
        )
    return language


def _whole(path: Path, name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or any(
        type(each) is not int or each < 0 for each in value
    ):
        raise EngineError(
            f"{path}: {name} is {shown(value)}, allowed is a list of whole numbers: download the "
            "checkpoint again"
        )
    return tuple(value)


def _check_numbers(part: VisionConfiguration | LanguageConfiguration, path: Path) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if field.type == "int" and (type(value) is not int or value < 1):
            raise EngineError(
                f"{path}: {field.name} is {shown(value)}, allowed is a positive whole number: "
                "download the checkpoint again"
            )


def _preprocessing(folder: Path) -> dict[str, Any]:
    """How frames are prepared, from the file that transformers' video processor reads: the first of
    processor_config.json's video_processor, video_preprocessor_config.json and
    preprocessor_config.json. What it leaves out is that class's own. Returns `image_mean`,
    `image_std`, `fps`, and the file's own sizes of patches."""
    processor = _read_json(folder / "processor_config.json")
    candidates = [
        (folder / "processor_config.json", processor.get("video_processor")),
        *(
            (folder / name, _read_json(folder / name))
            for name in ("video_preprocessor_config.json", "preprocessor_config.json")
        ),
        (folder / "processor_config.json", processor.get("image_processor")),
    ]
    given = [(path, part) for path, part in candidates if isinstance(part, dict) and part]
    if not given:
        raise EngineError(
            f"{folder} has no preprocessor_config.json: download the checkpoint again"
        )
    path, part = given[0]
    _require(path, "do_rescale", _first(part, key="do_rescale", default=True), (True,))
    scale = _first(part, key="rescale_factor", default=RESCALE)
    if not isinstance(scale, int | float) or not math.isclose(scale, RESCALE, rel_tol=1e-3):
        _require(path, "rescale_factor", scale, (RESCALE,))
    mean = _colours(path, part, "image_mean", MEAN)
    std = _colours(path, part, "image_std", STD)
    if part.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    fps = _first(*(each for _, each in given), key="fps", default=FPS)
    sizes = {key: part[key] for key in PATCH_SIZES if part.get(key) is not None}
    return {
        "image_mean": mean,
        "image_std": std,
        "fps": _positive(path, "fps", fps),
        "file": path,
        **sizes,
    }


def _colours(
    path: Path, part: Mapping[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    """A number for each of R, G and B; one number is for all three."""
    value = _first(part, key=key, default=default)
    values = (value,) * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(_is_number(each) for each in values)
        or (key == "image_std" and 0 in values)
    ):
        raise EngineError(
            f"{path}: {key} is {shown(value)}, allowed are three numbers: download the checkpoint "
            "again"
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _positive(path: Path, name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise EngineError(
            f"{path}: {name} is {shown(value)}, allowed is a positive number: download the "
            "checkpoint again"
        )
    return float(value)


def _first(*sources: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of `key` in the first source that has it."""
    return next((source[key] for source in sources if source.get(key) is not None), default)


def _require(path: Path, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(type(value) is type(each) and value == each for each in allowed):
        choice = " or ".join(map(repr, allowed))
        raise EngineError(
            f"{path}: {name} is {shown(value)}, only {choice} is supported: name another checkpoint"
        )


def _read_json(path: Path, needed: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise EngineError(
                f"{path.parent} has no {path.name}: name a folder in Hugging Face layout, or a "
                "hub id"
            )
        return {}
    try:
        if what := misfit(path):
            raise EngineError(f"{path} is {what}")
        content = json.loads(read_text(path, MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON ({brief(error)}): download the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise EngineError(
            f"{path} holds a {type(content).__name__}, not a JSON object: download the "
            "checkpoint again"
        )
    return content
