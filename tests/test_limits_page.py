"""The page on fixed limits has the numbers of the code."""

import re
from pathlib import Path

from vicort.runtime import answer_threads, answering, conversations, core, question_queue
from vicort.runtime.alerts import (
    alert_file,
    back_off,
    clip_recorder,
    command,
    courier,
    delivery,
    evidence_ring,
    outbox,
    polygon,
    seldom,
    spool,
    targets,
)
from vicort.runtime.cli import lag, question_socket, questions, recurring, socket_client, watch
from vicort.runtime.rendering import canvas, notes, screens
from vicort.runtime.sources import (
    animated_webp,
    clock,
    container,
    live,
    opening,
    piped,
    pixel_shape,
)
from vicort.runtime.stages import lag_policy

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
NUMBERS = {
    "bytes of an alert file": alert_file.MAX_BYTES,
    "streams of an alert file": alert_file.MAX_STREAMS,
    "alerts of a file": alert_file.MAX_ALERTS,
    "choices of an alert": alert_file.MAX_CHOICES,
    "targets of an alert": alert_file.MAX_TARGETS,
    "zones of a stream, and its privacy masks": alert_file.MAX_POLYGONS,
    "points of a polygon": polygon.MAX_POINTS,
    "seconds from one asking of an alert to the next, at least": alert_file.LEAST_PERIOD,
    "seconds of a clip before the evidence, and after it": alert_file.MAX_CLIP,
    "clips of a stream that are recorded or written at a time": clip_recorder.MAX_CLIPS,
    "bytes of the frames of a clip, as JPEG; it ends there": clip_recorder.CLIP_BYTES,
    "bytes of frames of clips that wait to be compressed, of each stream": (
        clip_recorder.WAITING_BYTES
    ),
    "seconds that frames are kept as evidence, besides those of clips": evidence_ring.HISTORY,
    "bytes of frames that are kept as they are, of each stream": evidence_ring.RAW_BYTES,
    "bytes of frames that are kept as JPEG, of each stream": evidence_ring.JPEG_BYTES,
    "pixels of a side": canvas.MAX_SIDE,
    "letters of a question and of an answer": notes.MAX_LETTERS,
    "seconds that an answer is shown, if it is read in them": screens.STAYS,
    "seconds that an answer stays beside the next one": screens.NOTICED,
    "letters that are read in a second": screens.LETTERS_A_SECOND,
    "characters of a line with a question": questions.MAX_LINE,
    "bytes of a questions file": questions.MAX_FILE_BYTES,
    "digits of a time in a questions file": questions.MAX_DIGITS,
    "characters of an id or of a conversation's name": answering.MAX_NAME,
    "questions of a session that are not answered yet (`max_questions`)": (
        question_queue.MAX_OPEN_QUESTIONS
    ),
    "answers of a session at a time": answer_threads.ANSWERS_AT_ONCE,
    "seconds of the stream after which a conversation is forgotten": conversations.FORGOTTEN_AFTER,
    "seconds between two questions of `--until` without a period": recurring.UNTIL_SECONDS,
    "seconds that a terminal is waited for after the last frame": watch.TYPED_SECONDS,
    "clients at a time": question_socket.MAX_CLIENTS,
    "seconds without a question after which a client makes room for another one": (
        question_socket.SPARED_SECONDS
    ),
    "seconds without a question after which a client is disconnected": socket_client.IDLE_SECONDS,
    "questions of a client that wait for their time": socket_client.MAX_TIMED,
    "seconds that a question waits for its time": socket_client.WAITING_SECONDS,
    "bytes of the socket's path": question_socket.MAX_PATH_BYTES,
    "entries of a folder or a pattern": opening.MAX_ENTRIES,
    "seconds that a live clock may jump ahead before the wall clock counts": live.JUMP,
    "seconds that timestamps of MPEG-TS and HLS may jump ahead; more is no gap": (clock.JUMP),
    "seconds that timestamps may fall back before it counts as a reset": clock.RESET,
    "seconds that a file may be shorter than it declares": container.SLACK,
    "pixels of the variant of an HLS stream that is taken": container.VARIANT_PIXELS,
    "bytes of stdin without a picture": piped.MAX_BYTES_WITHOUT_PICTURE,
    "width of a pixel over its height, or the other way round": pixel_shape.MOST,
    "warnings that a live source keeps": live.MAX_WARNINGS,
    "seconds of a frame's time": core.MAX_SECONDS,
    "chunks of a live source that wait before the oldest is dropped": lag_policy.MAX_WAITING,
    "seconds after which a frame of a live source counts as late": lag.LATE,
    "bytes of one encoded picture of an animated WebP": animated_webp.MAX_BYTES,
    "tries of a message that its receiver refuses": courier.MAX_REFUSED,
    "seconds between two tries, unless the receiver asks for more": back_off.BackOff().most,
    "seconds that a receiver may ask for by `Retry-After`": back_off.MAX_RETRY_AFTER,
    "seconds of a target's `timeout`": targets.MAX_TIMEOUT,
    "bytes of a command's output that are logged": command.MAX_OUTPUT,
    "bytes that are counted for a message besides its content": outbox.OVERHEAD,
    "bytes of the spool's write-ahead log from which on it is copied": spool.MAX_LOG,
    "bytes of the smallest budget of a spool": delivery.LEAST_BYTES,
    "seconds between two warnings of one kind": seldom.EVERY,
}


def test_the_page_has_the_numbers_of_the_code() -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d,.]+) \|$", PAGE.read_text(), re.MULTILINE)
    found = {name: float(number.replace(",", "")) for name, number in rows}
    assert found == {name: float(number) for name, number in NUMBERS.items()}
