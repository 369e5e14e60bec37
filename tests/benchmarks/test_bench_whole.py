"""vicort-bench with engines: both sides do the same job, and a quick run leaves a whole result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vicort.benchmarks import bench
from vicort.benchmarks.common.engine_sets import tiny_model
from vicort.benchmarks.common.workload import QUESTIONS, bench_system
from vicort.benchmarks.cpu.against_transformers import check_same_job

CACHE = Path(__file__).parents[2] / "build" / "bench"


@pytest.mark.slow  # every run of the benchmark checks it first
def test_both_sides_do_the_same_job(build_tiny):
    """Kept tokens, answers and logits of a session on engines against transformers' own class."""
    cache = build_tiny("openvino").parent  # where it finds the set
    same = check_same_job(tiny_model(), cache, bench_system(), chunks=3)
    assert same["kept_tokens_equal"]
    assert same["answers_equal"]
    assert len(same["answers"]) == len(QUESTIONS)
    assert len(set(same["kept_a_chunk"])) == 1  # fixed ratio: equal work at every precision
    assert same["logits_compared"] >= len(QUESTIONS)
    assert same["largest_logit_difference"] < 1e-3 * same["logit_deviation"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_run_writes_json_table_and_picture(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert bench.main(["--quick", "--out", str(out), "--cache", str(CACHE)]) == 0
    result = json.loads(out.read_text())
    assert set(result["parts"]) == set(bench.ALL) - {"transformers-medium"}
    assert result["parts"]["overlap"]["from_memory"]["gain"] > 0
    assert result["parts"]["long-stream"]["points"][0]["ms_between_chunks"]["n"] > 50
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "GFLOP/s" in capsys.readouterr().out
