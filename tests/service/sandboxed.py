"""Runs a command without capabilities, under the system call filter of a unit file:
`sandboxed.py UNIT COMMAND ...`."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

ALLOW, EPERM_OTHERWISE = 0x7FFF0000, 0x00050001  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
LOAD_FAILED = 77
DROP_CAPABILITY, CAPABILITIES = 24, 64  # PR_CAPBSET_DROP, more than there are


def groups() -> dict[str, set[str]]:
    """The members of each group of system calls, such as @system-service; some are groups."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, set[str]] = {}
    for indent, name in re.findall(r"^( *)(@?[\w-]+)$", listed, re.MULTILINE):
        if not indent:
            members = found.setdefault(name, set())
        else:
            members.add(name)
    return found


def allowed(unit: Path) -> set[str]:
    """The system calls that a unit's SystemCallFilter= lines leave, in their order."""
    known = groups()

    def system_calls(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return set().union(*map(system_calls, known[name]))

    left: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", unit.read_text(), re.MULTILINE):
        named = set().union(*map(system_calls, line.lstrip("~").split()))
        left = left - named if line.startswith("~") else left | named
    return left


def restrict(names: set[str]) -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(EPERM_OTHERWISE))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are of other machines
            library.seccomp_rule_add_array(context, ALLOW, number, 0, None)
    if library.seccomp_load(context):  # sets no_new_privs too
        sys.exit(LOAD_FAILED)


def without_capabilities() -> None:
    """From the next exec on; root is then a user as any other."""
    library = ctypes.CDLL(None)
    for number in range(CAPABILITIES):
        library.prctl(DROP_CAPABILITY, number, 0, 0, 0)


if __name__ == "__main__":
    without_capabilities()
    restrict(allowed(Path(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])
