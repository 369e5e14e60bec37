"""Which code makes graphs and plans: a set built by other code is not up to date.

    python -m vicort.export.exporter_version

prints the hash that the manifests of its sets have. It needs no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def exporter_hash() -> str:
    """Hash of the code that makes graphs and plans. A set built by other code is not up to date,
    even if the version is the same."""
    room = Path(__file__).parent
    # the plugin's workspace is part of a plan
    plugin = [room.parent / "runtime" / name for name in ("kernels.py", "engines/tensorrt.py")]
    digest = hashlib.sha256()
    for path in sorted(
        [*room.glob("*.py"), *room.glob("qwen2_5_vl/*.py"), *room.glob("kernels/*.py"), *plugin]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    print(exporter_hash())
