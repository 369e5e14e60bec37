"""What is kept as evidence: a ring of frames within bytes, and a folder within bytes."""

import os
import stat
import threading
from fractions import Fraction

import numpy as np
import pytest

from vicort.runtime.alerts import clip_recorder, evidence_ring
from vicort.runtime.alerts.clip_recorder import ClipRecorder
from vicort.runtime.alerts.evidence_folder import EvidenceFolder
from vicort.runtime.alerts.evidence_ring import EvidenceRing, KeptFrame
from vicort.runtime.errors import ConfigError

SIZE = (24, 32, 3)
RAW = 24 * 32 * 3


def kept(number, fps=1):
    return KeptFrame(Fraction(number, fps), np.full(SIZE, number % 200, np.uint8))


def test_the_newest_frames_stay_as_they_are_and_older_ones_become_jpeg():
    ring = EvidenceRing(Fraction(10), raw_bytes=4 * RAW)
    frames = [kept(number) for number in range(30)]
    for frame in frames:
        ring.add(frame)
    found = ring.since(Fraction(0))
    assert [frame.at for frame in found] == list(range(19, 30))
    assert [frame.raw_bytes for frame in found] == [0] * 7 + [RAW] * 4
    assert all(frame.jpeg_bytes > 0 for frame in found[:7])
    for number, frame in enumerate(found, 19):
        assert abs(frame.image.astype(int) - number).max() <= 2


def test_the_newest_frame_until_a_time():
    ring = EvidenceRing(Fraction(3))
    for number in range(8):
        ring.add(kept(number))
    assert ring.newest_until(Fraction(13, 2)).at == 6
    assert ring.newest_until(Fraction(7)).at == 7
    assert ring.newest_until(Fraction(3)) is None, "it is not kept any more"
    assert [frame.at for frame in ring.since(Fraction(6))] == [6, 7]


def test_a_frame_that_comes_late_is_left_out():
    ring = EvidenceRing()
    for number in (3, 2, 3, 4):
        ring.add(kept(number))
    assert [frame.at for frame in ring.since(Fraction(0))] == [3, 4]


def test_jpeg_has_a_budget_too(monkeypatch):
    monkeypatch.setattr(evidence_ring, "JPEG_BYTES", 3000)
    ring = EvidenceRing(Fraction(100), raw_bytes=RAW)
    for number in range(50):
        ring.add(kept(number))
    found = ring.since(Fraction(0))
    assert sum(frame.jpeg_bytes for frame in found) <= 3000
    assert 2 < len(found) < 50


def test_the_oldest_files_of_a_full_folder_are_removed(tmp_path):
    folder = EvidenceFolder(tmp_path, 0.003)
    (tmp_path / "mine.jpg").write_bytes(bytes(9000))
    names = []
    for number in range(5):
        path = folder.name("front", "parcel", f"{number:08x}", "jpg")
        folder.write(path, bytes(1000))
        os.utime(path, (number, number))
        names.append(path.name)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == sorted([*names[2:], "mine.jpg"])
    assert folder.removed == 2
    folder.write(folder.name("front", "parcel", "f" * 8, "mp4"), bytes(9000))
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".jpg", ".mp4"], "the newest"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the evidence folder .* cannot be made"):
        EvidenceFolder(tmp_path / "file" / "folder", 1)


def test_the_folder_and_what_is_in_it_are_for_their_owner(tmp_path):
    folder = EvidenceFolder(tmp_path / "evidence", 1)
    path = folder.name("front", "parcel", "0" * 8, "jpg")
    folder.write(path, b"picture")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture
def written(monkeypatch):
    """Clips that are written once the event is set."""
    clips, go = {}, threading.Event()

    def write(path, frames):
        go.wait(20)
        clips[path.name] = [frame.at for frame in frames]

    monkeypatch.setattr(clip_recorder, "write_clip", write)
    return clips, go


def test_clips_count_until_they_are_written(tmp_path, written, monkeypatch):
    monkeypatch.setattr(clip_recorder, "MAX_CLIPS", 2)
    clips, go = written
    recorder = ClipRecorder(EvidenceFolder(tmp_path, 1), print)
    for number in range(4):
        started = recorder.start(tmp_path / str(number), [kept(number)], Fraction(number))
        assert started == (number < 2)
        recorder.add(kept(number + 1))  # it ends there
    go.set()
    recorder.close()
    assert clips == {"0": [0], "1": [1]}


def test_a_clip_ends_at_its_bytes(tmp_path, written, monkeypatch):
    monkeypatch.setattr(clip_recorder, "CLIP_BYTES", 2000)
    monkeypatch.setattr(clip_recorder, "WAITING_BYTES", 0)
    clips, go = written
    go.set()
    warnings = []
    recorder = ClipRecorder(EvidenceFolder(tmp_path, 1), warnings.append)
    recorder.start(tmp_path / "a", [kept(0)], Fraction(100))
    for number in range(1, 50):
        recorder.add(kept(number))
        recorder._writer.submit(int).result()  # what was submitted before is done
    recorder.close()
    assert 1 < len(clips["a"]) < 10
    assert len(warnings) == 1
    assert "ends early" in warnings[0]
