"""The graphs of a model: from PyTorch modules to ONNX, and what their tensors are called."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch
from onnx_ir import serde
from torch import nn
from torch.export import Dim

from vicort.export import onnx_function
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.manifest import (
    Dimension,
    GraphName,
    GraphSpec,
    ModelSpec,
    Precision,
    TensorSpec,
)

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
EXTERNAL_ABOVE = 1024  # bytes: smaller constants stay inside the .onnx file
ALIGNMENT = 4096  # bytes, of a weight in its file: a page of memory
EMBEDDING_FILE = "embedding.bin"
# what the CPU engines load; llm.onnx, beside it, has the op and its function body
EXPANDED_FILE = "llm.expanded.onnx"
# a tied head is the same weight, and may give it its name
EMBEDDING_NAMES = ("embed_tokens.weight", "lm_head.weight")
# digest of a weight -> the file that holds it, and where in it, in bytes
Written = dict[bytes, tuple[str, int]]
MANY = 1 << 20  # an upper bound that no machine meets
# elements: TensorRT's bound on a tensor at a profile's largest shape, from its own message
TENSORRT_VOLUME = 1 << 40
# elements of a pool that TensorRT's own layers gather from: their indices are taken to have 32 bits
NATIVE_VOLUME = 1 << 31
# cached tokens that a plan without the plugin may read: its memory grows with them
NATIVE_TOKENS = 1 << 15
USUAL_PAGES = 1024  # what plans are tuned for


def signatures(model: ModelSpec, precision: Precision) -> dict[GraphName, GraphSpec]:
    """Names, types and shapes of the tensors of all graphs. Sizes in quotes vary, and have bounds
    in `dimensions`."""
    kind = TYPE_NAMES[precision]
    units, tokens, width = model.chunk_frames // UNIT_FRAMES, model.unit_tokens, model.width
    cells = ("P", model.layers, model.kv_heads, 2, model.page_tokens, model.head_dim)
    new = (model.layers, "C", model.kv_heads, model.head_dim)
    count = _up_to(units)
    scaled = {
        name: Dimension(min=step, opt=step * units, max=step * units)
        for name, step in (("2*U", UNIT_FRAMES), ("U*P", tokens))
    }
    vision = GraphSpec(
        file="vision.onnx",
        inputs=(_spec("frames", "uint8", "2*U", model.image_height, model.image_width, 3),),
        outputs=(_spec("features", kind, "U", tokens, width),),
        dimensions={"2*U": scaled["2*U"], "U": count},
    )
    pruned = GraphSpec(
        file="vision_pruned.onnx",
        inputs=(*vision.inputs, _spec("kept", "int32", "U", "G")),
        outputs=(_spec("features", kind, "U", "G", width),),
        dimensions={"2*U": scaled["2*U"], "U": count, "G": _up_to(tokens)},
    )
    control = GraphSpec(
        file="tokens.onnx",
        inputs=(
            _spec("features", kind, "U", tokens, width),
            _spec("threshold", "float32", 1),
            _spec("positions", "int32", 1),
        ),
        outputs=(
            _spec("kept", "int32", "U*P"),
            _spec("count", "int32", 1),
            _spec("compact", kind, "U*P", width),
            _spec("mean", "float32", width),
        ),
        dimensions={"U": count, "U*P": scaled["U*P"]},
    )
    language = GraphSpec(
        file=EXPANDED_FILE,
        attention_layers=model.layers,
        inputs=(
            _spec("tokens", "int32", "C"),
            _spec("features", kind, "C", width),
            _spec("pos", "int32", "C", 3),
            _spec("pool", kind, *cells),
            _spec("where", "int32", "P", "where_layers", "where_heads", model.page_tokens, 3),
            _spec("table", "int32", "table_layers", "table_heads", "N"),
        ),
        outputs=(
            _spec("logits", "float32", 1, model.vocabulary),
            _spec("k", kind, *new),
            _spec("v", kind, *new),
            _spec("q", "float32", model.layers, model.query_heads, model.head_dim),
            _spec(
                "queries",
                "float32",
                model.layers,
                model.observed_rows,
                model.query_heads,
                model.head_dim,
            ),
        ),
        dimensions={
            "C": _up_to(model.max_rows),
            "P": _up_to(MANY),
            "N": _up_to(MANY),
            "where_layers": Dimension(min=1, opt=1, max=model.layers),
            "where_heads": Dimension(min=1, opt=1, max=model.kv_heads),
            "table_layers": Dimension(min=1, opt=1, max=model.layers),
            "table_heads": Dimension(min=1, opt=1, max=model.kv_heads),
        },
    )
    return {"vision": vision, "vision_pruned": pruned, "tokens": control, "llm": language}


def plan_signatures(
    graphs: dict[GraphName, GraphSpec], model: ModelSpec, plugin: bool, strip: bool
) -> dict[GraphName, GraphSpec]:
    """The same graphs as TensorRT plans, but for the pruned vision encoder: their files, and bounds
    that a profile can have.

    plugin: whether BoundedAttention is a plugin, or its expansion into TensorRT's own layers.
    strip: whether the weights stay outside.
    """
    page = model.layers * model.kv_heads * 2 * model.page_tokens * model.head_dim  # elements
    volume, read = (
        (TENSORRT_VOLUME, MANY) if plugin else (NATIVE_VOLUME, NATIVE_TOKENS // model.page_tokens)
    )
    pages = {
        name: Dimension(min=1, opt=min(USUAL_PAGES, most), max=most)
        for name, most in (("P", min(MANY, (volume - 1) // page)), ("N", read))
    }
    plans: dict[GraphName, GraphSpec] = {}
    for name, graph in graphs.items():
        # a plan has weights of its own, so this one would nearly double the vision encoder's
        if name == "vision_pruned":
            continue
        changes: dict[str, Any] = {
            "file": f"{name}.plan",
            "refit_from": f"{name}.onnx" if strip else None,
        }
        if graph.attention_layers:
            changes |= {
                "dimensions": graph.dimensions | pages,
                "plugin_layers": graph.attention_layers if plugin else 0,
            }
        plans[name] = graph.model_copy(update=changes)
    return plans


def export_graph(module: nn.Module, graph: GraphSpec) -> tuple[onnx_ir.Model, int]:
    """A module as an ONNX model in memory; BoundedAttention is one node a layer, with a function
    body.

    The module takes the graph's inputs, and gives its outputs, in that order. Returns the model,
    and the number of such nodes.
    """
    inputs, dimensions = _examples(graph)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=onnx_function.OPSET,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            dynamic_shapes=dimensions,
            custom_translation_table=onnx_function.translation_table(),
            verbose=False,
        )
        if program is None:
            raise RuntimeError(f"torch.onnx.export gave no program for {graph.file}")
        model = program.model
        onnxscript.optimizer.optimize(model, inline=False)
        count = onnx_function.add_function_body(model)
        _tidy(model)
    for value, spec in zip(
        [*model.graph.inputs, *model.graph.outputs], [*graph.inputs, *graph.outputs], strict=True
    ):
        value.shape = onnx_ir.Shape(spec.shape)
    return model, count


def export_program(
    module: nn.Module, graph: GraphSpec, device: str
) -> tuple[torch.export.ExportedProgram, tuple[torch.Tensor, ...]]:
    """A module as torch.export gives it, on a device, and the inputs that it was traced with."""
    inputs, dimensions = _examples(graph)
    placed = tuple(tensor.to(device) for tensor in inputs)
    return torch.export.export(module.to(device), placed, dynamic_shapes=dimensions), placed


def expand(model: onnx_ir.Model) -> None:
    """Leave plain operators only: functions are expanded in place, and what several layers share is
    there once."""
    with _quiet():
        passes.InlinePass()(model)
        onnxscript.optimizer.optimize(model)
        _tidy(model)


def remove_functions(model: onnx_ir.Model) -> None:
    """Leave BoundedAttention a node without a body: TensorRT prefers a body to a plugin."""
    model.functions.clear()


def _tidy(model: onnx_ir.Model) -> None:
    passes.CommonSubexpressionEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)


def write_graph(model: onnx_ir.Model, path: Path, written: Written | None = None) -> Iterator[int]:
    """Write a model to `path`, its weights beside it in `<stem>.bin` and the token embeddings, raw,
    in `embedding.bin`.

    written: what graphs before it wrote to the same folder: equal weights are not written again,
    and its own are added. Yields the size of each weight, in bytes, as it is written, or found to
    be there.
    """
    weights_path = path.with_suffix(".bin")
    embedding = next((name for name in EMBEDDING_NAMES if name in model.graph.initializers), None)
    with contextlib.ExitStack() as stack:
        weights = None
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or (tensor.nbytes < EXTERNAL_ABOVE and value.name != embedding):
                continue
            content = tensor.tobytes()
            digest = b"" if written is None else hashlib.blake2b(content).digest()
            if written is not None and digest in written:
                name, offset = written[digest]
            else:
                if value.name == embedding:
                    file = stack.enter_context((path.parent / EMBEDDING_FILE).open("wb"))
                else:
                    file = weights = weights or stack.enter_context(weights_path.open("wb"))
                    file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                name, offset = Path(file.name).name, file.tell()
                file.write(content)
                if written is not None:
                    written[digest] = name, offset
            value.const_value = onnx_ir.ExternalTensor(
                name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=tensor.shape,
                name=value.name or "",
                base_dir=str(path.parent),
            )
            yield tensor.nbytes
    write_nodes(model, path)


def write_nodes(model: onnx_ir.Model, path: Path) -> None:
    """Write the .onnx file alone, of a model whose weights lie in files already."""
    path.write_bytes(serde.serialize_model(model).SerializeToString())


def weight_bytes(model: onnx_ir.Model) -> int:
    """Bytes that `write_graph` writes beside the .onnx file."""
    sizes = (
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    return sum(size for size in sizes if size >= EXTERNAL_ABOVE)


def _examples(graph: GraphSpec) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Zeros to trace with, and which of their axes vary. torch.export takes a size of 1 for a
    constant, so the examples have more."""
    names = {size for spec in graph.inputs for size in spec.shape if isinstance(size, str)}
    dims: dict[str, Any] = {
        name: Dim(name, min=1, max=graph.dimensions[name].max) for name in names - {"2*U"}
    }
    sizes = {
        name: min(index + 2, graph.dimensions[name].max) for index, name in enumerate(sorted(dims))
    }
    if "2*U" in names:
        dims["2*U"] = UNIT_FRAMES * dims.setdefault(
            "U", Dim("U", min=1, max=graph.dimensions["U"].max)
        )
        sizes["2*U"] = UNIT_FRAMES * sizes.setdefault("U", 2)
    tensors, dynamic = [], []
    for spec in graph.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        tensors.append(torch.zeros(shape, dtype=getattr(torch, spec.dtype)))
        dynamic.append(
            {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        )
    return tuple(tensors), tuple(dynamic)


def _spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _up_to(most: int) -> Dimension:
    return Dimension(min=1, opt=most, max=most)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter tells of its own progress; its errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
