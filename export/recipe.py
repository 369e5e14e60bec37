"""Build recipes: the shapes and precision that a checkpoint does not determine. One YAML file per
known model; command-line options override it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vicort.export.qwen2_5_vl.configuration import OBSERVED_ROWS, Configuration
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Backend, ModelSpec, Precision

ROW_STEP = 16  # max_rows is a multiple of it, because runs are padded in these steps


class BuildRecipe(BaseModel):
    """The defaults are for a checkpoint without a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    image_width: int = Field(308, gt=0)  # pixels of a frame in the vision graph
    image_height: int = Field(308, gt=0)
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
    "precision": "--precision",
}


def known_models() -> list[str]:
    folder = resources.files("vicort.configs") / "models"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def load_recipe(name: str, **changes: object) -> BuildRecipe:
    """The recipe of the known model whose name is a prefix of `name`, else the defaults. `changes`
    that are not None override it.

    Raises ConfigError for a value that is not allowed.
    """
    known = max(
        (model for model in known_models() if name.lower().startswith(model)), key=len, default=None
    )
    try:
        return BuildRecipe.model_validate(
            (_content(known) if known else {})
            | {key: value for key, value in changes.items() if value is not None}
        )
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


def model_spec(name: str, config: Configuration, recipe: BuildRecipe) -> ModelSpec:
    """The manifest's model section. Raises ConfigError if the image size is no multiple of a visual
    token's pixels."""
    step, language = config.vision.token_pixels, config.language
    for side, pixels in (("height", recipe.image_height), ("width", recipe.image_width)):
        if pixels % step:
            raise ConfigError(
                f"image {side} {pixels} is not allowed: give multiples of {step} pixels with "
                "--image-size WxH"
            )
    grid_height, grid_width = recipe.image_height // step, recipe.image_width // step
    chunk_rows = recipe.chunk_frames // UNIT_FRAMES * grid_height * grid_width
    return ModelSpec(
        name=name,
        layers=language.layers,
        width=language.width,
        query_heads=language.query_heads,
        kv_heads=language.kv_heads,
        head_dim=language.head_dim,
        vocabulary=language.vocabulary,
        image_height=recipe.image_height,
        image_width=recipe.image_width,
        grid_height=grid_height,
        grid_width=grid_width,
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
