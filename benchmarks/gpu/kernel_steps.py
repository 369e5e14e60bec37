"""The kernels on a GPU: correctness against a NumPy statement of the op, and speed against the
GPU's measured ceilings.

The tests run the same steps on a simulated GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy its bfloat16)
import numpy as np

from vicort.benchmarks.common.spread import Spread, spread
from vicort.benchmarks.gpu.lab import Lab, Skip, StepFailed, need
from vicort.runtime.devices.cuda import DeviceArray
from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.kernels import KernelSpec

# largest difference, as a part of the largest value
TOLERANCE = {"float32": 3e-5, "float16": 8e-3, "bfloat16": 4e-2}
CHECKED_ROWS = 6  # of a long run: the plain statement is slow
TABLE_POSITIONS = 1 << 16  # of the tables of cos and sin that computing them is measured against
LAYERS = 16  # of a pool in a measurement, at least: read in turn
# Read before anything is read again: five times the L2 of an H100, which holds 50 MB.
ROTATED_BYTES = 256 << 20
PRODUCT_TOLERANCE = 1e-2  # of a bf16 matrix product, which is rounded once
SIDE = 8192  # of the square matrices
COPY_BYTES = 1 << 30


def model_spec(
    kv_heads: int,
    groups: int,
    head_dim: int,
    page_tokens: int,
    dtype: str,
    sections: tuple[int, int, int],
    theta: float,
) -> KernelSpec:
    exponents = np.arange(head_dim // 2, dtype=np.float32) / np.float32(head_dim // 2)
    frequencies = (np.float32(1) / np.float32(theta) ** exponents).astype(np.float32)
    return KernelSpec.model_validate(
        {
            "kv_heads": kv_heads,
            "groups": groups,
            "head_dim": head_dim,
            "page_tokens": page_tokens,
            "dtype": dtype,
            "sections": sections,
            "frequencies": tuple(frequencies.tolist()),
        }
    )


QWEN, TINY = ((16, 24, 24), 1e6), ((4, 6, 6), 1e4)  # sections, theta
SPECS = {
    "tiny-fp32": model_spec(2, 2, 32, 4, "float32", *TINY),
    "tiny-bf16": model_spec(2, 2, 32, 4, "bfloat16", *TINY),
    "3b-bf16": model_spec(2, 8, 128, 16, "bfloat16", *QWEN),
    "3b-fp16": model_spec(2, 8, 128, 32, "float16", *QWEN),
    "3b-fp32": model_spec(2, 8, 128, 8, "float32", *QWEN),
    "7b-bf16": model_spec(4, 7, 128, 16, "bfloat16", *QWEN),
}
FAST_SPECS = ("3b-bf16", "7b-bf16")


@dataclass(frozen=True)
class Case:
    """One call of the kernel."""

    rows: int  # new tokens
    pages: int
    # all | layer | head: table and `where` are shared by all layers and heads, one for each layer,
    # or one for each layer and head
    shared: str = "all"
    layers: int = 2
    padding: bool = False  # some rows are padding
    tree: bool = False  # rows are blocks within blocks, as of texts with common beginnings
    holes: bool = True  # some cells are empty, some slots none
    span: int = 30_000  # positions lie below this


def cases(spec: KernelSpec) -> Iterator[Case]:
    """Every form, few rows (split keys) and many, short tables and long, large positions."""
    for shared in ("all", "layer", "head"):
        yield Case(1, 40, shared)
        yield Case(33, 9, shared, padding=True)
    yield Case(1, 0)
    yield Case(5, 0, padding=True)
    yield Case(2, 3, span=128_000)
    yield Case(64, 70, padding=True, span=128_000)
    yield Case(21, 12, tree=True)
    yield Case(257, 33, tree=True, padding=True)
    yield Case(257, 33)
    yield Case(1, 32_768 // spec.page_tokens, holes=False)
    yield Case(128, 8_192 // spec.page_tokens)
    yield Case(2_048, 4_096 // spec.page_tokens, padding=True)


Arrays = dict[str, np.ndarray]


def random_inputs(spec: KernelSpec, case: Case, seed: int = 0) -> Arrays:
    """Inputs of the op, in the kernels' type; empty cells, padding and slots in no table hold
    NaN."""
    random, dtype = np.random.default_rng(seed), np.dtype(spec.dtype)
    heads, dim, tokens, layers = spec.kv_heads, spec.head_dim, spec.page_tokens, case.layers
    slots = case.pages + 2  # two that no table names
    spread_layers = layers if case.shared != "all" else 1
    spread_heads = heads if case.shared == "head" else 1
    q, k, v = (
        random.standard_normal((case.rows, count, dim), np.float32)
        for count in (heads * spec.groups, heads, heads)
    )
    pos = random.integers(0, case.span, (case.rows, 3), np.int32)
    pool = random.standard_normal((slots, layers, heads, 2, tokens, dim), np.float32)
    where = random.integers(0, case.span, (slots, spread_layers, spread_heads, tokens, 3), np.int32)
    table = np.stack(
        [
            [random.permutation(slots)[: case.pages] for _ in range(spread_heads)]
            for _ in range(spread_layers)
        ]
    ).astype(np.int32)
    if case.holes:
        where[random.random(where.shape[:-1]) < 0.2] = -1
        table[random.random(table.shape) < 0.1] = -1
    if case.padding:
        pos[1::3] = -1
        for array in (q, k, v):
            array[1::3] = np.nan
    until = np.full(case.rows, case.rows, np.int32)
    if case.tree:  # row 4 * n is seen by three more, row 8 * n by seven, ...
        row = np.arange(1, case.rows, dtype=np.int32)
        until[1:] = row + (row & -row)
    empty = np.broadcast_to(where[..., 0] < 0, (slots, layers, heads, tokens))
    pool[np.broadcast_to(empty[:, :, :, None], pool.shape[:-1])] = np.nan
    named = np.unique(table[table >= 0])
    pool[np.setdiff1d(np.arange(slots), named)] = np.nan
    return {
        name: array.astype(dtype) for name, array in (("q", q), ("k", k), ("v", v), ("pool", pool))
    } | {
        "pos": pos,
        "where": where,
        "segment": np.zeros(case.rows, np.int32),
        "until": until,
        "table": table.reshape(1, spread_layers, spread_heads, case.pages),
    }


def rotate(x: np.ndarray, positions: np.ndarray, spec: KernelSpec) -> np.ndarray:
    """x: [..., D]; positions: [..., 3]. The angle is rounded to float32, as the model's own is."""
    axis = np.repeat(np.arange(3), spec.sections)
    angle = (
        positions[..., axis].astype(np.float32) * np.array(spec.frequencies, np.float32)
    ).astype(np.float64)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ],
        axis=-1,
    )


def plain_statement(
    spec: KernelSpec, inputs: Arrays, rows: np.ndarray, layer: int, scale: float
) -> np.ndarray:
    """vicort::BoundedAttention in float64, for some rows: [len(rows), Hq, D]."""
    pos, where, table = inputs["pos"], inputs["where"], inputs["table"][0]
    out = np.zeros((len(rows), spec.kv_heads * spec.groups, spec.head_dim))
    real = pos[:, 0] >= 0
    for head in range(spec.kv_heads):
        slots = table[min(layer, table.shape[0] - 1), min(head, table.shape[1] - 1)]
        slots = slots[slots >= 0]
        places = where[
            slots, min(layer, where.shape[1] - 1), min(head, where.shape[2] - 1)
        ].reshape(-1, 3)
        cells = inputs["pool"][slots, layer, head].astype(np.float64)  # [n,2,T,D]
        filled = places[:, 0] >= 0
        keys = rotate(cells[:, 0].reshape(-1, spec.head_dim)[filled], places[filled], spec)
        values = cells[:, 1].reshape(-1, spec.head_dim)[filled]
        new_keys = rotate(inputs["k"][:, head], pos, spec)
        new_values = inputs["v"][:, head].astype(np.float64)
        group = slice(head * spec.groups, (head + 1) * spec.groups)
        for place, row in enumerate(rows):
            if not real[row]:
                continue
            before = np.flatnonzero(real[: row + 1] & (inputs["until"][: row + 1] > row))
            seen = np.concatenate([keys, new_keys[before]])
            weighed = np.concatenate([values, new_values[before]])
            scores = rotate(inputs["q"][row, group], pos[row], spec) @ seen.T * scale
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[place, group] = weights / weights.sum(axis=-1, keepdims=True) @ weighed
    return out


class Call:
    """One call of the attention kernel, its arrays on the device."""

    def __init__(self, lab: Lab, kernels: LoadedKernels, inputs: Arrays) -> None:
        self._lab, self._kernels = lab, kernels
        self._shapes: dict[str, Any] = {
            f"{name}_shape": inputs[name].shape for name in ("pool", "where", "table")
        }
        self._rows = len(inputs["pos"])
        self._arrays = {name: lab.put(array) for name, array in inputs.items()}
        self._arrays["out"] = lab.poisoned(inputs["q"].shape, inputs["q"].dtype)
        segments, _, _, pages = inputs["table"].shape
        plan = kernels.plan(self._rows, pages, segments)
        self.shares = plan.shares
        self._arrays["workspace"] = lab.poisoned((max(plan.workspace_bytes, 1),), np.uint8)

    def launch(self, layer: int) -> None:
        pointers: dict[str, Any] = {name: array.pointer for name, array in self._arrays.items()}
        scale = self._kernels.spec.head_dim**-0.5
        self._kernels.attention(
            **pointers,
            **self._shapes,
            rows=self._rows,
            layer=layer,
            scale=scale,
            stream=self._lab.handle,
        )

    @property
    def out(self) -> DeviceArray:
        return self._arrays["out"]


# ---- step: correctness


def correctness(lab: Lab) -> dict[str, Any]:
    """The sweep of attention, and the two kernels that place tokens, for each kind of model."""
    found: dict[str, Any] = {"gpu": lab.gpu.name, "tolerance": TOLERANCE, "worst": {}, "cases": 0}
    for name, spec in SPECS.items():
        kernels = lab.kernels(name, spec)
        errors = [
            attention_error(lab, kernels, case, layer)
            for case in cases(spec)
            for layer in range(case.layers)
        ]
        found["worst"][name], found["cases"] = max(errors), found["cases"] + len(errors)
        if not max(errors) <= TOLERANCE[spec.dtype]:  # also if it is NaN
            worst = [case for case in cases(spec) for _ in range(case.layers)][
                int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
            ]
            raise StepFailed(
                f"bounded_attention for {name} is {max(errors):.2e} off at {worst}, "
                f"{TOLERANCE[spec.dtype]:.0e} is allowed",
                found,
            )
        if wrong := placing_errors(lab, kernels):
            raise StepFailed(
                f"{' and '.join(wrong)} for {name} give another pool than NumPy", found
            )
    return found


def attention_error(lab: Lab, kernels: LoadedKernels, case: Case, layer: int) -> float:
    """Largest difference from the plain statement, as a part of its largest value; NaN if there is
    any in the output."""
    inputs = random_inputs(kernels.spec, case)
    call = Call(lab, kernels, inputs)
    call.launch(layer)
    out = lab.get(call.out).astype(np.float64)
    if not np.isfinite(out).all():
        return float("nan")
    rows = np.unique(np.linspace(0, case.rows - 1, CHECKED_ROWS).astype(int))
    wanted = plain_statement(kernels.spec, inputs, rows, layer, kernels.spec.head_dim**-0.5)
    if out[inputs["pos"][:, 0] < 0].any():  # rows of padding are zero
        return float("inf")
    return float(np.abs(out[rows] - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def placing_errors(lab: Lab, kernels: LoadedKernels) -> list[str]:
    """Which of `scatter_tokens` and `set_places` give another result than NumPy."""
    spec, random, wrong = kernels.spec, np.random.default_rng(1), []
    layers, rows, count, pages = 3, 40, 29, 12
    dtype = np.dtype(spec.dtype)
    k, v = (
        random.standard_normal((layers, rows, spec.kv_heads, spec.head_dim), np.float32).astype(
            dtype
        )
        for _ in range(2)
    )
    pool = random.standard_normal(
        (pages, layers, spec.kv_heads, 2, spec.page_tokens, spec.head_dim), np.float32
    ).astype(dtype)
    at = random.permutation(pages * spec.page_tokens)[:count]
    slots = (at // spec.page_tokens).astype(np.int32)
    cells = (at % spec.page_tokens).astype(np.int32)
    slots[3] = -1
    device = {
        name: lab.put(array)
        for name, array in (("k", k), ("v", v), ("slots", slots), ("cells", cells), ("pool", pool))
    }
    kernels.scatter_tokens(
        **{n: a.pointer for n, a in device.items()},
        count=count,
        rows=rows,
        layers=layers,
        stream=lab.handle,
    )
    for token in np.flatnonzero(slots >= 0):
        pool[slots[token], :, :, 0, cells[token]] = k[:, token]
        pool[slots[token], :, :, 1, cells[token]] = v[:, token]
    if lab.get(device["pool"]).tobytes() != pool.tobytes():
        wrong.append("scatter_tokens")
    where = random.integers(0, 99, (pages, 1, 1, spec.page_tokens, 3), np.int32)
    places = random.integers(0, 99, (4, spec.page_tokens, 3), np.int32)
    slots = np.array([7, 0, -1, 11], np.int32)
    device = {
        name: lab.put(array)
        for name, array in (("slots", slots), ("places", places), ("where", where))
    }
    kernels.set_places(
        **{n: a.pointer for n, a in device.items()}, count=len(slots), stream=lab.handle
    )
    where[slots[slots >= 0], 0, 0] = places[slots >= 0]
    if lab.get(device["where"]).tobytes() != where.tobytes():
        wrong.append("set_places")
    return wrong


# ---- steps: ceilings and speed


def ceilings(lab: Lab, side: int = SIDE, copy_bytes: int = COPY_BYTES) -> dict[str, Any]:
    """This GPU's ceilings: TFLOP/s of a bf16 matrix product, GB/s of a copy (read and written).
    Raises StepFailed if the product is wrong: its time would mean nothing."""
    gpu = lab.gpu
    source, target = lab.poisoned((copy_bytes,), np.uint8), lab.poisoned((copy_bytes,), np.uint8)
    copy = lab.times_ms(
        [lambda: gpu.driver.copy(target.pointer, source.pointer, copy_bytes, lab.raw)]
    )
    found: dict[str, Any] = {
        "gpu": gpu.name,
        "copy_bytes": copy_bytes,
        "copy_ms": copy,
        "copy_gb_s": round(2 * copy_bytes / 1e6 / copy["median"], 1),
    }
    try:
        product = matrix_product_ms(side)
    except Skip as skip:
        return found | {"matrix_product": f"skipped: {skip}"}
    except StepFailed as failure:
        raise StepFailed(str(failure), found) from failure
    return found | {
        "matrix_side": side,
        "matrix_ms": product,
        "matrix_tflop_s": round(2 * side**3 / 1e9 / product["median"], 1),
    }


def matrix_product_ms(side: int) -> Spread:
    """bf16, by cuBLAS through PyTorch. Raises StepFailed if the product is wrong."""
    torch = cuda_torch()
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    times = torch_times_ms(torch, lambda: torch.mm(a, b, out=out))
    difference = row_difference(a, b, out)
    if not difference <= PRODUCT_TOLERANCE:  # also if it is NaN
        raise StepFailed(
            f"a matrix product differs from the CPU's by {difference:.2g} of its largest value, "
            f"{PRODUCT_TOLERANCE:g} is allowed",
            {},
        )
    return spread(times, 6)


def row_difference(a: Any, b: Any, product: Any) -> float:
    """Largest difference of the first row of `product` from a @ b on the CPU in float32, as a part
    of its largest value."""
    row, wanted = product[:1].cpu().float(), a[:1].cpu().float() @ b.cpu().float()
    return float((row - wanted).abs().max() / wanted.abs().max())


def cuda_torch() -> Any:
    """PyTorch for CUDA. Raises Skip where it is the CPU's."""
    need("torch", "the comparison runs in it")
    import torch

    if torch.version.cuda is None:
        raise Skip(
            f"torch {torch.__version__} has no CUDA: install one that has, from PyTorch's own "
            "package index"
        )
    if not torch.cuda.is_available():
        raise Skip(f"torch {torch.__version__} cannot use this GPU: see `nvidia-smi`")
    return torch


def torch_times_ms(torch: Any, work: Callable[[], Any], repeats: int = 20) -> list[float]:
    times = []
    for repeat in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    return times


PREFILL = [(rows, context) for rows in (32, 128, 512, 2_048) for context in (1_024, 8_192, 32_768)]
DECODE = [(1, context) for context in (1_024, 4_096, 8_192, 32_768)]


def speed(lab: Lab) -> dict[str, Any]:
    """Prefill and decode over pages, with computed angles and with tables, and prefill also with
    keys rotated as they are read and before; each time with its share of the ceilings."""
    limits, found = ceilings(lab), {}
    for name in FAST_SPECS:
        kernels = {
            "computed": lab.kernels(name, SPECS[name]),
            "table": lab.kernels(
                f"{name}-table", SPECS[name].model_copy(update={"positions": TABLE_POSITIONS})
            ),
        }
        both = {
            "at_once": lab.kernels(name, SPECS[name], rotate_first=False),
            "rotated_first": lab.kernels(name, SPECS[name], rotate_first=True),
        }
        found[name] = [
            *(speed_at(lab, kernels | both, *sizes, limits) for sizes in PREFILL),
            *(speed_at(lab, kernels, *sizes, limits) for sizes in DECODE),
        ]
    return {"gpu": lab.gpu.name, "ceilings": limits, "rotated_bytes": ROTATED_BYTES, "calls": found}


def speed_at(
    lab: Lab, kernels: dict[str, LoadedKernels], rows: int, context: int, limits: dict[str, Any]
) -> dict[str, Any]:
    spec = kernels["computed"].spec
    layers = layers_in_turn(spec, context)
    case = Case(rows, context // spec.page_tokens, layers=layers, holes=False)
    inputs = repeated_pool(spec, case)
    flop = 4 * rows * spec.kv_heads * spec.groups * spec.head_dim * (context + (rows + 1) / 2)
    vectors = 2 * (context + rows) * spec.kv_heads
    moved = vectors * spec.head_dim * np.dtype(spec.dtype).itemsize + 12 * context
    found: dict[str, Any] = {
        "rows": rows,
        "context": context,
        "layers_in_turn": layers,
        "gflop": round(flop / 1e9, 3),
        "mb": round(moved / 1e6, 3),
    }
    for form, ready in kernels.items():
        call = Call(lab, ready, inputs)
        ms = lab.times_ms([partial(call.launch, layer) for layer in range(layers)])
        found[form] = {"ms": ms, "shares": call.shares, **rates(flop, moved, ms["median"], limits)}
        del call
    try:
        found["torch_sdpa_ms"] = sdpa_ms(spec, rows, context)
    except Skip as skip:
        found["torch_sdpa_ms"] = f"skipped: {skip}"
    except RuntimeError as error:  # of PyTorch: only its own measurement is missing
        found["torch_sdpa_ms"] = f"failed: {str(error).splitlines()[0]}"
    return found


def layers_in_turn(spec: KernelSpec, context: int) -> int:
    """So many that no cache holds what they read."""
    layer = 2 * context * spec.kv_heads * spec.head_dim * np.dtype(spec.dtype).itemsize
    return max(LAYERS, -(-ROTATED_BYTES // layer))


def rates(flop: float, moved: float, ms: float, limits: dict[str, Any]) -> dict[str, float]:
    found = {"tflop_s": round(flop / 1e9 / ms, 2), "gb_s": round(moved / 1e6 / ms, 1)}
    found["share_of_copy"] = round(found["gb_s"] / limits["copy_gb_s"], 3)
    if "matrix_tflop_s" in limits:
        found["share_of_matrix_product"] = round(found["tflop_s"] / limits["matrix_tflop_s"], 3)
    return found


def repeated_pool(spec: KernelSpec, case: Case) -> Arrays:
    """Inputs whose layers all hold the same, as drawing gigabytes of random numbers takes longer
    than the measurement."""
    inputs = random_inputs(spec, replace(case, layers=1))
    return inputs | {"pool": np.repeat(inputs["pool"], case.layers, axis=1)}


def sdpa_ms(spec: KernelSpec, rows: int, context: int) -> Spread:
    """PyTorch's attention over the same numbers of tokens, contiguous and already rotated, which is
    less work than the kernel's."""
    torch = cuda_torch()
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    dtype = getattr(torch, spec.dtype)
    q = torch.randn(1, spec.kv_heads * spec.groups, rows, spec.head_dim, device="cuda", dtype=dtype)
    k, v = (
        torch.randn(1, spec.kv_heads, context + rows, spec.head_dim, device="cuda", dtype=dtype)
        for _ in range(2)
    )
    mask = causal_lower_right(rows, context + rows) if rows > 1 else None
    attend = lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)  # noqa: E731
    return spread(torch_times_ms(torch, attend), 6)
