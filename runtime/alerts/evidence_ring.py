"""The newest frames of a stream, kept as evidence."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

QUALITY = 88  # of JPEG: text on labels stays legible
RAW_BYTES = 64_000_000  # ten frames of 1080p
JPEG_BYTES = 64_000_000  # a few hundred of them
HISTORY = Fraction(10)  # seconds: longer than an answer takes


class KeptFrame:
    """A frame with its picture, as it was or as JPEG. Not thread-safe, but for reading."""

    def __init__(self, at: Fraction, image: np.ndarray) -> None:
        """image: [height, width, 3] uint8 RGB, which nobody changes."""
        self.at = at  # seconds of the stream
        self.arrived = time.monotonic()
        self._image: np.ndarray | None = image
        self._jpeg: bytes | None = None

    @property
    def image(self) -> np.ndarray:
        kept = self._image
        return decoded(self._jpeg or b"") if kept is None else kept

    @property
    def raw_bytes(self) -> int:
        return 0 if self._image is None else self._image.nbytes

    @property
    def jpeg_bytes(self) -> int:
        return len(self._jpeg or b"")

    def compress(self) -> None:
        """Keep it as JPEG alone."""
        self._jpeg = self._jpeg or encoded(self.image)
        self._image = None


class EvidenceRing:
    """Keeps frames of the last `HISTORY` seconds, and what clips need before that, within a budget
    of bytes. Thread-safe.

    The newest ones stay as they are: most are never looked at. Beyond RAW_BYTES, those of 1080p
    after 5 seconds at 2 frames a second, the oldest are compressed, once each.
    """

    def __init__(self, history: Fraction = HISTORY, *, raw_bytes: int = RAW_BYTES) -> None:
        """history: seconds of the stream."""
        self._history = history
        self._raw_budget = raw_bytes
        self._frames: deque[KeptFrame] = deque()  # the newest one last
        self._lock = threading.Lock()

    def add(self, frame: KeptFrame) -> None:
        """Frames come in the order of their times; one that does not is left out."""
        with self._lock:
            frames = self._frames
            if frames and frame.at <= frames[-1].at:
                return
            frames.append(frame)
            while frames[0].at < frame.at - self._history:
                frames.popleft()
            self._compress()
            while sum(each.jpeg_bytes for each in frames) > JPEG_BYTES:
                frames.popleft()

    def newest_until(self, at: Fraction) -> KeptFrame | None:
        """The newest frame that is not after `at`, in seconds; None if it is not kept any more."""
        with self._lock:
            return next((each for each in reversed(self._frames) if each.at <= at), None)

    def since(self, at: Fraction) -> Sequence[KeptFrame]:
        """The frames from `at` on, in seconds, the oldest first."""
        with self._lock:
            return [each for each in self._frames if each.at >= at]

    def _compress(self) -> None:
        """Compress the oldest until the others fit; the newest one stays as it is."""
        raw = sum(each.raw_bytes for each in self._frames)
        for each in list(self._frames)[:-1]:
            if raw <= self._raw_budget:
                return
            raw -= each.raw_bytes
            each.compress()


def encoded(image: np.ndarray) -> bytes:
    """A JPEG file of a picture [height, width, 3] uint8 RGB."""
    from PIL import Image  # late: only alerts that fire need it

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def decoded(jpeg: bytes) -> np.ndarray:
    """[height, width, 3] uint8 RGB."""
    from PIL import Image  # late: as above

    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"))
