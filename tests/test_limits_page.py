"""The page on fixed limits has the numbers of the code."""

import re
from pathlib import Path

from vicort.runtime import answer_threads, answering, conversations, core, question_queue
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
}


def test_the_page_has_the_numbers_of_the_code() -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d,.]+) \|$", PAGE.read_text(), re.MULTILINE)
    found = {name: float(number.replace(",", "")) for name, number in rows}
    assert found == {name: float(number) for name, number in NUMBERS.items()}
