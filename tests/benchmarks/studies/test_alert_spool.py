"""The study of the spool runs, and its numbers fit together."""

from vicort.benchmarks.studies.alert_spool import RECEIVERS, measured, quantiles


def test_both_receivers_are_measured(tmp_path):
    for receiver in RECEIVERS.values():
        for each in measured(tmp_path, receiver, 1000, 3).values():
            assert 0 < each["p50"] <= each["p99"] <= each["max"]
    assert list(tmp_path.iterdir()) == []


def test_quantiles_are_those_of_the_ranks():
    assert quantiles([number / 1000 for number in range(200)]) == {
        "p50": 100.0,
        "p99": 198.0,
        "max": 199.0,
    }
