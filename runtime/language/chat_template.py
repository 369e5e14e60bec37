"""A model's chat template, rendered as transformers renders it.

The environment is that of `transformers.utils.chat_template_utils`: its filters, functions and
tags, and every special token of the tokenizer as a variable.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from vicort.runtime.errors import EngineError
from vicort.runtime.language.bounded_jinja import BoundedEnvironment
from vicort.runtime.language.template_files import find_template, special_tokens
from vicort.runtime.safe_text import brief

MAX_DATE_FORMAT = 1_000  # characters


class ChatTemplate:
    """Dates are those of the moment when it was read, because what is rendered first is cached."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """variables: the special tokens by their names, such as eos_token. Raises EngineError if
        the source is no template, or takes too much to compile."""
        self._lock = threading.Lock()
        self.variables = dict(variables)
        self._environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        now = datetime.now()

        def strftime_now(form: str) -> str:
            return now.strftime(form[:MAX_DATE_FORMAT])

        self._environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": strftime_now,
            "dict": TemplateDictionary(),
            "namespace": TemplateNamespace,
        }
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # a template makes Python's compiler fail in many ways
            raise _failing(error) from error

    @staticmethod
    def read(folder: Path) -> ChatTemplate:
        """From the files of a checkpoint or an engine set. Raises EngineError."""
        return ChatTemplate(find_template(folder), special_tokens(folder))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Up to where the answer begins. Raises EngineError if the template fails, or takes more
        time or memory than its budget."""
        variables = {"tools": None, "documents": None, **self.variables}
        with self._lock:
            self._environment.budget.restart()
            try:
                return self._template.render(
                    messages=messages, add_generation_prompt=True, **variables
                )
            except Exception as error:  # it is a program: it may raise any of Python's errors
                raise _failing(error) from error


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training. A scope of its own,
    as in transformers."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body, lineno=line)

    def _text(self, caller: Any) -> str:
        return caller()


class TemplateDictionary:
    """The `dict` of templates, without the attributes of Python's."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # so that `self` may be a name in it
        names = dict(*given, **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _failing(error: BaseException) -> EngineError:
    return EngineError(
        f"the model's chat template fails ({brief(error)}): use the template that came with the "
        "model"
    )
