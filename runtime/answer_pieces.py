"""The pieces of an answer, on their way from the session's threads to an event loop."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class AnswerPieces:
    """A queue that any thread fills and one coroutine empties."""

    def __init__(self) -> None:
        """Call it in the coroutine that waits for the pieces."""
        import asyncio  # late: it takes as long as half of NumPy

        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | Future] = asyncio.Queue()

    def put(self, piece: str | Future) -> None:
        """piece: of the text, or the future that is done after the last one."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def get(self) -> str | Future:
        """Wait for the next piece, or for the future."""
        return await self._pieces.get()
