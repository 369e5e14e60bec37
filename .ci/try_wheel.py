"""Installs dist/*.whl in a new environment away from the repository, and uses it as a user would.

    python .ci/try_wheel.py

The packages that vicort needs are not downloaded again: the new environment finds those of the one
that runs this script, but for vicort itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "build", "info", "engines", "bench", "eval")
# a clip of the embedded model's world, and what is to be seen in it at the end
CLIP = """
import sys
from vicort.export.tiny.video import write_video
from vicort.export.tiny.world import make_stream
stream = make_stream(seed=5, objects=3)
write_video(sys.argv[1], stream, (224, 224))
"""


def main() -> int:
    (wheel,) = (ROOT / "dist").glob("vicort-*.whl")
    check_content(wheel)
    with tempfile.TemporaryDirectory(prefix="vicort wheel é ") as folder:
        here = Path(folder)
        python = installed(wheel, here / "env")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(here / "home"),
            "LANG": "C.UTF-8",
        }
        code = "import vicort.runtime.core as module; print(module.__file__)"
        where = output_of(python, here, environment, "-c", code).strip()
        if not Path(where).is_relative_to(here):
            raise SystemExit(f"the wheel was not used, but {where}")
        for name in COMMANDS:
            output_of(python.with_name(f"vicort-{name}"), here, environment, "--help")
        clip = here / "clip.mp4"
        output_of(python, here, environment, "-c", CLIP, str(clip))
        answers = output_of(
            *(python.with_name("vicort-run"), here, environment, str(clip)),
            *("--ask", "what is there now?", "--format", "jsonl"),
        )
        events = [json.loads(line) for line in answers.splitlines()]
        (answer,) = [event for event in events if event["event"] == "answer"]
        if not answer["text"]:
            raise SystemExit(f"the wheel gave no answer: {answers}")
        print(f"{wheel.name}: installed, and asked about a clip: {answer['text']!r}")
        if (here / "home").exists():
            raise SystemExit(f"a run wrote to the home folder: {list((here / 'home').rglob('*'))}")
    return 0


def check_content(wheel: Path) -> None:
    """Every module of the repository, the license, and the embedded model's engines."""
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"vicort/{path.relative_to(ROOT)}"
        for room in ("benchmarks", "configs", "export", "runtime")
        for path in (ROOT / room).rglob("*.py")
    }
    wanted.add("vicort/engines/tiny-fp32-openvino/manifest.json")
    missing = wanted - held
    if not any(name.endswith("/licenses/LICENSE") for name in held):
        missing.add("LICENSE")
    if missing:
        raise SystemExit(f"{wheel.name} lacks {', '.join(sorted(missing))}")


def installed(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel in it."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # a line of a .pth file is a folder on the path: .pth files in it, as of an editable vicort,
    # are not read
    Path(own, "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, cwd=folder)
    return python


def output_of(program: Path, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """What a program of the new environment prints. Ends this script if it fails."""
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{program.name} {' '.join(arguments)[:80]} failed: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
