"""`python -m vicort.export.kernels.compile_worker DESCRIPTOR`: compiles the kernels that
vicort.export.kernels.compile asks for, one at a time.

DESCRIPTOR is one end of a `multiprocessing.Pipe`: pairs of a KernelSpec and a Task come from it
until it is closed, and each is answered with a Built or a VicortError.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from vicort.export.kernels.compile_task import Built, compile_task
from vicort.runtime.errors import VicortError


def main(descriptor: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its workers
    with Connection(descriptor) as parent:
        while True:
            try:
                spec, task = parent.recv()
            except EOFError:
                return 0
            answer: Built | VicortError
            try:
                answer = compile_task(spec, task)
            except VicortError as error:
                answer = error
            parent.send(answer)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
