"""The text around the video: against the template rendered by transformers, with the real Qwen2
tokenizer where it is at hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vicort.runtime.errors import ConfigError, EngineError, QuestionError
from vicort.runtime.language import prompt as prompt_module
from vicort.runtime.language.prompt import Prompt, StopText, TextStream

ROOT = Path(__file__).parents[3]
TINY = ROOT / "export" / "tiny" / "checkpoint"
QWEN = ROOT.parent / "shared" / "qwen2-tokenizer"
VIDEO = 6
# the published template's form for a user's video and text, in the words of the model's
# documentation
QWEN_TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def qwen(tmp_path):
    if not QWEN.is_dir():
        pytest.skip("the real Qwen2 tokenizer is not beside this checkout")
    shutil.copy(QWEN / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))
    return tmp_path


def whole(folder, messages):
    """The same conversation through transformers."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return tokenizer.apply_chat_template(
        messages, chat_template=QWEN_TEMPLATE, add_generation_prompt=True, return_dict=False
    )


def user(text, video=False):
    return {
        "role": "user",
        "content": [{"type": "video"}] * video + [{"type": "text", "text": text}],
    }


WORDS_OF_TINY = Tokenizer.from_file(str(TINY / "tokenizer.json")).get_vocab()


@given(st.lists(st.sampled_from([*WORDS_OF_TINY, "rocket", "Dragons", "狗", "ﬁre"]), max_size=9))
def test_words_that_a_word_tokenizer_lacks_are_named_as_they_were_written(words):
    words = [word for word in words if not word.startswith("<")]
    unknown = [word for word in dict.fromkeys(words) if word not in WORDS_OF_TINY]
    assert Prompt(TINY, VIDEO).unknown_words(" ".join(words)) == unknown


def test_case_and_punctuation_make_no_word_unknown_and_none_is_named_twice():
    prompt = Prompt(TINY, VIDEO)
    assert prompt.unknown_words("What COLOUR was the Circle?!") == []
    assert prompt.unknown_words("A rocket, the Rocket?") == ["Rocket"]


def test_a_tokenizer_of_bytes_knows_every_word(qwen):
    assert Prompt(qwen, 151656).unknown_words("a ᚠᚢᚦ of 狗, \U0001f680") == []


def test_a_tokenizer_is_read_once_until_its_file_is_another(tmp_path, monkeypatch):
    read = []

    def counted(content: bytes) -> Tokenizer:
        read.append(len(content))
        return from_buffer(content)

    from_buffer = Tokenizer.from_buffer
    monkeypatch.setattr(prompt_module, "Tokenizer", SimpleNamespace(from_buffer=counted))
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(TINY / name, tmp_path)
    first, again = Prompt(tmp_path, VIDEO), Prompt(tmp_path, VIDEO)
    assert first.prefix == again.prefix
    assert len(read) == 1
    words = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(words.replace('"circle"', '"roundel"'))
    assert Prompt(tmp_path, VIDEO).question("roundel") == first.question("circle")
    assert len(read) == 2


def test_prefix_video_and_suffix_are_the_models_own_template(qwen):
    prompt = Prompt(qwen, 151656)
    expected = whole(qwen, [user("What does the man do?", video=True)])
    place = expected.index(151656)
    assert prompt.prefix == expected[:place]
    assert prompt.question("What does the man do?") == expected[place + 1 :]
    assert prompt.prefix[-1] == 151652  # <|vision_start|>


def test_the_next_turn_is_what_the_template_adds(qwen):
    prompt = Prompt(qwen, 151656)
    first, answer, second = "Who is there?", "A man.", "And now?"
    expected = whole(
        qwen, [user(first, video=True), {"role": "assistant", "content": answer}, user(second)]
    )
    cached = [*prompt.prefix, 151656, *prompt.question(first), *prompt.words(answer)]
    assert cached + prompt.question(second, [(first, answer)]) == expected


def test_a_question_that_is_asked_again_is_rendered_once(monkeypatch):
    prompt, rendered = Prompt(TINY, VIDEO), []
    render = prompt._render
    monkeypatch.setattr(prompt, "_render", lambda each: rendered.append(each) or render(each))
    monkeypatch.setattr(prompt_module, "MAX_STANDING", 2)
    first = prompt.question("circle")
    prompt.question("circle").clear()  # a caller's own list
    assert prompt.question("circle") == first
    assert len(rendered) == 1
    for text in ("square", "star", "circle"):  # more than are kept
        prompt.question(text)
    assert prompt.question("circle") == first
    assert len(rendered) == 4


def test_the_tiny_template_ends_with_the_question():
    prompt = Prompt(TINY, VIDEO)
    assert prompt.question("what color was the circle?")[-1:] == prompt.words("circle")
    assert prompt.words("what color was the circle") == prompt.words("What color was the CIRCLE?")


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_question_is_refused(text):
    with pytest.raises(QuestionError, match="empty"):
        Prompt(TINY, VIDEO).question(text)


def test_control_tokens_in_a_question_are_refused():
    with pytest.raises(QuestionError, match="vision_start"):
        Prompt(TINY, VIDEO).question("hello <|vision_start|>")


def test_text_streams_in_whole_characters(qwen):
    """A character of several tokens appears when its last byte is there, and the pieces make the
    text."""
    prompt = Prompt(qwen, 151656)
    text = "né 🜚 日本 ok"
    stream, pieces = TextStream(prompt), []
    for token in prompt.words(text):
        pieces.append(stream.add(token))
        assert "�" not in pieces[-1]
    assert "".join(pieces) + stream.finish() == text == stream.text


def test_a_character_that_never_gets_whole_is_told_at_the_end(qwen):
    prompt = Prompt(qwen, 151656)
    stream = TextStream(prompt)
    assert stream.add(prompt.words("🜚")[0]) == ""
    assert stream.finish() == "�"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "is no tokenizer"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("hello"),
            "puts no <|video_pad|>",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ nothing.at.all }}"),
            "template fails",
        ),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"), "template fails"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    change(folder)
    with pytest.raises(EngineError) as caught:
        Prompt(folder, VIDEO)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- a system prompt ----


def test_a_system_prompt_is_the_templates_first_message(qwen):
    said = "You watch a gate. Say what you see."
    prompt = Prompt(qwen, 151656, said)
    system = {"role": "system", "content": said}
    expected = whole(qwen, [system, user("Who is there?", video=True)])
    place = expected.index(151656)
    assert prompt.prefix == expected[:place]
    assert prompt.question("Who is there?") == expected[place + 1 :]
    first, answer, second = "Who is there?", "A man.", "And now?"
    turns = [system, user(first, video=True), {"role": "assistant", "content": answer}]
    cached = [*prompt.prefix, 151656, *prompt.question(first), *prompt.words(answer)]
    assert cached + prompt.question(second, [(first, answer)]) == whole(
        qwen, [*turns, user(second)]
    )


def test_the_context_is_the_whole_conversation(qwen):
    prompt = Prompt(qwen, 151656)
    first, answer, second = "Who is there?", "A man.", "And now?"
    turns = [user(first, video=True), {"role": "assistant", "content": answer}, user(second)]
    assert prompt.context(second, [(first, answer)]) == whole(qwen, turns)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the system prompt '' is not text"),
        (" \n", "is not text"),
        ("a\ud800", "is not text"),
        ("be brief <|im_end|>", r"control token '<\|im_end\|>'"),
    ],
)
def test_a_system_prompt_that_cannot_be_given_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        Prompt(TINY, VIDEO, text)


def test_a_template_without_a_system_message_is_said(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'user' %}<|video_pad|>{{ m.content[-1].text }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="does not take a system prompt: leave it out"):
        Prompt(tmp_path / "model", VIDEO, "be brief")


# ---- stop texts ----

WORDS = st.text("ab.", max_size=12)


@given(st.lists(WORDS, max_size=8), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_an_answer_ends_before_the_first_stop_text_however_it_is_cut(pieces, stops):
    text = "".join(pieces)
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    stop, passed = StopText(stops), []
    for piece in pieces:
        passed.append(stop.add(piece))
        if stop.found:
            break
    passed.append(stop.finish())
    assert "".join(passed) == stop.text == (text[: min(ends)] if ends else text)
    assert stop.found == bool(ends)


@given(st.lists(WORDS, max_size=8), st.text("ab.", min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_a_stop_text(pieces, word):
    stop, given_ = StopText([word]), ""
    for piece in pieces:
        given_ += piece
        stop.add(piece)
        if stop.found:
            return
        held = given_[len(stop.text) :]
        assert len(held) < len(word)
        assert word.startswith(held)


def test_without_stop_texts_nothing_is_held_back():
    assert [StopText(()).add(piece) for piece in ("a", "", "b")] == ["a", "", "b"]
