"""The matrix products of a chunk, each at its own shape, by cuBLAS: what the same hardware gives
them without vicort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vicort.benchmarks.common.settings import REAL_SIDES
from vicort.benchmarks.common.spread import Spread, spread
from vicort.benchmarks.common.workload import CHUNK_FRAMES, bench_system
from vicort.benchmarks.cpu.arithmetic import kept_rows
from vicort.benchmarks.gpu.kernel_steps import ROTATED_BYTES, cuda_torch, torch_times_ms
from vicort.benchmarks.gpu.lab import Lab
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.engines.buckets import padded_rows

ITEM_BYTES = 2  # bf16
MAX_COPIES = 64  # of a weight, read in turn


@dataclass(frozen=True)
class Product:
    """`times` products of [m, k] and [k, n] in a chunk; 0 = none, it is only compared with."""

    name: str
    m: int
    k: int
    n: int
    times: int

    @property
    def gflop(self) -> float:
        return 2e-9 * self.m * self.k * self.n


def vision_products(vision: dict[str, Any], side: int) -> Iterator[Product]:
    """vision: the checkpoint's `vision_config`; side: pixels of a frame's side. Widths are those of
    the exported graph: joined, and filled up."""
    from vicort.export.qwen2_5_vl.configuration import padded_width

    patch, merge, width = (
        vision[name] for name in ("patch_size", "spatial_merge_size", "hidden_size")
    )
    rows = CHUNK_FRAMES // UNIT_FRAMES * (side // patch) ** 2
    plain, depth = vision["intermediate_size"], vision["depth"]
    padded = padded_width(plain)
    merged, merged_rows = width * merge**2, rows // merge**2
    yield Product("patches", rows, 3 * UNIT_FRAMES * patch**2, width, 1)
    yield Product("q, k and v", rows, width, 3 * width, depth)
    yield Product("attention's output", rows, width, width, depth)
    yield Product("gate and up", rows, width, 2 * padded, depth)
    yield Product("down", rows, padded, width, depth)
    yield Product("merger, first", merged_rows, merged, merged, 1)
    yield Product("merger, second", merged_rows, merged, vision["out_hidden_size"], 1)
    if padded != plain:
        yield Product("gate or up, not filled up", rows, width, plain, 0)
        yield Product("down, not filled up", rows, plain, width, 0)


def language_products(text: dict[str, Any], rows: int) -> Iterator[Product]:
    """text: the checkpoint's `text_config`; rows: new tokens of a run."""
    width, layers, mlp = (
        text[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    joined = width // heads * (heads + 2 * kv_heads)
    yield Product("q, k and v", rows, width, joined, layers)
    yield Product("attention's output", rows, width, width, layers)
    yield Product("gate and up", rows, width, 2 * mlp, layers)
    yield Product("down", rows, mlp, width, layers)
    yield Product("output head, of a question", 1, width, text["vocab_size"], 0)


def stages_of(config: dict[str, Any], side: int) -> dict[str, list[Product]]:
    """The products of a chunk of frames of `side` x `side` pixels, by stage."""
    vision = config["vision_config"]
    token = vision["patch_size"] * vision["spatial_merge_size"]
    kept = kept_rows(bench_system().drop, CHUNK_FRAMES // UNIT_FRAMES, (side // token) ** 2)
    return {
        "vision": list(vision_products(vision, side)),
        "prefill": list(language_products(config["text_config"], padded_rows(kept))),
    }


def products(lab: Lab, size: str = "3b", side: int = REAL_SIDES[0]) -> dict[str, Any]:
    """Milliseconds and TFLOP/s of each product, and of all of a chunk's."""
    lab.gpu  # noqa: B018 (skips without one)
    torch = cuda_torch()
    from vicort.benchmarks.gpu.real_models import SIZES  # late: it takes torch

    return {
        "gpu": lab.gpu.name,
        "model": size,
        "rotated_bytes": ROTATED_BYTES,
        "stages": {
            stage: timed(each, side, lambda product: product_ms(torch, product))
            for stage, each in stages_of(SIZES[size].config, side).items()
        },
    }


def timed(each: list[Product], side: int, measure: Callable[[Product], Spread]) -> dict[str, Any]:
    rows, whole_ms, whole_gflop = [], 0.0, 0.0
    for product in each:
        ms = measure(product)
        rows.append(
            {
                "name": product.name,
                "shape": [product.m, product.k, product.n],
                "times": product.times,
                "ms": ms,
                "tflop_s": round(product.gflop / ms["median"], 1),
            }
        )
        whole_ms += product.times * ms["median"]
        whole_gflop += product.times * product.gflop
    return {
        "side": side,
        "products": rows,
        "sum_ms": round(whole_ms, 4),
        "tflop_s": round(whole_gflop / whole_ms, 1),
    }


def product_ms(torch: Any, product: Product) -> Spread:
    """Many products in one CUDA graph, which leaves the host's time out, over weights that no cache
    holds together."""
    weight_bytes = ITEM_BYTES * product.k * product.n
    copies = max(2, min(MAX_COPIES, -(-ROTATED_BYTES // weight_bytes)))
    draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    x, weights = draw(product.m, product.k), [draw(product.n, product.k) for _ in range(copies)]
    out = torch.empty(product.m, product.n, device="cuda", dtype=torch.bfloat16)

    def once() -> None:
        for weight in weights:
            torch.mm(x, weight.t(), out=out)

    once()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    times = torch_times_ms(torch, graph.replay)
    return spread([ms / copies for ms in times], 6)
