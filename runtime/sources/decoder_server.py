"""The server of decoder processes: `python -m vicort.runtime.sources.decoder_server LINK LIFELINE`.

It imports the video libraries once, has one thread, and forks a process for each source. LINK: the
number of a socket that requests come from; LIFELINE: that of a pipe whose end ends everything.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from vicort.runtime.sources.decoder_link import FilesLost, Link, LinkClosed
from vicort.runtime.sources.decoder_sandbox import die_with, die_with_parent
from vicort.runtime.sources.decoder_worker import work


def serve(requests: Link) -> None:
    """Fork a process for each request, and tell who asked for it how it died."""
    links: dict[int, Link] = {}  # by process id
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    arrival = select.poll()
    arrival.register(requests, select.POLLIN)
    arrival.register(woken, select.POLLIN)
    while True:
        for file, _ in arrival.poll():
            if file == woken:
                os.read(woken, 4096)
                _reap(links)
                continue
            try:
                (_, request), (end, lifeline, *files) = requests.receive()
            except FilesLost as error:  # only this source cannot be read
                _refuse(error)
                continue
            except (LinkClosed, ValueError):
                return
            link = Link(socket.socket(fileno=end))
            child = _forked(link)
            if child == 0:
                for other in (requests, *links.values()):  # those of other sources
                    other.close()
                _be_worker(link, lifeline, request, files)
            if child:
                links[child] = link
            for each in (lifeline, *files):
                os.close(each)


def _forked(link: Link) -> int | None:
    """As `os.fork`; None = this failed, and the reason was sent to who asked."""
    try:
        return os.fork()
    except OSError as error:  # the machine has no more processes, or no memory for one
        _tell(link, f"no process can be started for it ({error.strerror})")
        return None


def _refuse(lost: FilesLost) -> None:
    """Tell who asked why, if the link to it came; if not, its closing tells that."""
    for number, file in enumerate(lost.files):
        end = socket.socket(fileno=file)
        if number == 0:
            _tell(Link(end), str(lost))
        end.close()


def _tell(link: Link, line: str) -> None:
    with suppress(LinkClosed):
        link.send("failed", "other", line, line)


def _be_worker(link: Link, lifeline: int, request: dict, files: list[int]) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        die_with(lifeline)
        work(link, request, files)
        code = 0
    finally:
        os._exit(code)


def _reap(links: dict[int, Link]) -> None:
    while links:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        link = links.pop(child)
        with suppress(LinkClosed):  # nobody waits for it any more
            link.send("died", os.waitstatus_to_exitcode(status))
        link.close()


def _leave_the_host(kept: tuple[int, int]) -> None:
    """Give up what a host may have passed on: its terminal, blocked signals, open files."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    first, last = sorted(kept)
    os.closerange(3, first)
    os.closerange(first + 1, last)
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def main() -> int:
    number, lifeline = map(int, sys.argv[1:])
    _leave_the_host((number, lifeline))
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the program decides, and closes the lifeline
    die_with(lifeline)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # a library's last words about a damaged heap are not for the terminal
    os.close(silent)
    for inherited in (number, lifeline):
        os.set_inheritable(inherited, False)
    gc.collect()
    gc.freeze()
    serve(Link(socket.socket(fileno=number)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
