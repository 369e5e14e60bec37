"""Systems for tests, as YAML that changes a word or two."""

from vicort.runtime.policies.system import System, parse_system


def system(
    drop: str = "{policy: none}",
    ingest: str = "{policy: recent-chunks, chunks: 2}",
    retrieval: str = "{policy: similar-chunks, top: 2, recent: 1}",
    memory: str = "{device_mb: 1, when_full: drop-oldest}",
) -> System:
    return parse_system(
        f"name: test\ndrop: {drop}\ningest: {ingest}\nretrieval: {retrieval}\nmemory: {memory}",
        "test.yaml",
    )


FULL = {
    "ingest": "{policy: all}",
    "retrieval": "{policy: all}",
    "memory": "{device_mb: 4, when_full: refuse}",
}


SYSTEMS = {
    "full": system(**FULL),
    "dropping": system(drop="{policy: chunk-intra, threshold: 0.2}"),
    "ratio": system(drop="{policy: chunk-intra, keep: 0.5}"),
    "spilling": system(memory="{device_mb: 0.92, host_mb: 0.02, when_full: drop-oldest}"),
    "even": system(
        retrieval="{policy: even-units, units: 3}",
        memory="{device_mb: 0.92, when_full: thin-evenly}",
    ),
    "latest": system(ingest="{policy: latest-units, units: 2}", retrieval="{policy: all}"),
}
