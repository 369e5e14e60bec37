"""What a full memory still knows: what is shown and counted, and a quick run."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from vicort.benchmarks.studies import full_memory
from vicort.benchmarks.studies.full_memory import CUTS, NOTHING, Answered, among_cuts, table


def test_answers_are_counted_by_kind_rule_and_age():
    found = [Answered(CUTS, "drop-alike", seed, 8, seed > 0) for seed in range(4)]
    found.append(Answered(CUTS, "drop-oldest", 0, 8, False))
    counted = table(found)[CUTS]
    assert counted["drop-oldest"]["8"]["right"] == 0
    assert (counted["drop-alike"]["8"]["right"], counted["drop-alike"]["8"]["asked"]) == (3, 4)
    assert counted["drop-alike"]["8"]["low"] < 0.75 < counted["drop-alike"]["8"]["high"]


def test_things_are_shown_between_scenes_that_change(monkeypatch):
    monkeypatch.setattr(full_memory, "BEFORE", 20.0)
    shown = among_cuts(3, 20.0)
    pictures = [shown.picture(time).astype(int) for time in np.arange(0, shown.gone + 20, 0.5)]
    changes = [np.abs(one - other).mean() > 8 for one, other in pairwise(pictures)]
    before, after = changes[:39], changes[int(2 * shown.gone) + 1 :]
    assert min(sum(before), sum(after)) >= 20 / max(full_memory.SCENE) - 1
    thing = shown.things[0]
    there = shown.picture(20.0 + (thing.start + thing.end) / 2)
    assert np.abs(there - shown.picture(20.0 + thing.start - 0.01).astype(int)).max() > 40


@pytest.mark.parametrize("kind", [NOTHING, CUTS])
def test_a_quick_run_leaves_a_whole_result(kind, tiny_engines, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(full_memory, "BEFORE", 10.0)
    monkeypatch.setattr(full_memory, "AGES", {kind: (0, 8)})
    out = tmp_path / "result.json"
    options = ["--engine-dir", str(tiny_engines), "--streams", "1", "--out", str(out)]
    assert full_memory.main([*options, "--kind", kind]) == 0
    right = json.loads(out.read_text())["right"][kind]
    for rule in full_memory.RULES:
        assert [right[rule][age]["asked"] for age in ("0", "8")] == [7, 7]
        assert right[rule]["0"]["right"] >= 5
