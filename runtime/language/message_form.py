"""How messages hold a video and text. Chat templates differ in what they read: lists of parts, as
those of Qwen2.5-VL, one text with the video's placeholder in it, or the first part only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vicort.runtime.errors import ConfigError, EngineError, VicortError

Message = dict[str, Any]


@dataclass(frozen=True)
class MessageForm:
    parts: bool = True  # a user's message is a list of parts, not one text
    all_parts: bool = False  # the messages of others are lists too
    text_first: bool = False  # in the list

    def messages(
        self, turns: Sequence[tuple[str, str]], placeholder: str, system: str | None
    ) -> list[Message]:
        """turns: question and answer, which is empty where it is still to come. placeholder: the
        video with the tokens that enclose it, in the first question."""
        found = [] if system is None else [self._other("system", system)]
        for number, (question, answer) in enumerate(turns):
            found.append(self._user(question, "" if number else placeholder))
            if answer:
                found.append(self._other("assistant", answer))
        return found

    def _user(self, text: str, placeholder: str) -> Message:
        if not self.parts:
            return {"role": "user", "content": placeholder + text}
        video: list[Message] = [{"type": "video"}] if placeholder else []
        said = [{"type": "text", "text": text}]
        return {"role": "user", "content": said + video if self.text_first else video + said}

    def _other(self, role: str, text: str) -> Message:
        content = [{"type": "text", "text": text}] if self.all_parts else text
        return {"role": role, "content": content}


# in the order in which they are tried
FORMS = (
    MessageForm(),
    MessageForm(all_parts=True),
    MessageForm(parts=False),
    MessageForm(all_parts=True, text_first=True),
)


def choose_form(
    render: Callable[[list[Message]], str],
    video: str,
    placeholder: str,
    system: str | None,
    name: str,
) -> MessageForm:
    """The first form with which the template writes everything, or all but earlier answers.

    render: the template. video: the token that stands for one. name: of the template, in errors.
    Raises EngineError if a video or a question is written in no form, or the question is before
    the video; ConfigError if the system prompt is written in none.
    """
    fitting: list[MessageForm] = []
    refusals: list[VicortError] = []
    for form in FORMS:
        try:
            if _writes_answers(form, render, video, placeholder, system, name):
                return form
            fitting.append(form)
        except (EngineError, ConfigError) as error:
            refusals.append(error)
    if fitting:
        return fitting[0]
    # a system prompt that is left out was the only thing amiss; else the usual form says most
    raise next((each for each in refusals if isinstance(each, ConfigError)), refusals[0])


def _writes_answers(
    form: MessageForm,
    render: Callable[[list[Message]], str],
    video: str,
    placeholder: str,
    system: str | None,
    name: str,
) -> bool:
    """Whether earlier answers are written in this form. Raises as `choose_form`."""
    question, answer = _unique("questionprobe", system), _unique("answerprobe", system)
    before, found, after = render(form.messages([(question, "")], placeholder, system)).partition(
        video
    )
    if not found or video in after:
        raise EngineError(
            f"{name} puts {'several' if found else 'no'} {video} where a video is: use the "
            "model's own template"
        )
    if question in before.lower():
        raise EngineError(
            f"{name} puts the question before the video, but a stream is watched before it is "
            "asked: use a template that writes the video first"
        )
    if question not in after.lower():
        raise EngineError(f"{name} leaves out the question: use the model's own template")
    if system is not None and system.strip() not in before:
        raise ConfigError(
            f"{name} does not take a system prompt: leave it out, or put it into the questions"
        )
    try:
        turns = [(question, answer), (question, "")]
        return answer in render(form.messages(turns, placeholder, system)).lower()
    except EngineError:  # a template may refuse a second turn
        return False


def _unique(word: str, system: str | None) -> str:
    """A word that the system prompt does not hold."""
    while system and word in system.lower():
        word += "x"
    return word
