"""OpenVINO GenAI's run of the clip: VLMPipeline takes all frames with the question."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vicort.benchmarks.real_size.clip_job import (
    ANSWER_TOKENS,
    QUESTION,
    ClipJob,
    RunTimes,
    read_files,
    resized,
)
from vicort.benchmarks.real_size.process_memory import MemoryPeak
from vicort.runtime.core import UNIT_FRAMES
from vicort.runtime.telemetry import without_telemetry


def run_genai(job: ClipJob, folder: Path) -> dict[str, Any]:
    """Its own defaults, but for the threads and greedy choice."""
    with without_telemetry():
        import openvino  # both late: other contenders do without them
        import openvino_genai

    frames = job.frames()
    read_files(folder)
    moments: list[float] = []

    class TokenTimes(openvino_genai.StreamerBase):
        def write(self, token: Any) -> Any:
            moments.append(time.perf_counter())
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos = ANSWER_TOKENS, False, True
    with MemoryPeak() as memory:
        start = time.perf_counter()
        pipeline = openvino_genai.VLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=job.threads)
        opened = memory.note_loaded()
        came = time.perf_counter()
        images = np.stack([frame.image for frame in resized(frames, job.size)])
        result = pipeline.generate(
            QUESTION,
            videos=[openvino.Tensor(images)],
            generation_config=config,
            streamer=TokenTimes(),
        )
    times = RunTimes(
        load=opened - start,
        streamed_frames=0,
        streaming=0,
        first_token=moments[0] - came,
        answer=moments[-1] - came,
        later_tokens=len(moments) - 1,
    )
    tokens = len(frames) // UNIT_FRAMES * job.unit_tokens
    return {
        **times.report(),
        **memory.report(),
        "frames": len(frames),
        "tokens": tokens,
        "kept": tokens,
        "input_tokens": result.perf_metrics.get_num_input_tokens(),  # with those of the text
    }
