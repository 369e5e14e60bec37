"""What to install when a package is missing, in words that hold for a clone and for a wheel."""

from __future__ import annotations

import re
import shlex
from importlib import metadata

from vicort.runtime.errors import ConfigError

DISTRIBUTION = "vicort"
# module -> the distribution that brings it, where the names differ
BRINGS = {
    "PIL": "pillow",
    "cuda": "cuda-core",
    "onnx_ir": "onnxscript",
    "paho": "paho-mqtt",
    "yaml": "pyyaml",
}


def install_command(extra: str) -> str:
    """The command that installs what an extra of vicort adds. It names the packages themselves:
    vicort may be a clone, or a wheel that lies on no index."""
    return f"pip install {shlex.join(_of_extra(extra))}"


def _of_extra(extra: str) -> list[str]:
    return [
        requirement.partition(";")[0].strip()
        for requirement in metadata.requires(DISTRIBUTION) or []
        if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", requirement)
    ]


def check_installed(extra: str) -> None:
    """Raises ConfigError, which says how to install them, unless all packages of an extra are
    installed."""
    for requirement in _of_extra(extra):
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise ConfigError(f"{name} is not installed: run `{install_command(extra)}`") from error


def check_version(name: str) -> None:
    """Raises ConfigError, which says how to change it, if an installed package has a version that
    vicort does not run with."""
    found = metadata.version(name)
    for requirement in _requirements():
        wanted = requirement.partition(";")[0].strip()
        if not re.match(rf"{re.escape(name)}(?![\w.-])", wanted, re.IGNORECASE):
            continue
        if not all(_suits(found, *limit) for limit in re.findall(r"(>=|<|==)\s*([\d.]+)", wanted)):
            raise ConfigError(
                f"{name} {found} is installed, {wanted} is required: run `pip install "
                f"{shlex.quote(wanted)}`"
            )


def _requirements() -> list[str]:
    """What vicort asks for; nothing where it runs from a folder without metadata."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _suits(found: str, relation: str, limit: str) -> bool:
    have, other = _numbers(found), _numbers(limit)
    if relation == "==":
        return have[: len(other)] == other
    return have >= other if relation == ">=" else have < other


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def missing_package(error: ModuleNotFoundError) -> str | None:
    """A line that says how to install what an import did not find; None if it is a module of vicort
    itself or of no package that vicort asks for."""
    module = (error.name or "").partition(".")[0]
    package = BRINGS.get(module, module.replace("_", "-"))
    for requirement in _requirements():
        if re.match(rf"{re.escape(package)}(?![\w.-])", requirement, re.IGNORECASE) is None:
            continue
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        command = (
            install_command(extra[1])
            if extra
            else f"pip install {shlex.quote(requirement.partition(';')[0].strip())}"
        )
        return f"{module} is not installed: run `{command}`"
    return None
