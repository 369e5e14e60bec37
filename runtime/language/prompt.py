"""The model's chat template, split where the visual tokens are:

prefix  <|im_start|>user … <|vision_start|>        cached once, when a session opens
video   the visual tokens, chunk by chunk
suffix  <|vision_end|>QUESTION …                   one fork of the stream per question
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from vicort.runtime.errors import ConfigError, EngineError, QuestionError
from vicort.runtime.file_kinds import misfit
from vicort.runtime.language.chat_template import ChatTemplate
from vicort.runtime.language.message_form import choose_form
from vicort.runtime.language.tokenizer_parts import check_parts
from vicort.runtime.safe_text import brief, is_text, shown

TOKENIZER_FILE = "tokenizer.json"
MAX_STANDING = 1024  # questions of which the tokens are kept, as they are asked again and again
MAX_TOKENIZER_BYTES = 64 << 20
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"

Result = TypeVar("Result")


class Prompt:
    """Tokenizes the prefix and questions, and decodes answers."""

    def __init__(self, folder: Path, video_token: int, system: str | None = None) -> None:
        """folder: an engine set, or a checkpoint in Hugging Face layout. system: the system prompt;
        None = the template's own. Raises EngineError if the folder's tokenizer or chat template is
        missing or fails, or a stream cannot be asked with it; ConfigError for a system prompt that
        cannot be given."""
        self._tokenizer = _read_tokenizer(folder / TOKENIZER_FILE)
        self._template = ChatTemplate.read(folder)
        self._video_token = video_token
        self._video = self._tokenizer.id_to_token(video_token)
        if not self._video:
            raise EngineError(
                f"the tokenizer in {folder} has no token {video_token} for a video: use the "
                "model's own tokenizer"
            )
        self._standing: dict[str, tuple[int, ...]] = {}  # tokens of questions that were asked
        self._controls = _control_tokens(self._tokenizer)
        self.controls = frozenset(self._controls)  # tokens that steer the model, and are no text
        self._system = system
        if system is not None:
            self._check_system(system)
        self._form = choose_form(
            self._render, self._video, self._placeholder(), system, f"the chat template in {folder}"
        )
        whole = self._encode(self._render(self._turns([("a question", "")])))
        if video_token not in whole:
            raise EngineError(
                f"the tokenizer in {folder} does not read its own token {shown(self._video)} for a "
                "video: use the model's own tokenizer"
            )
        self.prefix: list[int] = whole[: whole.index(video_token)]

    def question(self, text: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The tokens after the cached ones, up to where the answer begins. Raises QuestionError.

        earlier: the (question, answer) turns of the same conversation, already cached after the
        video.
        """
        if not earlier and text in self._standing:
            return list(self._standing[text])
        tokens = self._question(text, earlier)
        if not earlier:
            if len(self._standing) >= MAX_STANDING:
                self._standing.clear()
            self._standing[text] = tuple(tokens)
        return tokens

    def _question(self, text: str, earlier: Sequence[tuple[str, str]]) -> list[int]:
        if not text.strip():
            raise QuestionError(
                "the question is empty: ask something, for example --ask 'what is there now?'"
            )
        if not is_text(text):
            raise QuestionError(
                f"the question {shown(text)} contains a lone surrogate, which is no character: "
                "ask in UTF-8"
            )
        if control := self._control_in(text):
            raise QuestionError(
                f"the question contains the model's control token {control!r}: leave it out"
            )
        whole = self._render(self._turns([*earlier, (text, "")]))
        if not earlier:
            return self._after_video(whole)
        asked = self._render(self._turns([*earlier[:-1], (earlier[-1][0], "")]))
        answer = earlier[-1][1]
        # some templates strip white space around an answer
        for cached in (asked + answer, asked + answer.rstrip(), asked + answer.strip()):
            if whole.startswith(cached):
                return self._encode(whole[len(cached) :])
        raise QuestionError(
            "this model's chat template cannot continue a conversation: ask without one"
        )

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
        found = _calling(lambda: self._tokenizer.encode(text, add_special_tokens=False))
        pairs = zip(found.tokens, found.offsets, strict=True)
        words = [text[slice(*place)] for token, place in pairs if token == unknown]
        return list({word.casefold(): word for word in words}.values())

    @property
    def tokenizer(self) -> Tokenizer:
        """The library's own object, which nobody changes."""
        return self._tokenizer

    def rewritten(self, text: str) -> str:
        """What the model writes where it means to write this text: its tokens, decoded."""
        return self.decode([token for token in self.words(text) if token not in self.controls])

    def token_text(self, token: int) -> str:
        """The text of one token alone; of a control token its name, and empty for a row of the
        logits that is no token."""
        if token in self._controls:
            return self._controls[token]
        return self.decode([token])

    def token_id(self, token: str) -> int | None:
        """None if the model has no such token."""
        return self._tokenizer.token_to_id(token)

    def special_tokens(self) -> list[str]:
        """The model's tokens that its tokenizer flags as special."""
        return [
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if token.special
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        return _calling(lambda: self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _turns(self, turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return self._form.messages(turns, self._placeholder(), self._system)

    def _placeholder(self) -> str:
        """The video with the tokens that enclose it, for templates that take one text."""
        known = self.token_id(VISION_START) is not None and self.token_id(VISION_END) is not None
        return f"{VISION_START}{self._video}{VISION_END}" if known else self._video

    def _after_video(self, whole: str) -> list[int]:
        tokens, cached = self._encode(whole), [*self.prefix, self._video_token]
        if tokens[: len(cached)] != cached:
            raise QuestionError(
                "this model's chat template writes another beginning for this question, but the "
                "beginning is cached when a stream opens: ask in other words"
            )
        return tokens[len(cached) :]

    def _check_system(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip() or not is_text(text):
            raise ConfigError(
                f"the system prompt {shown(text)} is not text: say what the model shall be, or "
                "leave it out"
            )
        if control := self._control_in(text):
            raise ConfigError(
                f"the system prompt contains the model's control token {control!r}: leave it out"
            )

    def _control_in(self, text: str) -> str | None:
        """A control token that is in a user's text, or becomes one when that is normalised."""
        if written := next((each for each in self._controls.values() if each in text), None):
            return written
        unknown = getattr(self._tokenizer.model, "unk_token", None)  # many texts hold it
        found = (self._controls.get(each, unknown) for each in self.words(text))
        return next((each for each in found if each != unknown), None)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._template.render(messages)

    def _encode(self, text: str) -> list[int]:
        return _calling(lambda: self._tokenizer.encode(text, add_special_tokens=False)).ids


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


def _control_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that steer the model, by their ids: those that the tokenizer flags as special, and
    added ones that are in brackets, like <tool_call>."""
    return {
        number: token.content
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or _is_bracketed(token.content)
    }


def _is_bracketed(text: str) -> bool:
    return text[:1] in ("<", "[", "{", "|") and text[-1:] in (">", "]", "}", "|") and len(text) > 2


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise EngineError(f"{path} is missing: build the engine set again with vicort-build")
    written = path.stat()
    if written.st_size > MAX_TOKENIZER_BYTES:
        raise EngineError(
            f"{path} has {written.st_size} bytes, at most {MAX_TOKENIZER_BYTES} are allowed: use "
            "the model's own tokenizer"
        )
    if what := misfit(path):
        raise EngineError(f"{path} is {what}")
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
    content = path.read_bytes()
    check_parts(content)
    tokenizer = _calling(lambda: Tokenizer.from_buffer(content))
    # it would add tokens that the chat template writes itself
    tokenizer.post_processor = None
    # as transformers: a file may hold what was set when it was trained
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _calling(work: Callable[[], Result]) -> Result:
    """The result of a call of the tokenizer's library, which is Rust. Raises EngineError where that
    fails or panics, for example at a text for which it has no token, or at a regular expression
    that takes too long."""
    try:
        return work()
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise EngineError(
            f"the model's tokenizer fails ({brief(error)}): use the model's own tokenizer"
        ) from error
