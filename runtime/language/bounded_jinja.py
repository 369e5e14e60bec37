"""Jinja for templates of strangers: a sandbox that also bounds time and memory.

Every loop, call and filter is a step. Every value that a template makes is weighed: characters of
text, and entries of lists at any depth. A rendering that takes more than its budget fails.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from jinja2 import TemplateRuntimeError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
MAX_WEIGHT = 20_000_000  # characters
ENTRY = 8  # characters that an entry of a list counts for, besides its own
REPEATED = 8  # times MAX_WEIGHT: what a product of weights may be, which count entries too
MAX_SECONDS = 2  # of the thread's processor time
MAX_NUMBER = 1_000_000  # as an argument, such as a width
MAX_BITS = 4_096  # of a whole number
STEPS_A_CLOCK = 64
# what makes more text than it is given
EXPANDING_METHODS = frozenset(
    {
        *("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust"),
        *("translate", "zfill"),
    }
)
EXPANDING_FILTERS = frozenset(
    {
        *("batch", "center", "format", "indent", "join", "replace", "slice", "truncate"),
        "wordwrap",
    }
)
LEFT_OUT = ("striptags", "urlize")  # filters that take the square of a text's length
COUNTED, WEIGHED = "counted items", "weighed value"  # names that no template can write
LONG_NUMBER = re.compile(r"[0-9]{5}")


class TemplateLimitError(TemplateRuntimeError):
    """A template takes more than its budget."""


class RenderBudget:
    """What one rendering may still take."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._steps, self._weight = MAX_STEPS, MAX_WEIGHT
        self._end = time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} steps")
        if self._steps % STEPS_A_CLOCK == 0 and time.thread_time() > self._end:
            raise TemplateLimitError(f"it takes more than {MAX_SECONDS} seconds")

    def weigh(self, value: Any) -> Any:
        """Returns the value."""
        self._weight -= weight_of(value, self._weight)
        if self._weight < 0:
            raise TemplateLimitError(f"it writes more than {MAX_WEIGHT} characters")
        return value

    def check_product(self, value: Any, factors: Iterable[Any]) -> None:
        """Before a value is repeated, filled or joined by one of the factors."""
        sizes = [abs(each) if isinstance(each, int) else weight_of(each) for each in factors]
        if weight_of(value) * max(sizes, default=1) > REPEATED * MAX_WEIGHT:
            raise TemplateLimitError(f"it writes more than {MAX_WEIGHT} characters")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Its `budget` is to be restarted before each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        self.budget = RenderBudget()
        super().__init__(**options)
        del self.globals["lipsum"]
        self.filters = {
            name: self._bounded_filter(name, function)
            for name, function in self.filters.items()
            if name not in LEFT_OUT
        }
        self.filters |= {COUNTED: self._counted, WEIGHED: self.budget.weigh, "tojson": self._json}
        self.concat = self._joined  # type: ignore[method-assign]  # as jinja2.nativetypes does

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "*":
            self._check_repetition(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str | bytes):
            self._check_percent(left, right)
        return self.budget.weigh(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # names as in Jinja, which passes a template's own keyword arguments here
        budget, values = __self.budget, [*args, *kwargs.values()]
        budget.step()
        _check_numbers(values)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str | bytes) and __obj.__name__ in EXPANDING_METHODS:
            budget.check_product(text, values)
        return budget.weigh(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, with_map = value.__self__, value.__name__ == "format_map"

        @functools.wraps(value)
        def formatted(*args: Any, **kwargs: Any) -> str:
            if with_map:
                (kwargs,), args = args, ()
            self.budget.check_product(text, [*args, *kwargs.values()])
            return _BoundedFormatter(self).vformat(text, args, kwargs)

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = _Instrumented().visit(super()._parse(source, name, filename))
        parsed.set_environment(self)
        return parsed

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # of the arguments, Jinja passes itself what a function with this attribute asks for
        before = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            values = [*args[before + 1 :], *kwargs.values()]
            _check_numbers(values)
            if name in EXPANDING_FILTERS and len(args) > before:
                self.budget.check_product(args[before], values)
            if name == "format" and len(args) > before:
                self._check_percent(str(args[before]), values)
            return self.budget.weigh(function(*args, **kwargs))

        return bounded

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.step()
            yield item

    def _joined(self, pieces: Iterable[str]) -> str:
        return "".join(self.budget.weigh(piece) for piece in pieces)

    def _json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """With the parameters of transformers; nothing is escaped for HTML."""
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self._joined(encoder.iterencode(value))

    def _check_repetition(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        elif isinstance(left, int) or isinstance(right, int):
            value, count = (right, left) if isinstance(left, int) else (left, right)
            self.budget.check_product(value, [count])

    def _check_percent(self, text: str | bytes, values: Any) -> None:
        """Before printf's formatting."""
        form = text if isinstance(text, str) else text.decode("latin-1")
        given = values if isinstance(values, list | tuple) else [values]
        _check_numbers(given)
        if any(LONG_NUMBER.search(found) for found in re.findall(r"%[^%A-Za-z]*", form)):
            raise TemplateLimitError("it fills text to more than 9999 characters")
        # a name or a star may repeat a value or a width
        repeated = [values] if isinstance(values, Mapping) else given if "*" in form else []
        self.budget.check_product(text, repeated)


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if LONG_NUMBER.search(format_spec):
            raise TemplateLimitError("it fills text to more than 9999 characters")
        return super().format_field(value, format_spec)


class _Instrumented(NodeTransformer):
    """Puts a step around what loops run over, and a weighing around what expressions make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _filtered(self.generic_visit(node), WEIGHED)

    visit_List = visit_Dict = visit_Concat

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, WEIGHED) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, WEIGHED) if isinstance(node.arg, nodes.Slice) else node


def weight_of(value: Any, limit: int = MAX_WEIGHT) -> int:
    """Characters of text and entries of containers at any depth, each as often as it would be
    written. Counting ends above the limit."""
    total, rest = 0, [value]
    while rest and total <= limit:
        each = rest.pop()
        total += ENTRY
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, Mapping):
            rest += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            rest += each
        elif isinstance(each, Namespace):
            rest += object.__getattribute__(each, "_Namespace__attrs").values()
        elif isinstance(each, int):
            total += each.bit_length() // 32
    return total


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    """node: an expression."""
    return nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise TemplateLimitError(f"it uses a number above {MAX_NUMBER}")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateLimitError(f"it computes a number of more than {MAX_BITS} bits")
