"""Small files that once failed, each read again and answered about."""

import shutil
from pathlib import Path

import pytest
from fuzzing.fuzz import MAX_PROGRAM_BYTES
from fuzzing.fuzz_child import tried
from fuzzing.through_engines import EngineTrials
from support.tiny_sets import tiny_set

CORPUS = Path(__file__).parent / "corpus"
MAX_FILE = 4_096  # bytes
MAX_READING = 600_000_000  # bytes of memory for a file of the corpus


def rows() -> list[tuple[str, str, str]]:
    """Name, kind and outcome of each file."""
    lines = (CORPUS / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return [(name, kind, end) for name, kind, end, _ in cells[2:]]


ROWS = rows()


def test_each_file_of_the_corpus_is_small_and_listed() -> None:
    files = {path.name: path.stat().st_size for path in CORPUS.iterdir()}
    del files["README.md"]
    assert sorted(files) == sorted(name for name, _, _ in ROWS)
    assert max(files.values()) < MAX_FILE


def placed(name: str, kind: str, folder: Path) -> Path:
    """A copy under the name that its reader expects."""
    path = folder / ("tokenizer.json" if kind == "prompt" else name)
    shutil.copy(CORPUS / name, path)
    return path


@pytest.mark.parametrize(("name", "kind", "_"), ROWS, ids=[name for name, _, _ in ROWS])
def test_a_file_of_the_corpus_is_read_within_limits(tmp_path: Path, name, kind, _) -> None:
    outcome = tried(placed(name, kind, tmp_path), kind, seconds=60, max_bytes=MAX_READING)
    assert not outcome.bad, outcome  # one that breaks off is refused here and answered about below


def test_files_of_the_corpus_are_answered_about_or_refused(tmp_path: Path) -> None:
    with EngineTrials(tiny_set(), tmp_path) as trials:
        for name, kind, end in ROWS:
            path = placed(name, kind, tmp_path)
            outcome = trials.tried(path, kind, seconds=60, max_bytes=MAX_PROGRAM_BYTES)
            assert outcome.kind == end, (name, outcome)


def test_a_worker_that_hangs_is_a_fault_and_is_replaced(tmp_path: Path) -> None:
    name, kind, _ = ROWS[0]
    path = placed(name, kind, tmp_path)
    with EngineTrials(tiny_set(), tmp_path) as trials:
        ends = [
            trials.tried(path, kind, seconds=limit, max_bytes=most)
            for limit, most in ((0, MAX_PROGRAM_BYTES), (60, -1))
        ]
    assert [end.kind for end in ends] == ["hang", "memory"]
