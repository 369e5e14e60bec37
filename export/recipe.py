"""Build recipes: the shapes and precision that a checkpoint does not determine. One YAML file per
known model; command-line options override it."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.export.qwen2_5_vl.configuration import OBSERVED_ROWS, Configuration
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.frame_grid import whole_tokens
from vicort.runtime.manifest import Backend, ModelSpec, Precision

MAX_SIDE = 4096  # pixels of a frame in the vision graph
MAX_AREA = 16384 * 28 * 28  # pixels: `max_pixels` of the published models
ROW_STEP = 16  # max_rows is a multiple of it, because runs are padded in these steps


class BuildRecipe(BaseModel):
    """The defaults are for a checkpoint without a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # pixels: all frames are letterboxed to this size; None: sizes follow the source
    image_width: int | None = Field(None, gt=0, le=MAX_SIDE)
    image_height: int | None = Field(None, gt=0, le=MAX_SIDE)
    # area of a frame in the vision graph, where sizes follow the source
    max_pixels: int = Field(308 * 308, ge=56 * 56, le=MAX_AREA)
    # maximum frames in a chunk
    chunk_frames: int = Field(16, ge=UNIT_FRAMES, le=512, multiple_of=UNIT_FRAMES)
    # cells in a page: small pages waste less when most tokens of a unit are dropped
    page_tokens: int = Field(8, ge=1, le=1024)
    # tokens of text that fit into one run, even if chunks are shorter
    question_rows: int = Field(512, ge=ROW_STEP)
    precision: Precision | None = None  # None: the backend's default
    # a known model that this one extends, with an adapter or other values
    base: str | None = None
    adapter: str | None = None  # its folder in the package vicort.export


DEFAULT_PRECISION: dict[Backend, Precision] = {
    "onnxruntime": "fp32",
    "openvino": "fp32",
    "tensorrt": "bf16",
}

FLAGS = {
    "chunk_frames": "--chunk-frames",
    "image_width": "--image-size",
    "image_height": "--image-size",
    "max_pixels": "--max-pixels",
    "precision": "--precision",
}


def known_models() -> list[str]:
    folder = resources.files("vicort.configs") / "models"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def load_recipe(name: str, **changes: object) -> BuildRecipe:
    """The recipe of the known model whose name is a prefix of `name`, else the defaults. `changes`
    that are not None override it: a limit on the area also replaces a fixed size of the file.

    Raises ConfigError for a value that is not allowed.
    """
    known = max(
        (model for model in known_models() if name.lower().startswith(model)), key=len, default=None
    )
    content = _content(known) if known else {}
    given = {key: value for key, value in changes.items() if value is not None}
    if "max_pixels" in given:
        content = {key: content[key] for key in content.keys() - {"image_width", "image_height"}}
    try:
        return BuildRecipe.model_validate(content | given)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(
            f"{FLAGS.get(key, key)} {first['input']!r} is not allowed: {first['msg'].lower()}"
        ) from error


def embedded_adapter(model: str) -> tuple[str, Path] | None:
    """The base and the adapter folder of a known model that has an adapter; otherwise None."""
    recipe = (
        BuildRecipe.model_validate(_content(model))
        if model in known_models()
        else BuildRecipe.model_validate({})
    )
    return (
        (recipe.base, Path(__file__).parent / recipe.adapter)
        if recipe.base and recipe.adapter
        else None
    )


def _content(known: str) -> dict[str, object]:
    content = yaml.safe_load(
        (resources.files("vicort.configs") / "models" / f"{known}.yaml").read_text()
    )
    return _content(content["base"]) | content if "base" in content else content


def fixed_size(config: Configuration, recipe: BuildRecipe) -> tuple[int, int] | None:
    """Height and width of all frames, each the nearest multiple of a visual token's side; None
    where sizes follow the source. Raises ConfigError where one side is missing."""
    if recipe.image_height is None and recipe.image_width is None:
        return None
    if recipe.image_height is None or recipe.image_width is None:
        raise ConfigError(
            "a fixed size has image_width and image_height: give both in the model's YAML file"
        )
    step = config.vision.token_pixels
    return whole_tokens(recipe.image_height, step), whole_tokens(recipe.image_width, step)


def model_spec(name: str, config: Configuration, recipe: BuildRecipe) -> ModelSpec:
    """The manifest's model section. The sides of a fixed size are rounded to whole visual
    tokens."""
    vision, language, size = config.vision, config.language, fixed_size(config, recipe)
    max_pixels = math.prod(size) if size else recipe.max_pixels
    unit_tokens = max_pixels // vision.token_pixels**2
    chunk_rows = recipe.chunk_frames // UNIT_FRAMES * unit_tokens
    return ModelSpec(
        name=name,
        layers=language.layers,
        width=language.width,
        query_heads=language.query_heads,
        kv_heads=language.kv_heads,
        head_dim=language.head_dim,
        vocabulary=language.vocabulary,
        patch=vision.patch,
        merge=vision.merge,
        window=vision.window_tokens,
        max_pixels=max_pixels,
        fixed_size=size,
        fps=config.fps,
        tokens_per_second=config.tokens_per_second,
        chunk_frames=recipe.chunk_frames,
        page_tokens=recipe.page_tokens,
        max_rows=-(-max(chunk_rows, recipe.question_rows) // ROW_STEP) * ROW_STEP,
        observed_rows=OBSERVED_ROWS,
        max_position=language.max_position,
        rotary_sections=language.sections,
        rotary_theta=language.theta,
        eos_tokens=config.eos_tokens,
        video_token=config.video_token,
    )
