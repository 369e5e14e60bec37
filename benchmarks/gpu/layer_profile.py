"""A profile at real size: layers of each engine, the host's share of each run, and gaps between
runs in the pipeline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.vicort_stream import Span, VicortStream
from vicort.benchmarks.common.workload import CHUNK_FRAMES
from vicort.benchmarks.cpu.arithmetic import kept_rows
from vicort.benchmarks.gpu.engine_steps import stage_ms, time_runs
from vicort.benchmarks.gpu.lab import Lab
from vicort.benchmarks.gpu.pipeline_steps import AMOUNT, PipelineSetup, pipeline_setup
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.devices.trace import Trace
from vicort.runtime.manifest import GraphName

TOP = 15  # layers that are listed, by graph
LAYER_RUNS = 10
REPLAYS = 30
CHUNKS = 60  # of the overlapped run that is traced
Arrays = dict[str, np.ndarray]


def profile(lab: Lab, name: str, side: int) -> dict[str, Any]:
    """Runs as a chunk and a question have them: by layer, by graph, and in the overlapped
    pipeline."""
    with pipeline_setup(lab, name, side) as work:
        found: dict[str, Any] = work.describe() | {"runs": {}}
        for run, graph, inputs in typical_runs(work):
            found["runs"][run] = {
                "graph": graph,
                **layers_of(work, graph, inputs),
                "whole": time_runs(work.engines, graph, inputs, REPLAYS),
            }
        with work.stream(overlap=True) as stream:
            stream.push_chunks(AMOUNT.warmup)
            first = len(stream.watch.chunks)
            stream.push_chunks(CHUNKS)
            stages = stage_ms(stream, first)
            found["pipeline"] = {
                "chunks": CHUNKS,
                "stage_ms": stages,
                **gaps(spans_from(stream, first)),
            }
            path = lab.folder / f"trace-{name}-{side}.json"
            write_trace(stream, first, path)
    return found | {"trace": str(path), "top": top_costs(found["runs"])}


def typical_runs(work: PipelineSetup) -> Iterable[tuple[str, GraphName, Arrays]]:
    """Name, graph and random inputs: a whole chunk's frames and features, the tokens of it that are
    kept, over a full window; a token."""
    from vicort.export.verify import feature_inputs, frame_inputs, head_inputs, language_inputs

    model, random = work.engines.manifest.model, np.random.default_rng(0)
    units, system = CHUNK_FRAMES // UNIT_FRAMES, work.system
    kept = kept_rows(system.drop, units, model.unit_tokens)
    pages_a_chunk = -(-kept // model.page_tokens)
    language = partial(language_inputs, model, work.engines.dtype, random=random)
    yield "vision, a chunk", "vision", frame_inputs(model, units, random)
    yield "tokens, three units", "tokens", feature_inputs(model, work.engines.dtype, random)
    yield (
        "prefill, a chunk",
        "llm",
        language(kept, pages=pages_a_chunk * (system.ingest.window or 1)),
    )
    yield "decode, a token", "llm", language(1, pages=pages_a_chunk * 32)
    yield "output head", "head", head_inputs(model, work.engines.dtype, random)


# ---- layers


def layers_of(work: PipelineSetup, graph: GraphName, inputs: Arrays) -> dict[str, Any]:
    """Milliseconds by layer and by kind of layer, if the engine reports them."""
    from vicort.runtime.engines.engine_run import bind

    engine = work.engines.engine(graph)
    if not hasattr(engine, "layer_times"):
        return {
            "layers": f"engines of {work.place.backend} do not report the times of their layers"
        }
    device = work.engines.new_device(overlap=True)
    try:
        stream = device.stream("profile")
        times = stream.run(
            lambda: engine.layer_times(bind(device, stream, engine, inputs), stream, LAYER_RUNS)
        ).done()
    finally:
        device.close()
    return {"layers": summed(times)}


def summed(times: dict[str, Sequence[float]]) -> dict[str, Any]:
    """Median of each layer; kinds are layers whose names differ in numbers alone."""
    medians = {layer: float(np.median(ms)) for layer, ms in times.items()}
    kinds: dict[str, list[float]] = defaultdict(list)
    for layer, ms in medians.items():
        kinds[kind_of(layer)].append(ms)
    by_kind = sorted(((sum(ms), kind, len(ms)) for kind, ms in kinds.items()), reverse=True)
    longest = sorted(medians, key=medians.__getitem__, reverse=True)[:TOP]
    return {
        "count": len(medians),
        "sum_ms": round(sum(medians.values()), 4),
        "top_kinds": [
            {"kind": kind, "layers": count, "ms": round(ms, 4)} for ms, kind, count in by_kind[:TOP]
        ],
        "top_layers": [{"layer": layer, "ms": round(medians[layer], 4)} for layer in longest],
    }


def kind_of(layer: str) -> str:
    """A layer's name without its numbers, so that equal layers of all blocks are one kind."""
    parts = "".join("#" if character.isdigit() else character for character in layer)
    while "##" in parts:
        parts = parts.replace("##", "#")
    return parts


def top_costs(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The kinds of layers that cost most, over the runs of a chunk."""
    costs = [
        {"run": run, **kind}
        for run, found in runs.items()
        if run.endswith("a chunk") and isinstance(found["layers"], dict)
        for kind in found["layers"]["top_kinds"]
    ]
    return sorted(costs, key=lambda cost: cost["ms"], reverse=True)[:TOP]


# ---- gaps


def spans_from(stream: VicortStream, first_chunk: int) -> dict[str, list[Span]]:
    """Spans by stage, of the chunks from `first_chunk` on."""
    found = {
        stage: [span for span in spans if span.chunk >= first_chunk]
        for stage, spans in stream.watch.spans.items()
    }
    return {stage: spans for stage, spans in found.items() if spans}


def gaps(spans: dict[str, list[Span]]) -> dict[str, Any]:
    """Share of the time in which each stage ran, and in which none did: then the device waited for
    the host."""
    everything = [span for each in spans.values() for span in each]
    start, end = min(span.start_ns for span in everything), max(span.end_ns for span in everything)
    wall = end - start
    between = {
        stage: [(b.start_ns - a.end_ns) / 1e6 for a, b in pairwise(each)]
        for stage, each in spans.items()
    }
    return {
        "wall_ms": round(wall / 1e6, 3),
        "busy_share": {stage: round(covered(each) / wall, 4) for stage, each in spans.items()},
        "idle_share": round(1 - covered(everything) / wall, 4),
        "gap_ms": {stage: spread(values) for stage, values in between.items() if values},
    }


def covered(spans: Sequence[Span]) -> int:
    """Nanoseconds in which at least one of the spans was open."""
    total, until = 0, 0
    for span in sorted(spans, key=lambda span: span.start_ns):
        total += max(0, span.end_ns - max(span.start_ns, until))
        until = max(until, span.end_ns)
    return total


def write_trace(stream: VicortStream, first_chunk: int, path: Path) -> None:
    """For https://ui.perfetto.dev."""
    trace = Trace()
    for stage, spans in spans_from(stream, first_chunk).items():
        for span in spans:
            trace.span(stage, stage, span.start_ns, span.end_ns, chunk=span.chunk)
    trace.write(path)
