"""What the Python bindings of the full TensorRT say of themselves: classes, members, signatures.

The bindings can be imported where TensorRT's libraries are not, over empty libraries of the same
names; nothing can be built or run with them. `tests/fixtures/tensorrt-VERSION.txt` is what they
say, in the form of a type stub, and tests run vicort's calls against it. To record versions:

    python tests/support/tensorrt_listing.py 10.16.1.11 11.4.0.106

`tests/fixtures/torch-tensorrt.txt` has the signatures of torch-tensorrt that vicort uses, read from
the source in its wheel, because it cannot be imported without TensorRT. To record them:

    python tests/support/tensorrt_listing.py torch-tensorrt==2.13.0
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLASSES = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "DynamicPluginTensorDesc",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginCreatorV3One",
    "IPluginRegistry",
    "IPluginV3",
    "IPluginV3OneBuild",
    "IPluginV3OneBuildV2",
    "IPluginV3OneCore",
    "IPluginV3OneRuntime",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "PluginField",
    "PluginFieldCollection",
    "PluginFieldType",
    "PluginTensorDesc",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
]
CONVERT = "convert_exported_program_to_serialized_trt_engine"
FUNCTIONS = ("get_plugin_registry",)
# The libraries that the bindings are linked with, and the functions that they take from them.
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
SYMBOLS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
]
KEPT = ("__init__", "add_optimization_profile")  # the other calls that begin so make layers
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w*)\((.*)\) -> (.+)$")
DEFAULT = re.compile(r" = (<[^>]*>|'[^']*'|[^,)]+)")
MODULES = re.compile(r"\b(tensorrt\.tensorrt|collections\.abc|typing|typing_extensions|numpy)\.")
TEMPLATE = re.compile(r"\w+::\w+<.*>")  # C++ that no Python type stands for


def listing(module: Any) -> str:
    """The classes of a TensorRT module as the text of a type stub."""
    return "\n".join(_lines(module)) + "\n"


def _lines(module: Any) -> Iterator[str]:
    yield f"__version__ = {module.__version__!r}"
    for name in FUNCTIONS:
        yield from (f"def {each}: ..." for each in _signatures(name, getattr(module, name)))
    for name in CLASSES:
        kind = getattr(module, name)
        bases = [base.__name__ for base in kind.__mro__[1:] if base.__name__ in CLASSES]
        yield f"class {name}({', '.join(bases[:1])}):"
        yield from (f"    {line}" for line in [*_members(kind)] or ["pass"])
    for alias, value in sorted(vars(module).items()):  # trt.int32
        if type(value).__name__ == "DataType":
            yield f"{alias} = DataType.{value.name}"


def _members(kind: type) -> Iterator[str]:
    entries = getattr(kind, "__members__", {})
    for name, value in sorted(entries.items(), key=lambda item: int(item[1])):
        yield f"{name} = {int(value)}"
    for name in sorted(set(dir(kind)) - set(entries)):
        member = inspect.getattr_static(kind, name)
        if name.startswith(("_", "add_")) and name not in KEPT:
            continue
        if isinstance(member, property):
            (found,) = _signatures(name, member.fget)[:1] or [f"{name}() -> object"]
            yield f"{name}: {found.rpartition(' -> ')[2]} = {'...' if member.fset else None}"
        else:
            yield from (f"def {each}: ..." for each in _signatures(name, getattr(kind, name)))


def _signatures(name: str, function: Any) -> list[str]:
    """One for each overload, without defaults' values."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = SIGNATURE.match(line.strip())
        if match and match[1] in (name, "") and "*args" not in match[2]:
            arguments = _python(DEFAULT.sub(" = ...", match[2])).replace("in:", "in_:")
            found.append(f"{name}({arguments}) -> {_python(match[3])}")
    return found


def _python(text: str) -> str:
    text = TEMPLATE.sub("object", text).replace(", /", "")
    return re.sub(r"\w+::", "", MODULES.sub("", text))


def empty_libraries(folder: Path, major: int) -> None:
    """Libraries in which every function returns 0."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        target = f"{name}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{target}", "-o", str(folder / target)]
        subprocess.run(["gcc", *options, str(source)], check=True)


def listing_of(site: Path, version: str) -> str:
    """What the bindings in a folder of packages say, in a process of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty_libraries(folder, int(version.partition(".")[0]))
        (folder / "tensorrt").symlink_to(site / "tensorrt_bindings")
        code = "import tensorrt, tensorrt_listing as t; print(t.listing(tensorrt), end='')"
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(folder),
            "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent)]),
        }
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout


def torch_tensorrt_listing(site: Path) -> str:
    """The converter, and the inputs it takes, from torch-tensorrt's own source."""
    compiler = ast.parse((site / "torch_tensorrt" / "dynamo" / "_compiler.py").read_text())
    (convert,) = (
        node for node in compiler.body if isinstance(node, ast.FunctionDef) and node.name == CONVERT
    )
    arguments = [*convert.args.posonlyargs, *convert.args.args, *convert.args.kwonlyargs]
    for each in arguments:
        each.annotation = None
    convert.args.kwarg = None  # of names that it warns of
    convert.args.defaults = [ast.Constant(...) for _ in convert.args.defaults]
    convert.args.kw_defaults = [
        default and ast.Constant(...) for default in convert.args.kw_defaults
    ]
    convert.body, convert.returns = [ast.Expr(ast.Constant(...))], None
    source = (site / "torch_tensorrt" / "_Input.py").read_text()
    names = sorted(set(re.findall(r"""kwargs\[["'](\w+)["']\]""", source)) - {"shape_ranges"})
    keywords = ", ".join(f"{name}=..." for name in names)
    return f"{ast.unparse(convert)}\nclass Input:\n    def __init__(self, *, {keywords}): ...\n"


def fetch(package: str, folder: Path) -> None:
    """The content of a package's wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)


def record(wanted: str) -> None:
    """Fetch the bindings of a version, or torch-tensorrt, and write what they say."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wanted.startswith("torch-tensorrt"):
            fetch(wanted, folder)
            (FIXTURES / "torch-tensorrt.txt").write_text(torch_tensorrt_listing(folder))
            return
        fetch(f"tensorrt-cu13-bindings=={wanted}", folder)
        (FIXTURES / f"tensorrt-{wanted}.txt").write_text(listing_of(folder, wanted))


if __name__ == "__main__":
    for each in sys.argv[1:]:
        record(each)
