"""The GPU kernels in Triton's interpreter, on host memory, launched by vicort.runtime.kernels
itself.

Triton decides at import whether it interprets, for its own library too, so this happens in a child
process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from vicort.runtime.devices.cuda.loaded_kernels import LoadedKernels
from vicort.runtime.kernels import INDEX, SCHEMA_VERSION, Kernels, KernelSpec

ARGUMENTS = {
    "bounded_attention": ("pointer",) * 13 + ("i32",) * 8 + ("f32",),
    "rotate_tokens": ("pointer",) * 13 + ("i32",) * 11,
    "rotated_attention": ("pointer",) * 9 + ("i32",) * 6 + ("f32",),
    "combine": ("pointer",) * 2 + ("i32",) * 2,
    "scatter_tokens": ("pointer",) * 6 + ("i32",),
    "set_places": ("pointer",) * 3,
}
HIDDEN = ("pointer",) * 2  # scratch memory, which Triton's compiler adds to every kernel


def stand_in(
    spec: KernelSpec, tiles: dict[str, tuple[int, int]], architectures: Sequence[int] = (90,)
) -> bytes:
    """A kernels.zip without machine code: each cubin is the name of its kernel. tiles: BLOCK_M and
    BLOCK_N of "wide", which those of `rotated_attention` are too, and "narrow"."""
    shared = {"D": spec.head_dim, "PAGE": spec.page_tokens}
    rotary = {
        "SECTION_T": spec.sections[0],
        "SECTION_H": spec.sections[1],
        "INTERLEAVED": int(spec.interleaved),
        "INT8": int(spec.kv == "int8"),
        "POSITIONS": spec.positions,
    }
    of_tile = lambda form: {
        **{"GROUP": spec.groups, "PRECISION": "ieee"},
        **dict(zip(("BLOCK_M", "BLOCK_N"), tiles[form], strict=True)),
    }
    constants: list[tuple[str, str, dict[str, Any]]] = [
        (
            "bounded_attention",
            form,
            {**shared, **rotary, **of_tile(form)},
        )
        for form in tiles
    ]
    constants += [
        ("rotate_tokens", "", {**shared, **rotary, "GROUP": spec.groups, "BLOCK": 16}),
        ("rotated_attention", "", {"D": spec.head_dim, **of_tile("wide")}),
        ("combine", "", {"D": spec.head_dim, "BLOCK": 16}),
        (
            "scatter_tokens",
            "",
            {
                **shared,
                "HEADS": spec.kv_heads,
                "HEADS_BLOCK": 1 << (spec.kv_heads - 1).bit_length(),
                "INT8": int(spec.kv == "int8"),
            },
        ),
        (
            "set_places",
            "",
            {"PAGE": spec.page_tokens, "BLOCK": 1 << (3 * spec.page_tokens - 1).bit_length()},
        ),
    ]
    kernels = [
        {
            "kernel": kernel,
            "form": form,
            "architecture": architecture,
            "file": f"sm_{architecture}/{kernel}{form}",
            "function": kernel,
            "warps": 4,
            "shared_bytes": 0,
            "arguments": ARGUMENTS[kernel] + HIDDEN,
            "constants": values,
        }
        for architecture in architectures
        for kernel, form, values in constants
    ]
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        index = {
            "schema_version": SCHEMA_VERSION,
            "spec": spec.model_dump(),
            "versions": {},
            "kernels": kernels,
        }
        archive.writestr(INDEX, json.dumps(index))
        for kernel in kernels:
            archive.writestr(
                kernel["file"],
                json.dumps(
                    [kernel["kernel"], kernel["constants"], len(kernel["arguments"]) - len(HIDDEN)]
                ),
            )
    return target.getvalue()


class Interpreter:
    """The child process: `run` has it call one verb of LoadedKernels."""

    def __init__(self) -> None:
        self._child = _start()

    def run(
        self,
        data: bytes,
        verb: str,
        arrays: dict[str, np.ndarray],
        values: dict[str, Any],
        gpu: dict[str, Any],
    ) -> dict[str, np.ndarray]:
        """Arrays are passed as pointers to copies, which come back as the kernels left them. data:
        a `stand_in`; gpu: for LoadedKernels."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            pickle.dump((data, verb, arrays, values, gpu), self._child.stdin)
            self._child.stdin.flush()
            result = pickle.load(self._child.stdout)
        except BaseException:  # a time-out in the middle: the next reply would be that of this call
            self.close()
            self._child = _start()
            raise
        if isinstance(result, str):
            raise RuntimeError(result)
        return result

    def cos_sin(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the kernels take for cos and sin of float32 angles; a power of two of them."""
        left = self.run(
            b"",
            "cos_sin",
            {"angles": angles, "cos": np.empty_like(angles), "sin": np.empty_like(angles)},
            {},
            {},
        )
        return left["cos"], left["sin"]

    def close(self) -> None:
        from support.processes import kill  # late: the child runs this file as a script

        kill(self._child)


def _start() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )


class InterpretingLauncher:
    """Runs a launch at once, on host addresses."""

    def __init__(self, dtype: str, kv: str) -> None:
        from vicort.export.kernels import attention_kernel, rotated_attention, scatter

        self._functions = {
            name: getattr(module, name)
            for module in (attention_kernel, rotated_attention, scatter)
            for name in ARGUMENTS
            if hasattr(module, name)
        }
        self._own = dtype
        self._kv = kv
        self._alive: list[np.ndarray] = []

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> Any:
        _kernel, constants, count = json.loads(cubin)
        return self._functions[function], constants, count

    def launch(self, kernel, grid, threads, shared_bytes, stream_handle, args) -> None:
        function, constants, count = kernel
        names = function.arg_names[:count]
        values = [
            self._tensor(name, value) if kind == "pointer" else value
            for name, (kind, value) in zip(names, args[:count], strict=True)
        ]
        function[grid](*values, **constants)

    def constant(self, data: bytes) -> int:
        self._alive.append(np.frombuffer(data, np.uint8).copy())
        return self._alive[-1].ctypes.data

    def _tensor(self, name: str, address: int):
        """A tensor of one element at an address: the interpreter asks it for no more than that and
        its type."""
        import torch

        own = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[
            self._own
        ]
        types = dict.fromkeys(
            ("q", "k", "v", "out", "queries", "keys", "values"), own
        ) | dict.fromkeys(("partial", "rotary", "scales", "bias"), torch.float32)
        types["pool"] = own if self._kv == "float" else torch.int8
        dtype = types.get(name, torch.int32)
        if address == 0:  # an argument that this form does not read
            return torch.empty(1, dtype=dtype)
        return torch.frombuffer((ctypes.c_char * dtype.itemsize).from_address(address), dtype=dtype)


def multiply_bfloat16() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as its bits, and multiplies matrices of these bits as
    integers: give it the numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(
        self, widened(a), widened(b), *rest
    )


def store_cos_sin(arrays: dict[str, np.ndarray]) -> None:
    import torch
    from rotary_kernel import store_cos_sin as kernel  # type: ignore[import-not-found]  # beside this file, which is run as a script

    kernel[(1,)](
        *(torch.from_numpy(arrays[name]) for name in ("angles", "cos", "sin")),
        COUNT=arrays["angles"].size,
    )


def serve() -> None:
    """The child's loop: one call a pickle."""
    multiply_bfloat16()
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints does not get among the replies
    while True:
        try:
            data, verb, arrays, values, gpu = pickle.load(requests)
        except EOFError:
            return
        arrays = {name: array.copy() for name, array in arrays.items()}
        try:
            if verb == "cos_sin":
                store_cos_sin(arrays)
            else:
                kernels = Kernels.parse(data)
                loaded = LoadedKernels(
                    kernels,
                    launcher=InterpretingLauncher(kernels.spec.dtype, kernels.spec.kv),
                    **gpu,
                )
                getattr(loaded, verb)(
                    **{name: array.ctypes.data for name, array in arrays.items()},
                    **values,
                    stream=0,
                )
            reply: Any = arrays
        except Exception as error:  # noqa: BLE001 -- the parent raises it
            reply = f"{type(error).__name__}: {error}"
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    serve()
