"""What a decoder process may do: little memory, a little processor time for a picture, no program,
no file but to read, and no network where the source needs none."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
SECCOMP_MODE_FILTER = 2
F_SETSIG = 10
CLONE_THREAD = 0x10000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000  # of a seccomp filter
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # instructions of classic BPF
NUMBER, ARCHITECTURE = 0, 4  # offsets in seccomp_data; arguments follow from 16
# audit number of the architecture, and system calls by their number there
X86_64, AARCH64 = 0xC000003E, 0xC00000B7
REFUSED = {  # on x86_64, on aarch64; -1 = there is none
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "setrlimit": (160, 164), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "reboot": (169, 142), "creat": (85, -1), "truncate": (76, 45),
    "unlink": (87, -1), "unlinkat": (263, 35), "rmdir": (84, -1), "mkdir": (83, -1),
    "mkdirat": (258, 34), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
    "mknod": (133, -1), "mknodat": (259, 33), "chmod": (90, -1), "fchmodat": (268, 53),
    "fchmod": (91, 52), "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55),
    "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "open_by_handle_at": (304, 265), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190),
}  # fmt: skip
# refused as if the kernel did not have them, so that libraries use an older call, which is checked
UNKNOWN = {"clone3": (435, 435), "openat2": (437, 437)}
NETWORK = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "sendto": (44, 206),
}  # fmt: skip
OPEN, OPENAT, CLONE, PRLIMIT = (2, -1), (257, 56), (56, 220), (302, 261)


def die_with(lifeline: int) -> None:
    """The kernel ends this process when the other end of the pipe `lifeline` is closed, by whom or
    what ever."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        closed = os.read(lifeline, 1) == b""  # before it was watched
    except BlockingIOError:
        closed = False
    if closed:
        os._exit(1)


def die_with_parent() -> None:
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def limit_memory(size: int) -> None:
    """Let this process map `size` bytes more than it has mapped now, and write no core."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, mapped + size)
    _lower(resource.RLIMIT_FSIZE, size)
    _lower(resource.RLIMIT_CORE, 0)


def limit_time(seconds: float) -> None:
    """From now on, and until this is called again, the process may use that much processor time;
    then the kernel ends it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def enter_sandbox(*, network: bool, devices: bool) -> str:
    """Give up what decoding does not need. devices: whether it may open files to write, as cameras
    need. Returns why a part was not possible here, or ""."""
    libc = _libc()
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    code = filter_code(platform.machine(), network=network, devices=devices)
    if not code:
        return f"system calls are not filtered on {platform.machine()}"
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0):
        return f"system calls are not filtered: {os.strerror(ctypes.get_errno())}"
    return ""


def filter_code(machine: str, *, network: bool, devices: bool) -> bytes:
    """The filter of system calls in classic BPF; empty for another machine than x86_64, aarch64."""
    if machine not in ("x86_64", "aarch64"):
        return b""
    own = 0 if machine == "x86_64" else 1
    code = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, (X86_64, AARCH64)[own], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        *(_refused_if(ANY_BIT, 1 << 30, errno.ENOSYS) if own == 0 else ()),  # calls of x32
    ]
    for calls, answer in (
        (REFUSED, errno.EPERM),
        (UNKNOWN, errno.ENOSYS),
        ({} if network else NETWORK, errno.EACCES),
    ):
        for numbers in calls.values():
            if numbers[own] >= 0:
                code += _refused_if(EQUAL, numbers[own], answer)
    if not devices:
        code += _unless(OPEN[own], 1, (ANY_BIT, WRITES))
        code += _unless(OPENAT[own], 2, (ANY_BIT, WRITES))
    code += _unless(PRLIMIT[own], 2, (ANY_BIT, 0xFFFFFFFF))  # new limits
    code += _unless(CLONE[own], 0, (ANY_BIT, CLONE_THREAD), wanted=True)
    return b"".join([*code, _step(RETURN, ALLOW)])


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)


def _refused_if(test: int, value: int, answer: int) -> list[bytes]:
    return [_step(test, value, 0, 1), _step(RETURN, REFUSE | answer)]


def _unless(
    number: int, argument: int, test: tuple[int, int], *, wanted: bool = False
) -> list[bytes]:
    """Refuse the call where the lower half of an argument passes the test, or with `wanted` where
    it does not."""
    if number < 0:
        return []
    kind, value = test
    return [
        _step(EQUAL, number, 0, 4),
        _step(LOAD, 16 + 8 * argument),
        _step(kind, value, *((1, 0) if wanted else (0, 1))),
        _step(RETURN, REFUSE | errno.EPERM),
        _step(RETURN, ALLOW),
    ]


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
