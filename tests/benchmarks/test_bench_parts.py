"""The pieces of vicort-bench, each against something independent."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples
from torch.utils.flop_counter import FlopCounterMode

from vicort.benchmarks import bench
from vicort.benchmarks.common import overlap
from vicort.benchmarks.common.checkpoints import TINY, read_json
from vicort.benchmarks.common.long_stream import _starts
from vicort.benchmarks.common.settings import QUICK, Settings
from vicort.benchmarks.common.spread import interleaved, percentiles, spread
from vicort.benchmarks.common.transformers_stream import (
    TransformersStream,
    Variant,
    kept_tokens,
    letterbox,
)
from vicort.benchmarks.common.workload import CHUNK_FRAMES, Workload, bench_system
from vicort.benchmarks.cpu import arithmetic
from vicort.benchmarks.cpu.report import _transformers
from vicort.runtime.policies.drop import ChunkIntra, KeepAll

SIDE = 112
QUESTION = "what color was the circle?"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def baseline(system, **variant) -> TransformersStream:
    return TransformersStream(TINY, system, Variant(**variant), SIDE, SIDE)


def chunk(number: int, frames: int = CHUNK_FRAMES):
    return Workload(SIDE, SIDE).frames(number * CHUNK_FRAMES, frames)


def test_nothing_measured_is_never_reported():
    for statistic in (spread, percentiles):
        with pytest.raises(ValueError, match="no values"):
            statistic([])


def test_candidates_take_turns_in_both_orders():
    calls = []
    results = interleaved(
        {name: lambda n=name: calls.append(n) or float(len(calls)) for name in "ab"}, 2
    )
    assert calls == ["a", "b", "b", "a"]
    assert results == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_gain_is_against_the_best_sequential_split():
    ms = {
        "sequential 1t": [10.0, 10.0],
        "sequential 2t": [8.0, 8.0],
        "overlapped 1t": [5.0, 5.0],
        "overlapped 2t": [6.0, 6.0],
    }
    compared = overlap.compare(ms)
    assert (compared["best_sequential"], compared["best_overlapped"], compared["gain"]) == (
        "sequential 2t",
        "overlapped 1t",
        1.6,
    )


def test_points_of_a_long_stream():
    assert _starts(2100) == [10, 950, 2000]
    assert _starts(QUICK.long_chunks) == [10, 110]


def test_vision_operations_equal_those_that_torch_counts():
    stream = baseline(bench_system(), attention="eager")
    patches = stream.preprocess(chunk(0))
    with FlopCounterMode(display=False) as counter:
        stream.encode(patches)
    counted = arithmetic.count(
        read_json(TINY / "config.json"), SIDE, SIDE, units=8, rows=1, window_rows=0, prompt_rows=0
    )
    assert counter.get_total_flops() == counted.vision


def test_prefill_operations_equal_those_that_torch_counts():
    stream = baseline(bench_system(), attention="eager")
    for number in range(2):
        stream.push(chunk(number))
    features = stream.encode(stream.preprocess(chunk(2)))
    kept = stream.choose(features)
    rows = len(kept)
    with FlopCounterMode(display=False) as counter:
        stream.ingest(features, kept, [frame.time for frame in chunk(2)[::2]])
    config = read_json(TINY / "config.json")
    text = config["text_config"]
    counted = arithmetic.count(
        config,
        SIDE,
        SIDE,
        units=8,
        rows=rows,
        window_rows=2 * rows,
        prompt_rows=stream._prompt_tokens,
    )
    # torch multiplies the masked half of the chunk's own square too, and the baseline computes no
    # logits while ingesting
    masked_half = 4 * rows * text["num_hidden_layers"] * text["hidden_size"] * (rows - 1) / 2
    assert (
        counter.get_total_flops()
        == counted.prefill + masked_half - 2 * text["hidden_size"] * text["vocab_size"]
    )


@given(st.integers(1, 5), st.integers(1, 6), st.floats(-1, 1), st.integers(0, 2**31))
@settings(max_examples=examples(40))
def test_kept_tokens_follow_the_plain_rule(units, tokens, threshold, seed):
    features = np.random.default_rng(seed).standard_normal((units, tokens, 3)).astype(np.float32)
    norm = features / np.linalg.norm(features, axis=-1, keepdims=True)
    cosines = (norm[:-1] * norm[1:]).sum(-1)
    if np.abs(cosines - threshold).min(initial=1) < 1e-5:
        return  # a tie that rounding decides
    expected = [
        u * tokens + p
        for u in range(units)
        for p in range(tokens)
        if u == 0 or (cosines[:, p] < threshold).any()
    ]
    drop = ChunkIntra(threshold=threshold, keep=None)
    assert kept_tokens(torch.from_numpy(features), drop, units, tokens).tolist() == expected


def test_nothing_is_dropped_without_a_drop():
    assert kept_tokens(torch.rand(2, 3, 4), KeepAll(), 2, 3).tolist() == list(range(6))


def test_letterbox_is_centred_with_black_bars():
    boxed = letterbox(np.full((50, 100, 3), 255, np.uint8), 112, 112)
    assert boxed[:28].max() == boxed[84:].max() == 0
    assert boxed[28:84].min() == 255


def test_streamed_in_chunks_equals_one_pass_of_transformers():
    """Full history, nothing dropped: the baseline's cache and positions against a single forward of
    the whole transcript."""
    stream = baseline(bench_system("full-history"))
    chunks = [chunk(0), chunk(1), chunk(2, 6)]
    for frames in chunks:
        stream.push(frames)
    reply = stream.ask(QUESTION, 2)
    features = torch.cat(
        [stream.encode(stream.preprocess(frames)).flatten(0, 1) for frames in chunks]
    )
    before, after = stream._render(QUESTION).split(stream._video_token)
    ids = [stream.tokenizer(text, add_special_tokens=False).input_ids for text in (before, after)]
    n, vision = len(ids[0]), len(features)
    # one step a second
    times = [int(frame.time - Fraction(0)) for frames in chunks for frame in frames[::2]]
    grid = torch.tensor([[n + t, n + p // 4, n + p % 4] for t in times for p in range(16)]).T
    text = torch.arange(len(ids[1])) + int(grid.max()) + 1
    positions = torch.cat([torch.arange(n).expand(3, -1), grid, text.expand(3, -1)], 1)
    embed = stream.model.get_input_embeddings()
    rows = torch.cat([embed(torch.tensor(ids[0])), features, embed(torch.tensor(ids[1]))])
    with torch.inference_mode():
        logits = stream.model(
            inputs_embeds=rows[None], position_ids=positions[:, None], use_cache=False
        ).logits[0, -1]
    assert len(rows) == n + vision + len(ids[1])
    np.testing.assert_allclose(reply.logits[0], logits.numpy(), atol=2e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_transformers_runs_its_head_once_for_each_token(length, monkeypatch):
    """As vicort does: without an end token, an answer of two tokens has two rows of logits."""
    stream = baseline(bench_system())
    stream.push(chunk(0))
    monkeypatch.setattr(stream, "_ends", lambda: ())
    reply = stream.ask(QUESTION, length)
    assert len(reply.tokens) == len(reply.logits) == length


def test_logits_of_another_number_are_said():
    parts = json.loads((Path(bench.__file__).parent / "results" / "bench.json").read_text())[
        "parts"
    ]
    part = parts["transformers-medium"]
    part["same_job"]["largest_logit_difference"] = 1.1e-05
    assert "logits 1.1e-05 apart at most" in list(_transformers(part))[1]
    part["same_job"]["largest_logit_difference"] = None
    assert "logits of another number" in list(_transformers(part))[1]


def test_a_clip_asked_about_at_once_equals_the_same_streamed():
    system = bench_system("full-history")
    frames = [frame for number in range(2) for frame in chunk(number)]
    at_once = baseline(system).ask_about(frames, QUESTION, 3)
    stream = baseline(system)
    stream.push(frames)
    streamed = stream.ask(QUESTION, 3)
    assert at_once.tokens == streamed.tokens
    np.testing.assert_allclose(at_once.logits, streamed.logits, atol=2e-5)
    assert at_once.ttft_ms > streamed.ttft_ms  # it includes the clip


def test_batched_windows_change_nothing():
    patches = baseline(bench_system()).preprocess(chunk(0, 4))
    plain, batched = (
        baseline(bench_system(), batched_windows=flag).encode(patches) for flag in (False, True)
    )
    np.testing.assert_allclose(plain.numpy(), batched.numpy(), atol=2e-5)


def test_machine_part_measures_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "in_child", lambda part, *arguments: part(*arguments))
    small = Settings(matrix_size=64, matrix_repeats=2, copy_mb=1)
    result = bench.run(["machine"], tmp_path, small, quick=True, out=tmp_path / "part.json")
    for key in ("date", "cpu", "cores", "matrix_flags", "python", "libraries"):
        assert result["conditions"][key]
    rates = result["parts"]["machine"]["torch"]
    assert {key.split()[0] for key in rates} == {"fp32", "bf16"}
    assert all(
        0 < rate["min"] <= rate["median"] <= rate["max"] and rate["n"] == 2
        for rate in rates.values()
    )
    json.dumps(result)


def test_unknown_part_is_one_line_and_an_exit_code(capsys):
    assert bench.main(["--only", "nothing"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "nothing" in message
    assert "overlap" in message


def test_a_part_measured_again_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "in_child", lambda part, *arguments: {"measures": part.__name__})

    def run(**amounts):
        settings = Settings(matrix_size=64, **amounts)
        return bench.run(["machine"], tmp_path, settings, quick=True, out=out)["parts"]

    out = tmp_path / "part.json"
    first = run()["machine"]
    assert first["measures"] == "machine"
    kept = json.loads(out.read_text())
    kept["parts"]["overlap"] = {"kept": True}
    out.write_text(json.dumps(kept))
    again = run()
    assert again["overlap"] == {"kept": True}
    assert again["machine"]["measured"]["date"] >= first["measured"]["date"]
    assert set(run(matrix_repeats=3)) == {"machine"}  # other settings: not comparable
