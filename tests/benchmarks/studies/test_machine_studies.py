"""The studies of threads and of shared memory run, and their numbers fit together."""

from __future__ import annotations

import pytest
from support.engine_sets import any_size_set

from vicort.benchmarks.common.workload import Workload
from vicort.benchmarks.studies import thread_splits
from vicort.benchmarks.studies.shared_weights import at_once, weight_mb
from vicort.benchmarks.studies.thread_splits import splits_of


@pytest.mark.slow
def test_the_default_is_compared_with_the_fastest_split():
    found = splits_of(any_size_set("onnxruntime"), Workload(), warmup=1, chunks=1, rounds=3)
    medians = {way: each["median"] for way, each in found["ms a chunk"].items()}
    assert min(medians.values()) == medians[found["best"]] > 0
    assert found["default"] in medians
    assert found["against the best"]["n"] == 3
    assert found["default"] != found["best"] or found["against the best"]["max"] == 1


@pytest.mark.slow
def test_what_two_processes_share_counts_once():
    folder = any_size_set("onnxruntime")
    found = at_once(folder, 2)
    assert len(found["each"]) == 2
    for each in found["each"]:
        assert each["private_dirty"] + each["private_clean"] <= each["pss"] <= each["rss"]
        assert each["shared_clean"] > weight_mb(folder) > 0
    assert found["all, pss"] < sum(each["rss"] for each in found["each"])


@pytest.mark.parametrize("size", ["320", "0x180", "320x-1", "320x180x3"])
def test_a_size_that_is_none_is_refused_before_engines_are_opened(size, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["thread_splits", "missing", "--size", size])
    with pytest.raises(SystemExit) as end:
        thread_splits.main()
    assert end.value.code == 2
    assert f"{size!r}: give WIDTHxHEIGHT" in capsys.readouterr().err
