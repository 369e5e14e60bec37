"""Small manifests of engine sets."""

from __future__ import annotations

from typing import Any

from vicort.runtime.manifest import SCHEMA_VERSION


def manifest(**changes: object) -> dict[str, Any]:
    """One of an engine set of one graph without files, with some of its keys changed."""
    tensor = {"name": "t", "dtype": "int32", "shape": ["rows"]}
    graph = {"file": "llm.onnx", "inputs": [tensor], "outputs": [tensor], "dimensions": {}}
    numbers = (
        "layers width query_heads kv_heads head_dim vocabulary patch merge window "
        "fps tokens_per_second"
    )
    model = dict.fromkeys(
        f"{numbers} chunk_frames page_tokens max_rows observed_rows max_position rotary_theta "
        "video_token".split(),
        8,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "backend": "openvino",
        "precision": "fp32",
        "model": {
            "name": "m",
            "eos_tokens": [1],
            "rotary_sections": [1, 1, 2],
            **model,
            "max_pixels": 4096,
            "fixed_size": [64, 64],
        },
        "graphs": {"llm": graph},
        "embedding": {
            "file": "embedding.bin",
            "offset": 0,
            "dtype": "float32",
            "rows": 8,
            "width": 8,
        },
        "checkpoint": "",
        "target": "",
        "versions": {},
        "build_command": "vicort-build tiny",
    } | changes
