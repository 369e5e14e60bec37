"""Builds the vision plan with torch-tensorrt, without ONNX. It requires the full TensorRT and a
GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vicort.export.graphs import export_program
from vicort.export.tensorrt_plans import profile_shape
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec


def compile_directly(module: nn.Module, graph: GraphSpec, plan: Path) -> GraphSpec:
    """Write the plan of a module with standard operators only. graph: its tensors and their bounds.

    Returns the graph with torch-tensorrt's names of its outputs. Raises EngineError if
    torch-tensorrt is not installed, or compiles no plan.
    """
    try:
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "--frontend torch-tensorrt: run `pip install torch-tensorrt` on a machine with a GPU, "
            "or leave it out"
        ) from error
    program, _ = export_program(module, graph, "cuda")
    with torch.no_grad(), tempfile.TemporaryDirectory() as work:
        try:
            content = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=_inputs(torch_tensorrt, graph),
                require_full_compilation=True,
                disable_tf32=True,
                max_aux_streams=0,  # an engine uses only the stream it is given
                # by default it takes every bias of attention for a causal mask
                attn_bias_is_causal=False,
                # by default a file in the temporary folder, which all users share
                timing_cache_path=str(Path(work) / "timing.cache"),
            )
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)  # then the graph
            raise EngineError(
                f"torch-tensorrt cannot compile {plan.name}: {reason}: leave --frontend out"
            ) from error
    if not content:
        raise EngineError(f"torch-tensorrt returned no {plan.name}: leave --frontend out")
    plan.write_bytes(content)
    return graph.model_copy(
        update={
            "plan_names": {spec.name: f"output{index}" for index, spec in enumerate(graph.outputs)}
        }
    )


def _inputs(torch_tensorrt: Any, graph: GraphSpec) -> list[Any]:
    """The inputs with the shapes of the profile: a tensor would fix the plan to its own shape."""
    return [
        torch_tensorrt.Input(
            name=spec.name,
            dtype=getattr(torch, spec.dtype),
            **{
                f"{bound}_shape": profile_shape(graph, spec, bound)
                for bound in ("min", "opt", "max")
            },
        )
        for spec in graph.inputs
    ]
