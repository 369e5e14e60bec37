"""The graphs of a model: export from PyTorch to ONNX, and the names and shapes of their tensors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch
from onnx_ir import serde, tensor_adapters
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch import nn
from torch.export import Dim

from vicort.export import onnx_function
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.manifest import (
    KV,
    MAX_ENDS,
    Dimension,
    GraphName,
    GraphSpec,
    ModelSpec,
    Precision,
    TensorSpec,
)
from vicort.runtime.vision_windows import most_windows

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
MIN_EXTERNAL = 1024  # bytes: smaller constants stay inside the .onnx file
SHAPE_RULES = (
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
)
WEIGHT_ALIGNMENT = 4096  # bytes, of a weight in its file: one memory page
EMBEDDING_FILE = "embedding.bin"
# loaded by the CPU engines; llm.onnx in the same folder has the op and its function body
EXPANDED_FILE = "llm.expanded.onnx"
EMBEDDING_ROWS = 1 << 13  # that are written at a time
# digest of a weight -> (file, offset in bytes)
Written = dict[bytes, tuple[str, int]]
MAX_PAGES = 1 << 20  # more than any machine holds
# elements of a tensor at a profile's maximum shape, from TensorRT's error message
MAX_VOLUME = 1 << 40
# elements of a pool without the plugin: gather layers are assumed to have 32-bit indices
MAX_NATIVE_VOLUME = 1 << 31
# cached tokens that a run without the plugin may read: its memory grows with them
MAX_NATIVE_TOKENS = 1 << 15
TYPICAL_PAGES = 1024  # plans are tuned for it
MAX_SEGMENTS = 16  # tables in a run: questions that are read together, or answers that go on


def signatures(
    model: ModelSpec, precision: Precision, kv: KV = "float"
) -> dict[GraphName, GraphSpec]:
    """Names, types and shapes of the tensors of all graphs. String sizes are dynamic, with bounds
    in `dimensions`."""
    kind = TYPE_NAMES[precision]
    units, tokens, width = model.chunk_frames // UNIT_FRAMES, model.unit_tokens, model.width
    vectors = ("P", model.layers, model.kv_heads, 2, model.page_tokens)
    new = (model.layers, "C", model.kv_heads, model.head_dim)
    count = _up_to(units)
    doubled = {"2*U": _multiple(UNIT_FRAMES, units), "U": count}
    sized = _fixed_frames(model) if model.fixed_size else _any_frames(model)
    vision = GraphSpec(
        file="vision.onnx",
        inputs=sized.whole,
        outputs=(_spec("features", kind, "U", sized.tokens, width),),
        dimensions=doubled | sized.dimensions(sized.whole),
    )
    pruned_inputs = (sized.whole[0], _spec("kept", "int32", "U", "G"), *sized.pruned)
    pruned = GraphSpec(
        file="vision_pruned.onnx",
        inputs=pruned_inputs,
        outputs=(_spec("features", kind, "U", "G", width),),
        dimensions=doubled | {"G": _up_to(tokens)} | sized.dimensions(pruned_inputs),
    )
    least = 1 if sized.sizes else tokens
    of_chunk = {"U*P": Dimension(min=least, opt=tokens * units, max=tokens * units)}
    control = GraphSpec(
        file="tokens.onnx",
        inputs=(
            _spec("features", kind, "U", sized.tokens, width),
            _spec("threshold", "float32", 1),
            _spec("positions", "int32", 1),
            _spec("before", kind, sized.tokens, width),
            _spec("mode", "int32", 1),
        ),
        outputs=(
            _spec("kept", "int32", "U*P"),
            _spec("count", "int32", 1),
            _spec("compact", kind, "U*P", width),
            _spec("mean", "float32", width),
        ),
        dimensions={"U": count, **of_chunk}
        | {name: bound for name, bound in sized.sizes.items() if name == "P"},
    )
    ends = Dimension(min=1, opt=1, max=MAX_ENDS)
    language = GraphSpec(
        file=EXPANDED_FILE,
        attention_layers=model.layers,
        inputs=(
            _spec("features", kind, "C", width),
            _spec("pos", "int32", "C", 3),
            _spec("segment", "int32", "C"),
            _spec("until", "int32", "C"),
            _spec("ends", "int32", "E"),
            _spec("pool", "int8" if kv == "int8" else kind, *vectors, model.head_dim),
            _spec("where", "int32", "P", "where_layers", "where_heads", model.page_tokens, 3),
            _spec("table", "int32", "S", "table_layers", "table_heads", "N"),
            *((_spec("scales", "float32", *vectors),) if kv == "int8" else ()),
        ),
        outputs=(
            _spec("hidden", kind, "E", width),
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
            "E": ends,
            "P": _up_to(MAX_PAGES),
            "N": _up_to(MAX_PAGES),
            "S": Dimension(min=1, opt=1, max=MAX_SEGMENTS),
            "where_layers": Dimension(min=1, opt=1, max=model.layers),
            "where_heads": Dimension(min=1, opt=1, max=model.kv_heads),
            "table_layers": Dimension(min=1, opt=1, max=model.layers),
            "table_heads": Dimension(min=1, opt=1, max=model.kv_heads),
        },
    )
    head = GraphSpec(
        file="head.onnx",
        inputs=(_spec("hidden", kind, "E", width),),
        outputs=(_spec("logits", "float32", "E", model.vocabulary),),
        dimensions={"E": ends},
    )
    return {
        "vision": vision,
        "vision_pruned": pruned,
        "tokens": control,
        "llm": language,
        "head": head,
    }


@dataclass(frozen=True)
class FrameTensors:
    """How the vision graphs take frames of one size, or of any size."""

    tokens: int | str  # of a unit
    whole: tuple[TensorSpec, ...]  # inputs of the vision graph, frames first
    pruned: tuple[TensorSpec, ...] = ()  # further inputs of the pruned one
    sizes: dict[str, Dimension] = field(default_factory=dict)

    def dimensions(self, inputs: Sequence[TensorSpec]) -> dict[str, Dimension]:
        """Those of `sizes` that appear in these inputs, and P, which outputs have."""
        used = {size for spec in inputs for size in spec.shape}
        return {name: bound for name, bound in self.sizes.items() if name in used}


def _fixed_frames(model: ModelSpec) -> FrameTensors:
    height, width = model.fixed_size or (0, 0)
    frames = _spec("frames", "uint8", "2*U", height, width, 3)
    return FrameTensors(model.unit_tokens, (frames,))


def _any_frames(model: ModelSpec) -> FrameTensors:
    """Index inputs say where the pixels of patches lie in a frame, so that height and width do not
    appear: the largest shapes of a profile are then those of the largest frame, not those of the
    highest and the widest one."""
    of_token = model.merge**2  # patches
    segments, patches = of_token * model.patch, of_token * model.window**2  # of a token, a window
    most = model.unit_tokens
    return FrameTensors(
        tokens="P",
        whole=(
            _spec("frames", "uint8", "2*U", f"{segments}*P", model.patch * 3),
            _spec("segments", "int32", f"{segments}*P"),
            _spec("places", "int32", f"{of_token}*P", 2),
            _spec("windows", "int32", "W", patches),
            _spec("cells", "int32", f"{of_token}*P"),
            _spec("row_major", "int32", "P"),
        ),
        pruned=(
            _spec("token_segments", "int32", "P", segments),
            _spec("token_places", "int32", "P", of_token, 2),
            _spec("token_windows", "int32", "P"),
        ),
        sizes={
            f"{segments}*P": _multiple(segments, most),
            f"{of_token}*P": _multiple(of_token, most),
            "P": _up_to(most),
            "W": Dimension(
                min=1,
                opt=-(-most // model.window**2),
                max=most_windows(most, model.window),
            ),
        },
    )


def plan_signatures(
    graphs: dict[GraphName, GraphSpec], model: ModelSpec, plugin: bool, strip: bool
) -> dict[GraphName, GraphSpec]:
    """The same graphs as TensorRT plans, without the pruned vision encoder: their files, and bounds
    that a profile allows.

    plugin: BoundedAttention is a plugin, otherwise expanded into TensorRT layers. strip: plans
    without weights.
    """
    page = model.layers * model.kv_heads * 2 * model.page_tokens * model.head_dim  # elements
    volume, read = (
        (MAX_VOLUME, MAX_PAGES)
        if plugin
        else (MAX_NATIVE_VOLUME, MAX_NATIVE_TOKENS // model.page_tokens)
    )
    pages = {
        name: Dimension(min=1, opt=min(TYPICAL_PAGES, maximum), max=maximum)
        for name, maximum in (("P", min(MAX_PAGES, (volume - 1) // page)), ("N", read))
    }
    plans: dict[GraphName, GraphSpec] = {}
    for name, graph in graphs.items():
        # plans cannot share weights, so this one would store the vision encoder twice
        if name == "vision_pruned":
            continue
        changes: dict[str, Any] = {
            "file": f"{name}.plan",
            "refit_from": f"{name}.onnx" if strip else None,
        }
        if graph.attention_layers:
            if not plugin:
                graph = _one_segment(graph)
            changes |= {
                "dimensions": graph.dimensions | pages,
                "plugin_layers": graph.attention_layers if plugin else 0,
            }
        plans[name] = graph.model_copy(update=changes)
    return plans


def _one_segment(graph: GraphSpec) -> GraphSpec:
    """The language graph for one table: memory for scores grows with the tables of all
    segments."""
    inputs = tuple(
        spec.model_copy(update={"shape": tuple(1 if size == "S" else size for size in spec.shape)})
        for spec in graph.inputs
    )
    dimensions = {name: bounds for name, bounds in graph.dimensions.items() if name != "S"}
    return graph.model_copy(update={"inputs": inputs, "dimensions": dimensions})


def export_graph(
    module: nn.Module, graph: GraphSpec, keep_weights: bool = False
) -> tuple[onnx_ir.Model, int]:
    """A module as an ONNX model in memory, with one BoundedAttention node and function body per
    layer.

    The module takes the graph's inputs and returns its outputs, in their order. keep_weights: none
    is folded with what it is cast or transposed by, so that all keep their names. Returns the model
    and the number of BoundedAttention nodes.
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
            optimize=False,
        )
        if program is None:
            raise RuntimeError(f"torch.onnx.export returned no program for {graph.file}")
        model = program.model
        _simplify(model, keep_weights)
        join_weights(model.graph, transpose=not keep_weights)
        count = onnx_function.add_function_body(model)
        _tidy(model)
    for value, spec in zip(
        [*model.graph.inputs, *model.graph.outputs], [*graph.inputs, *graph.outputs], strict=True
    ):
        value.shape = onnx_ir.Shape(spec.shape)
    return model, count


def _simplify(model: onnx_ir.Model, keep_weights: bool = False) -> None:
    """Inline functions, fold constants and unite operators on shapes, in place.

    onnxscript's optimizer does so too, but tries more rules at each node. In a graph of 36 layers
    one pass of them took a minute and found nothing.
    """
    options: dict[str, Any] = (
        {"input_size_limit": MIN_EXTERNAL, "should_fold": _may_fold} if keep_weights else {}
    )
    passes.InlinePass()(model)
    for _ in range(2):  # what a rule leaves may be constant, or common to layers
        onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=True, **options)
        RewritePass(SHAPE_RULES)(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _tidy(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _may_fold(node: onnx_ir.Node) -> bool | None:
    """Not a transposed weight, which would lose its name; None = by the optimizer's own rule, which
    folds all transpositions."""
    return False if node.op_type == "Transpose" else None


def join_weights(graph: onnx_ir.Graph, transpose: bool = False) -> None:
    """Let a graph store the parts of each `JoinedLinear` as one weight, in place. They are joined
    when the weight is read, so that memory holds one joined weight at a time.

    transpose: store a weight transposed where it is used so.
    """
    for node in list(graph):
        parts = [value.const_value for value in node.inputs if value is not None]
        if node.op_type != "Concat" or not parts or None in parts:
            continue
        owner, found, _ = (node.inputs[0].name or "").rpartition(".weights.")
        if not found:  # constants of another kind
            continue
        uses = [use.node for use in node.outputs[0].uses()]
        turned = transpose and all(use.op_type == "Transpose" for use in uses)
        axis = node.attributes.get_int("axis")
        joined = _joined(f"{owner}.weight", parts, axis, turned)
        graph.register_initializer(joined)
        for old in uses if turned else [node]:
            old.outputs[0].replace_all_uses_with(joined)
        graph.remove([*uses, node] if turned else node, safe=True)


def _joined(
    name: str, parts: list[onnx_ir.TensorProtocol], axis: int, turned: bool
) -> onnx_ir.Value:
    def read() -> onnx_ir.TensorProtocol:
        tensor = torch.cat([as_torch(part) for part in parts], axis)
        return tensor_adapters.TorchTensor(tensor.T.contiguous() if turned else tensor)

    size = [int(side) for side in parts[0].shape]
    size[axis] = sum(int(part.shape[axis]) for part in parts)
    shape = onnx_ir.Shape(size[::-1] if turned else size)
    constant = onnx_ir.LazyTensor(read, parts[0].dtype, shape, name=name)
    return onnx_ir.Value(
        name=name, const_value=constant, type=onnx_ir.TensorType(constant.dtype), shape=shape
    )


def as_torch(constant: onnx_ir.TensorProtocol) -> torch.Tensor:
    """A constant as a tensor, bfloat16 included."""
    if isinstance(constant, onnx_ir.LazyTensor):
        constant = constant.raw()
    raw = getattr(constant, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw
    array = constant.numpy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def export_program(
    module: nn.Module, graph: GraphSpec, device: str
) -> tuple[torch.export.ExportedProgram, tuple[torch.Tensor, ...]]:
    """A module as an exported program on a device, and the example inputs of the trace."""
    inputs, dimensions = _examples(graph)
    placed = tuple(tensor.to(device) for tensor in inputs)
    return torch.export.export(module.to(device), placed, dynamic_shapes=dimensions), placed


def expand(model: onnx_ir.Model) -> None:
    """Inline all functions in place, then remove common subexpressions of the layers."""
    with _quiet():
        _simplify(model)


def remove_functions(model: onnx_ir.Model) -> None:
    """Remove the body of BoundedAttention: TensorRT would use it instead of the plugin."""
    model.functions.clear()


def _tidy(model: onnx_ir.Model) -> None:
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)


def write_graph(model: onnx_ir.Model, path: Path, written: Written | None = None) -> Iterator[int]:
    """Write a model to `path`, and its weights to `<stem>.bin` in the same folder.

    written: weights that are in files of the folder already, updated in place: equal weights are
    not written again. Yields the bytes of each weight once it is written or found in `written`.
    """
    weights_path = path.with_suffix(".bin")
    with contextlib.ExitStack() as stack:
        weights = None
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes < MIN_EXTERNAL:
                continue
            content = tensor.tobytes()
            digest = b"" if written is None else hashlib.blake2b(content).digest()
            if written is not None and digest in written:
                name, offset = written[digest]
            else:
                weights = weights or stack.enter_context(weights_path.open("wb"))
                weights.seek(-(-weights.tell() // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT)
                name, offset = weights_path.name, weights.tell()
                weights.write(content)
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


def write_embedding(rows: torch.Tensor, folder: Path, dtype: torch.dtype, written: Written) -> None:
    """Write the token embeddings [V,width] to `embedding.bin` as `dtype`. written: as of
    `write_graph`."""
    digest = hashlib.blake2b()
    with (folder / EMBEDDING_FILE).open("wb") as file:
        for part in rows.detach().cpu().split(EMBEDDING_ROWS):
            content = part.to(dtype).contiguous().view(torch.uint8).numpy()
            file.write(content)
            digest.update(content)
    written[digest.digest()] = EMBEDDING_FILE, 0


def write_nodes(model: onnx_ir.Model, path: Path) -> None:
    """Write only the .onnx file of a model whose weights are already in files."""
    path.write_bytes(serde.serialize_model(model).SerializeToString())


def weight_bytes(model: onnx_ir.Model) -> int:
    """Bytes of weights that `write_graph` writes outside the .onnx file."""
    sizes = (
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    return sum(size for size in sizes if size >= MIN_EXTERNAL)


def _examples(graph: GraphSpec) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Zeros to trace with, and their dynamic axes. torch.export treats a size of 1 as constant, so
    the examples are larger; a size that is always 1 is constant."""
    names = {size for spec in graph.inputs for size in spec.shape if isinstance(size, str)}
    multiples = {name: name.partition("*")[::2] for name in names if "*" in name}  # 2*U: 2, U
    names = names - multiples.keys()
    most = {name: graph.dimensions[name].max for name in graph.dimensions}
    dims: dict[str, Any] = {
        name: Dim(name, min=1, max=most[name]) for name in names if most[name] > 1
    }
    sizes = {name: min(index + 2, most[name]) for index, name in enumerate(sorted(names))}
    for name, (times, base) in sorted(multiples.items()):
        sizes[name] = int(times) * sizes.setdefault(base, min(2, most[base]))
        if most[base] > 1:
            dims[name] = int(times) * dims.setdefault(base, Dim(base, min=1, max=most[base]))
    tensors, dynamic = [], []
    for spec in graph.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        tensors.append(torch.zeros(shape, dtype=getattr(torch, spec.dtype)))
        dynamic.append(
            {axis: dims[str(size)] for axis, size in enumerate(spec.shape) if str(size) in dims}
        )
    return tuple(tensors), tuple(dynamic)


def _spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _up_to(maximum: int) -> Dimension:
    return _multiple(1, maximum)


def _multiple(step: int, maximum: int) -> Dimension:
    """Multiples of `step`, up to `maximum` of them."""
    return Dimension(min=step, opt=step * maximum, max=step * maximum)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress output; its errors are exceptions."""
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
