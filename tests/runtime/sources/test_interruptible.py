"""Ctrl-C while FFmpeg reads or writes a file: it is raised, once FFmpeg has returned."""

import io

import av
import pytest
from support import videos

from vicort.runtime.sources.interruptible import InterruptibleFile


class Interrupting(io.BytesIO):
    """Raises KeyboardInterrupt in one call, and counts those after it."""

    def __init__(self, content=b"", calls=1):
        super().__init__(content)
        self.left, self.later = calls, 0

    def _count(self):
        self.left -= 1
        self.later += self.left < 0
        if self.left == 0:
            raise KeyboardInterrupt

    def read(self, size=-1):
        self._count()
        return super().read(size)

    def write(self, data):
        self._count()
        return super().write(data)


def read_all(kept):
    with kept.interruptible(), av.open(kept) as container:
        return len(list(container.decode(video=0)))


def write_all(kept):
    with kept.interruptible():
        output = av.open(kept, "w", format="mp4")
        track = output.add_stream("libx264", rate=25, options={"bf": "0"})
        track.width, track.height = 64, 64
        output.mux(track.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(track.encode())
        output.close()


@pytest.mark.parametrize("calls", [1, 3])
def test_while_it_is_read(calls):
    content = io.BytesIO()
    videos.write_video(content, 50, container="nut", noise=True)
    file = Interrupting(content.getvalue(), calls)
    with pytest.raises(KeyboardInterrupt):
        read_all(InterruptibleFile(file))
    assert file.later == 0


def test_while_it_is_written():
    file = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        write_all(InterruptibleFile(file))
    assert file.later == 0


def test_nothing_changes_without_one():
    content = io.BytesIO()
    write_all(InterruptibleFile(content))
    assert read_all(InterruptibleFile(io.BytesIO(content.getvalue()))) == 1
