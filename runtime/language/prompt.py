"""The model's chat template, split where the visual tokens are:

prefix  <|im_start|>user … <|vision_start|>        cached once, when a session opens
video   the visual tokens, chunk by chunk
suffix  <|vision_end|>QUESTION …                   one fork of the stream per question
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from vicort.runtime.errors import ConfigError, EngineError, QuestionError
from vicort.runtime.safe_text import brief, is_text, read_text, shown

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 16 << 20  # of a template, or of the JSON file that contains it
# A template is a sandboxed program: it may raise Python's errors too, for example at 1 / 0.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class Prompt:
    """Tokenizes the prefix and questions, and decodes answers."""

    def __init__(self, folder: Path, video_token: int, system: str | None = None) -> None:
        """folder: an engine set, or a checkpoint in Hugging Face layout. system: the system prompt;
        None = the template's own. Raises EngineError if the folder's tokenizer or chat template is
        missing or fails, ConfigError for a system prompt that cannot be given."""
        self._tokenizer = _read_tokenizer(folder / TOKENIZER_FILE)
        self._template = _read_template(folder)
        self._video = self._tokenizer.id_to_token(video_token)
        if not self._video:
            raise EngineError(
                f"the tokenizer in {folder} has no token {video_token} for a video: use the "
                "model's own tokenizer"
            )
        self._system = system
        if system is not None:
            self._check_system(system)
        before, found, _ = self._render(self._turns([("", "")])).partition(self._video)
        if not found:
            raise EngineError(
                f"the chat template in {folder} puts no {self._video} where a video is: use the "
                "model's own template"
            )
        if system is not None and system.strip() not in before:
            raise ConfigError(
                f"the chat template in {folder} does not take a system prompt: leave it out, or "
                "put it into the questions"
            )
        self.prefix: list[int] = self._encode(before)

    def question(self, text: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The tokens after the cached ones, up to where the answer begins. Raises QuestionError.

        earlier: the (question, answer) turns of the same conversation, already cached after the
        video.
        """
        if not text.strip():
            raise QuestionError(
                "the question is empty: ask something, for example --ask 'what is there now?'"
            )
        if not is_text(text):
            raise QuestionError(
                f"the question {shown(text)} contains a lone surrogate, which is no character: "
                "ask in UTF-8"
            )
        if special := next((t for t in self.special_tokens() if t in text), None):
            raise QuestionError(
                f"the question contains the model's control token {special!r}: leave it out"
            )
        whole = self._render(self._turns([*earlier, (text, "")]))
        if not earlier:
            return self._encode(whole.partition(self._video)[2])
        cached = self._render(self._turns([*earlier[:-1], (earlier[-1][0], "")])) + earlier[-1][1]
        if not whole.startswith(cached):
            raise QuestionError(
                "this model's chat template cannot continue a conversation: ask without one"
            )
        return self._encode(whole[len(cached) :])

    def context(self, text: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The tokens of the whole conversation up to where the answer begins, the video one of
        them; arguments as of `question`."""
        return self._encode(self._render(self._turns([*earlier, (text, "")])))

    def words(self, text: str) -> list[int]:
        """The tokens of a question without the template, for retrieval."""
        return self._encode(text)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the tokenizer has no token for, once each; empty for tokenizers
        that can write every text, as those of published models can."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown is None:
            return []
        found = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(found.tokens, found.offsets, strict=True)
        words = [text[slice(*place)] for token, place in pairs if token == unknown]
        return list({word.casefold(): word for word in words}.values())

    def token_id(self, token: str) -> int | None:
        """None if the model has no such token."""
        return self._tokenizer.token_to_id(token)

    def special_tokens(self) -> list[str]:
        """The model's control tokens."""
        return [
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if token.special
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _turns(self, turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system})
        for number, (question, answer) in enumerate(turns):
            messages.append(_turn(question, with_video=number == 0))
            if answer:
                messages.append({"role": "assistant", "content": answer})
        return messages

    def _check_system(self, text: str) -> None:
        if not text.strip() or not is_text(text):
            raise ConfigError(
                f"the system prompt {shown(text)} is not text: say what the model shall be, or "
                "leave it out"
            )
        if special := next((t for t in self.special_tokens() if t in text), None):
            raise ConfigError(
                f"the system prompt contains the model's control token {special!r}: leave it out"
            )

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except TEMPLATE_ERRORS as error:
            raise _failing(error) from error

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class TextStream:
    """Streaming decoder: keeps back bytes until their character is complete."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._tokens: list[int] = []
        self.text = ""

    def add(self, token: int) -> str:
        """The new text after this token; may be empty."""
        self._tokens.append(token)
        whole = self._prompt.decode(self._tokens)
        return "" if whole.endswith("�") else self._advance(whole)

    def finish(self) -> str:
        """The text that was kept back."""
        return self._advance(self._prompt.decode(self._tokens))

    def _advance(self, whole: str) -> str:
        new = whole[len(self.text) :]
        self.text = whole
        return new


class StopText:
    """Passes a growing text on, up to the first of some texts. What may be the beginning of one of
    them is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.text = ""  # passed on so far
        self.found = False

    def add(self, piece: str) -> str:
        """The text that can be passed on now; nothing after a stop text was found."""
        if self.found:
            return ""
        self._held += piece
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.found = bool(places)
        return self._pass(min(places) if places else len(self._held) - self._unsure())

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return "" if self.found else self._pass(len(self._held))

    def _unsure(self) -> int:
        """How many characters at the end may begin a stop text."""
        return max(
            (
                count
                for stop in self._stops
                for count in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:count])
            ),
            default=0,
        )

    def _pass(self, count: int) -> str:
        passed, self._held = self._held[:count], self._held[count:]
        self.text += passed
        return passed


def _turn(text: str, with_video: bool) -> dict[str, Any]:
    video = [{"type": "video"}] if with_video else []
    return {"role": "user", "content": [*video, {"type": "text", "text": text}]}


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise EngineError(f"{path} is missing: build the engine set again with vicort-build")
    written = path.stat()
    try:
        return _tokenizer(path, written.st_mtime_ns, written.st_size)
    except Exception as error:
        raise EngineError(
            f"{path} is no tokenizer ({brief(error)}): build the engine set again with vicort-build"
        ) from error


@functools.lru_cache(maxsize=4)
def _tokenizer(path: Path, written_ns: int, size: int) -> Tokenizer:
    """A tokenizer of 150,000 tokens takes most of a second to read. Nothing here changes one, so
    sessions share it. written_ns, size: of the file, which may be replaced."""
    return Tokenizer.from_file(str(path))


def _read_template(folder: Path) -> Any:
    """From chat_template.jinja, chat_template.json or tokenizer_config.json, the first that has
    one."""
    source = _text(folder / TEMPLATE_FILE)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if source is None:
            source = _template_in(folder / name)
    if not isinstance(source, str):
        raise EngineError(
            f"{folder} has no chat template: add the model's {TEMPLATE_FILE} and build again"
        )

    def fail(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    try:
        return environment.from_string(source)
    except TEMPLATE_ERRORS as error:
        raise _failing(error) from error


def _failing(error: BaseException) -> EngineError:
    return EngineError(
        f"the model's chat template fails ({brief(error)}): use the template that came with the "
        "model"
    )


def _text(path: Path) -> str | None:
    """None if there is no such file. Raises EngineError if it is not text, or too long."""
    if not path.is_file():
        return None
    try:
        return read_text(path, MAX_TEMPLATE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} cannot be read ({error}): build the engine set again with vicort-build"
        ) from error


def _template_in(path: Path) -> Any:
    """The value of chat_template in a JSON file; None if there is no such file or no such key."""
    if (text := _text(path)) is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON: build the engine set again with vicort-build"
        ) from error
    return content.get("chat_template") if isinstance(content, dict) else None
