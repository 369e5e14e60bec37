"""First token at the same bytes: answers are compared in pairs."""

import numpy as np
import pytest

from vicort.benchmarks.evaluation import shapestream
from vicort.benchmarks.systems import same_bytes
from vicort.benchmarks.systems.twins import TWIN
from vicort.runtime.engines.engine_set import EngineSet


def test_what_all_pairs_share_is_not_in_the_difference():
    random = np.random.default_rng(3)
    machine = random.normal(0, 50, 400)  # ms, that both of a pair wait for
    found = same_bytes.median_with_interval(machine + 5 + random.normal(0, 1, 400) - machine)
    assert found["low"] < 5 < found["high"]
    assert found["median"] == pytest.approx(5, abs=0.3)
    assert found["high"] - found["low"] < 0.5


@pytest.mark.timeout(300)
def test_a_system_its_uniform_and_the_others_are_asked_the_same(
    tiny_engines, tmp_path, monkeypatch
):
    monkeypatch.setattr(same_bytes, "SYSTEMS", ("distinct",))
    monkeypatch.setattr(same_bytes, "OTHERS", ("simplestream",))
    with EngineSet.open(tiny_engines) as engines:
        video = shapestream.load(engines.manifest.model, 1, (20,), cache=tmp_path).videos[0]
        found = same_bytes.ask(engines, str(video.path), rounds=2)
    assert set(found) == {"distinct", TWIN + "distinct", "simplestream"}
    assert {len(answers) for answers in found.values()} == {2 * 7}
    assert [answer.question for answer in found["distinct"]] == [
        answer.question for answer in found[TWIN + "distinct"]
    ]
    row = same_bytes.row(found["distinct"], found[TWIN + "distinct"])
    assert row["answers"] == 14
    assert (
        row["more_than_its_uniform_ms"]["low"]
        <= row["more_than_its_uniform_ms"]["median"]
        <= row["more_than_its_uniform_ms"]["high"]
    )
    assert "more_than_its_uniform_ms" not in same_bytes.row(found["simplestream"], None)
