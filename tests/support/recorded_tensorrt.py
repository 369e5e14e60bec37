"""A TensorRT module that has just what the real bindings of a version say they have: a call of
another name, with other arguments, or of other kinds of arguments fails as it would there.

What a call returns follows its signature: True for a bool, a new object for a class. `answers`
says otherwise, by `Class.member`.
"""

from __future__ import annotations

import ast
import enum
import inspect
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PLAIN = {"SupportsInt": int, "SupportsFloat": float, "str": str, "bool": bool, "int": int}
KINDS = PLAIN | {"FallbackString": str}
RETURNED = {"bool": True, "int": 0, "str": "", "float": 0.0}


class RecordedTensorRT(SimpleNamespace):
    """The module. calls: how often each `Class.member` was called or set."""

    def __init__(self, listing: Path) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        for node in ast.parse(listing.read_text()).body:
            if isinstance(node, ast.ClassDef):
                setattr(self, node.name, self._class(node))
            elif isinstance(node, ast.FunctionDef):
                setattr(self, node.name, self._function("", [node]))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                setattr(self, node.targets[0].id, self._value(node.value))

    def _class(self, node: ast.ClassDef) -> Any:
        values = {
            each.targets[0].id: ast.literal_eval(each.value)
            for each in node.body
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
        }
        if values:  # names with one value are one member, as there
            return enum.IntEnum(node.name, values)
        members: dict[str, list[ast.stmt]] = {}
        for each in node.body:
            if isinstance(each, ast.FunctionDef):
                members.setdefault(each.name, []).append(each)
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                members[each.target.id] = [each]
        return type(
            node.name, (_Object,), {"MEMBERS": members, **self._methods(node.name, members)}
        )

    def _value(self, node: ast.expr) -> Any:
        """A version, or DataType.INT32."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return getattr(getattr(self, node.value.id), node.attr)
        return ast.literal_eval(node)

    def _methods(self, name: str, members: dict[str, list[Any]]) -> dict[str, Any]:
        return {
            member: self._function(name, nodes)
            if isinstance(nodes[0], ast.FunctionDef)
            else self._property(name, member, nodes[0])
            for member, nodes in members.items()
        } | ({} if "__init__" in members else {"__init__": _no_constructor})

    def _function(self, owner: str, nodes: list[ast.FunctionDef]) -> Any:
        """A function that takes what one of the overloads takes."""

        def call(*args: Any, **named: Any) -> Any:
            faults = []
            for node in nodes:
                fault = self._misfit(node, args, named)
                if not fault:
                    return self._answer(f"{owner}.{node.name}".lstrip("."), node.returns, args)
                faults.append(f"{ast.unparse(node)}: {fault}")
            raise TypeError(f"{owner}: " + "; ".join(faults))

        return call

    def _property(self, owner: str, name: str, node: ast.AnnAssign) -> property:
        key = f"{owner}.{name}"

        def get(instance: Any) -> Any:
            if name in vars(instance):
                return vars(instance)[name]
            return self._answer(key, node.annotation, (instance,))

        def put(instance: Any, value: Any) -> None:
            if not self._is(ast.unparse(node.annotation), value):
                raise TypeError(f"{key} = {value!r} is no {ast.unparse(node.annotation)}")
            self.calls[key] += 1
            vars(instance)[name] = value

        settable = isinstance(node.value, ast.Constant) and node.value.value is ...
        return property(get, put if settable else None)

    def _misfit(self, node: ast.FunctionDef, args: tuple[Any, ...], named: dict[str, Any]) -> str:
        arguments = node.args.args
        defaults = dict.fromkeys([each.arg for each in arguments][::-1][: len(node.args.defaults)])
        parameters = [
            inspect.Parameter(
                each.arg,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if each.arg in defaults else inspect.Parameter.empty,
            )
            for each in arguments
        ]
        try:
            bound = inspect.Signature(parameters).bind(*args, **named).arguments
        except TypeError as error:
            return str(error)
        for each in arguments:
            kind = ast.unparse(each.annotation) if each.annotation else "object"
            if each.arg in bound and each.arg != "self" and not self._is(kind, bound[each.arg]):
                return f"{each.arg}={bound[each.arg]!r} is no {kind}"
        return ""

    def _is(self, kind: str, value: Any) -> bool:
        if kind in KINDS:
            return isinstance(value, KINDS[kind]) or (
                kind == "SupportsFloat" and type(value) is int
            )
        if kind == "Dims":
            return isinstance(value, tuple | list) and all(isinstance(size, int) for size in value)
        if kind == "Buffer":
            try:
                memoryview(value)
            except TypeError:
                return False
            return True
        wanted = getattr(self, kind, None)
        return not isinstance(wanted, type) or isinstance(value, wanted) or value is None

    def _answer(self, key: str, returns: Any, args: tuple[Any, ...]) -> Any:
        self.calls[key] += 1
        if key in self.answers:
            answer = self.answers[key]
            return answer(*args) if callable(answer) else answer
        kind = ast.unparse(returns)
        if kind in RETURNED:
            return RETURNED[kind]
        wanted = getattr(self, kind, None)
        if isinstance(wanted, enum.EnumMeta):
            return next(iter(wanted))
        return self.new(kind) if isinstance(wanted, type) else None

    def new(self, kind: str) -> Any:
        """An object of a class that has no constructor."""
        wanted = getattr(self, kind)
        return wanted.__new__(wanted)


class _Object:
    """What the bindings' own objects have in common: no other attributes than theirs. Classes that
    are derived from them have what they set."""

    def __setattr__(self, name: str, value: Any) -> None:
        members = vars(type(self)).get("MEMBERS")
        if members is not None and name not in members:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        object.__setattr__(self, name, value)


def _no_constructor(self: Any, *args: Any) -> None:
    raise TypeError(f"{type(self).__name__}: No constructor defined!")
