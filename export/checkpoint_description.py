"""What a checkpoint holds and what an engine set of it would be, without torch or its weights.

    python -m vicort.export.checkpoint_description DIR

prints it as JSON for `vicort-info`, which does not import this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vicort.export.qwen2_5_vl.checkpoint_quantisation import method_of, read_quantisation
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.parameter_counts import (
    compressed_bytes,
    float_bytes,
    parameter_counts,
)
from vicort.export.qwen2_5_vl.tied_head import as_stored
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.safetensors_headers import (
    STORED_TYPES,
    StoredTensor,
    read_header,
    weight_files,
)
from vicort.runtime.errors import EngineError, VicortError
from vicort.runtime.locations import model_name
from vicort.runtime.manifest import Backend, Precision, Weights
from vicort.runtime.safe_text import print_safely

FAMILY = "Qwen2.5-VL"
COMPRESSED: tuple[Weights, ...] = ("int8", "int4")
ITEM_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}  # of a parameter
# `candidates` in build_set.py says the same; it needs torch
BACKENDS: dict[Precision, tuple[Backend, ...]] = {
    "fp32": ("openvino", "onnxruntime", "tensorrt"),
    "bf16": ("openvino", "tensorrt"),
}


@dataclass(frozen=True)
class CheckpointDescription:
    folder: str
    family: str
    parameters: dict[str, int]  # number, of `vision` and `language`
    stored: dict[str, int]  # bytes of the weights' data, by type
    quantization: str  # as vicort-build names it; "" = none
    refused: str  # why vicort-build does not take it; "" = nothing is known against it
    model: dict[str, Any]  # the manifest's model section, as `vicort-build DIR` would have it
    set_bytes: dict[str, int]  # weights of an engine set, by precision
    plan_bytes: dict[str, int]  # the same with backend tensorrt
    # the same of a CPU set by `--weights`; None: a quantised checkpoint's own
    # integers are kept, whose size is not known from the configuration
    compressed_bytes: dict[str, int | None]
    backends: dict[str, tuple[str, ...]]  # by precision


def describe(folder: Path) -> CheckpointDescription:
    """Raises EngineError if a file is missing or damaged, or the model is not supported."""
    config = as_stored(folder, read_configuration(folder))
    # as vicort-build names it, which chooses the recipe
    name = model_name(str(folder))
    model = model_spec(name, config, load_recipe(name))
    tensors = [tensor for path in weight_files(folder) for tensor in read_header(path)]
    stored: dict[str, int] = {}
    for tensor in tensors:
        stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.bytes
    quantization, unread = _quantization(folder)
    parameters = parameter_counts(config)
    # what is refused for its weights can be of no set
    sized = not unread and (quantization or not set(stored) - set(STORED_TYPES))
    embedding = 2 if _stores_bfloat16_embedding(tensors) else None
    return CheckpointDescription(
        folder=str(folder),
        family=FAMILY,
        parameters=parameters,
        stored=stored,
        quantization=quantization,
        refused=unread or _refused(folder, quantization, stored),
        model=model.model_dump(mode="json"),
        set_bytes={
            key: float_bytes(config, size, embedding=embedding) for key, size in ITEM_BYTES.items()
        }
        if sized
        else {},
        plan_bytes={
            key: float_bytes(config, size, plans=True, embedding=embedding)
            for key, size in ITEM_BYTES.items()
        }
        if sized
        else {},
        compressed_bytes={
            name: None
            if quantization
            else compressed_bytes(config, name, embedding or ITEM_BYTES["fp32"])
            for name in COMPRESSED
        }
        if sized
        else {},
        backends={str(precision): names for precision, names in BACKENDS.items()},
    )


def _stores_bfloat16_embedding(tensors: Sequence[StoredTensor]) -> bool:
    return any(
        tensor.name.endswith("embed_tokens.weight") and tensor.dtype == "BF16" for tensor in tensors
    )


def _quantization(folder: Path) -> tuple[str, str]:
    """The method, and why vicort-build does not read it; "" = not quantised, or it does."""
    try:
        layout = read_quantisation(folder)
    except EngineError as error:
        return method_of(folder), str(error)
    return (str(layout) if layout else ""), ""


def _refused(folder: Path, quantization: str, stored: dict[str, int]) -> str:
    if not quantization and set(stored) - set(STORED_TYPES):
        return (
            f"vicort-build takes weights stored as {', '.join(STORED_TYPES)}: name the "
            "checkpoint that this one was quantised from"
        )
    if not (folder / "tokenizer.json").is_file():
        return "it has no tokenizer.json, which questions need: download the checkpoint again"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    (folder,) = sys.argv[1:] if arguments is None else arguments
    try:
        print(json.dumps(asdict(describe(Path(folder)))))
    except VicortError as error:
        print_safely(str(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
