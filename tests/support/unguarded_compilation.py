"""Compiles kernels in two processes, without the guard of a main module; prints each step."""

import os

from vicort.export.kernels import compile as compiling
from vicort.runtime.kernels import KernelSpec

print("script started", flush=True)
os.sched_getaffinity = lambda _: {0, 1}
spec = KernelSpec(
    kv_heads=2,
    groups=2,
    head_dim=32,
    page_tokens=4,
    dtype="bfloat16",
    sections=(4, 6, 6),
    frequencies=(1.0,) * 16,
)
tasks = [task for each in compiling.DEFAULT for task in compiling.plan_tasks(spec, each)]
tasks.sort(key=lambda task: "attention" in task.kernel)  # the quickest first
for done, _ in enumerate(compiling.build(spec, tasks), 1):
    print(done, "of", len(tasks), flush=True)
