"""Builds the vision plan with torch-tensorrt, without ONNX. It requires the full TensorRT and a
GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vicort.export.graphs import export_program
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphSpec


def compile_directly(module: nn.Module, graph: GraphSpec, plan: Path) -> GraphSpec:
    """Write the plan of a module with standard operators only. graph: its tensors and their bounds.

    Returns the graph with torch-tensorrt's names of its outputs. Raises EngineError if
    torch-tensorrt is not installed, or returns no plan.
    """
    try:
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            "--frontend torch-tensorrt: run `pip install torch-tensorrt` on a machine with a GPU, "
            "or leave it out"
        ) from error
    program, inputs = export_program(module, graph, "cuda")
    with torch.no_grad():
        content = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=inputs,
            require_full_compilation=True,
            disable_tf32=True,
            use_fp32_acc=True,
        )
    if not content:
        raise EngineError(f"torch-tensorrt returned no {plan.name}: leave --frontend out")
    plan.write_bytes(content)
    return graph.model_copy(
        update={
            "plan_names": {spec.name: f"output{index}" for index, spec in enumerate(graph.outputs)}
        }
    )
