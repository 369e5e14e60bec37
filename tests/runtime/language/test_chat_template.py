"""Chat templates against transformers: the whole prompt, from files of many shapes."""

from __future__ import annotations

import functools
import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sizes import examples
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vicort.runtime.errors import EngineError, QuestionError
from vicort.runtime.language.bounded_jinja import MAX_SECONDS
from vicort.runtime.language.chat_template import ChatTemplate
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.template_files import find_template, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"
VIDEO_TOKEN = "<|video_pad|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += (VIDEO_TOKEN,)
UNFLAGGED = "<tool_call>"  # an added token that is not flagged as special, as in Qwen's tokenizer
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VIDEO = len(LETTERS) + SPECIAL.index(VIDEO_TOKEN)
CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": None,
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
    "pad_token": "<|endoftext|>",
    "image_token": "<|vision_end|>",
}

PARTS = (
    "{% macro parts(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in part %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)


def chat(start: str = "", end: str = "<|im_end|>\n", body: str = "{{ parts(m.content) }}") -> str:
    """A template whose turns have that beginning, end and body."""
    return (
        f"{PARTS}{start}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{body}{end}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


WITH_PARTS = {
    "plain": chat(),
    "special tokens": chat("{{ bos_token }}{{ image_token }}", "{{ eos_token }}{{ pad_token }}"),
    "tokens that there are not": chat("{{ sep_token is defined }}{{ unk_token }}"),
    "generation": chat(
        body="{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ parts(m.content) }}{% endif %}"
    ),
    "scope of generation": chat(
        "{% set a = 1 %}{% generation %}{% set a = 2 %}{% endgeneration %}{{ a }}"
    ),
    "dates": chat("{{ strftime_now('%d %B %Y') }}"),
    "tojson": chat("{{ {'a': 'é<b>&\"', 'b': [1, none]} | tojson }}"),
    "tojson with parameters": chat(
        "{{ {'b': 'é', 'a': {'c': [1]}} | tojson(ensure_ascii=true, indent=2, sort_keys=true) }}"
        "{{ [1, 2] | tojson(separators=(',', ':')) }}"
    ),
    "tools and documents": chat(
        "{{ tools is defined }}{{ tools is none }}{{ documents }}{{ other is defined }}"
        "{% if tools %}never{% endif %}"
    ),
    "loop controls": chat(
        "{% for n in range(9) %}{% if n == 1 %}{% continue %}{% endif %}{% if n > 3 %}{% break %}"
        "{% endif %}{{ n }}{% endfor %}"
    ),
    "namespace": chat(
        "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}{{ dict(a=1).items() | list }}{{ dict.fromkeys('ab', 1) }}"
    ),
    "loop variables": chat(
        end="{{ loop.index }}/{{ loop.length }}{{ loop.previtem.role if not loop.first }}"
        "{{ loop.revindex0 }}"
        "{% if not loop.last %}{{ loop.nextitem.role }}{% endif %}<|im_end|>"
    ),
    "recursion": chat(
        "{% for n in [[1, [2]], [3]] recursive %}{% if n is iterable %}({{ loop(n) }})"
        "{% else %}{{ n }}{{ loop.depth }}{% endif %}{% endfor %}"
    ),
    "trimmed": chat(body="{{ parts(m.content) | trim }}"),
    "white space": "\n  {%- for m in messages %}\n  {{- '<|im_start|>' + m['role'] }}\n"
    "    {% for p in m.content if m.content is not string %}\n"
    "  {{ p.text if p.type == 'text' else '<|video_pad|>' }}\n    {% else %}\n{{ m.content }}"
    "    {% endfor %}\n  {%- endfor %}\n\n",
    "text functions": chat(
        "{{ 'a-b'.split('-')[-1] }}{{ '%s|%05.1f' % ('x', 2) }}{{ '{:>4}{a}'.format(1, a=2) }}"
        "{{ 'ab' * 3 }}{{ 2 ** 9 }}{{ ['a', 'b'] | join(', ') }}{{ 'a' ~ 1 ~ none }}"
        "{{ ('x', 'y') + ('z',) }}{{ 'long words' | indent(2, true) | replace('o', '0') }}"
        "{{ [3, 1] | sort | first }}{{ messages | map(attribute='role') | list }}"
        "{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ ' x'.lstrip() }}"
    ),
    "refuses odd turns": chat(
        "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('odd') }}{% endif %}{% endfor %}"
    ),
    "video first whatever the order": chat(
        body="{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content if "
        "p.type == 'video' %}<|video_pad|>{% endfor %}{% for p in m.content if p.type == 'text' %}"
        "{{ p.text }}{% endfor %}{% endif %}"
    ),
}
ONE_TEXT = {
    "one text": chat(body="{{ m['content'] }}"),
    "joined": chat(body="{{ m.content + '' }}"),
    "trimmed text": chat(body="{{ m.content | trim }}"),
    "text method": chat(body="{{ m.content.strip() }}"),
}
ALL_PARTS = {
    "parts of all": chat(
        body="{% for p in m.content %}{{ '<|video_pad|>' if p.type == 'video' else p.text }}"
        "{% endfor %}"
    )
}
TEXT_FIRST = {
    "first part": chat(
        body="{% if m.content | length > 1 %}<|video_pad|>{% endif %}{{ m.content[0].text }}"
    )
}
# what these write of earlier turns does not depend on later ones, and is not stripped
ONE_TEMPLATE_FOR_ALL_TURNS = ("plain", "special tokens", "generation", "dates", "tojson", "joined")
TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n <>|{}%\"'"), max_size=30
).filter(lambda text: text.strip() and "<|" not in text and UNFLAGGED not in text)


def make_tokenizer() -> Tokenizer:
    """One token a byte, and control tokens."""
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.normalizer = normalizers.NFC()  # as that of the class in transformers
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(UNFLAGGED, normalized=False, special=False)])
    return tokenizer


def write_folder(folder: Path, template: object = None, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | config))
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)
    return folder


def text(value: str) -> list[dict]:
    return [{"type": "text", "text": value}]


def messages(kind: str, turns: list[tuple[str, str]], system: str | None) -> list[dict]:
    """turns: question and answer; the last answer is still to come."""
    video = {"type": "video"}
    told = text if kind in ("all parts", "text first") else str
    found = [{"role": "system", "content": told(system)}] if system else []
    for number, (question, answer) in enumerate(turns):
        asked: object = [*([video] if number == 0 else []), *text(question)]
        if kind == "text first":
            asked = [*text(question), *([video] if number == 0 else [])]
        elif kind == "one text":
            asked = "<|vision_start|><|video_pad|><|vision_end|>" * (number == 0) + question
        found.append({"role": "user", "content": asked})
        if answer:
            found.append({"role": "assistant", "content": told(answer)})
    return found


@functools.cache
def loaded(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def by_transformers(folder: Path, conversation: list[dict]) -> list[int]:
    return loaded(folder).apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )


KINDS = {
    **{(name, "parts"): template for name, template in WITH_PARTS.items()},
    **{(name, "one text"): template for name, template in ONE_TEXT.items()},
    **{(name, "all parts"): template for name, template in ALL_PARTS.items()},
    **{(name, "text first"): template for name, template in TEXT_FIRST.items()},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model's folder for each template."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: write_folder(root / name.replace(" ", "-"), template)
        for (name, _), template in KINDS.items()
    }


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=lambda value: value)
@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(question=TEXTS, answer=TEXTS, second=TEXTS, system=st.none() | TEXTS)
def test_the_whole_prompt_is_that_of_transformers(
    folders: dict[str, Path],
    name: str,
    kind: str,
    question: str,
    answer: str,
    second: str,
    system: str | None,
) -> None:
    folder = folders[name]
    prompt = Prompt(folder, VIDEO, system)
    cached = [*prompt.prefix, VIDEO, *prompt.question(question)]
    assert cached == by_transformers(folder, messages(kind, [(question, "")], system))
    turns = [(question, answer), (second, "")]
    expected = by_transformers(folder, messages(kind, turns, system))
    assert prompt.context(second, turns[:1]) == expected
    if name in ONE_TEMPLATE_FOR_ALL_TURNS:
        added = prompt.question(second, turns[:1])
        assert [*cached, *prompt.words(answer), *added] == expected


@pytest.mark.parametrize("answer", ["A man.", " A man.\n", "A man. "])
def test_a_conversation_goes_on_where_a_template_strips_answers(tmp_path, answer):
    folder = write_folder(tmp_path / "model", WITH_PARTS["trimmed"])
    prompt = Prompt(folder, VIDEO)
    turns = [("Who?", answer), ("And now?", "")]
    added = prompt.question("And now?", turns[:1])
    assert added == by_transformers(folder, messages("parts", turns, None))[-len(added) :]
    assert added[0] == prompt.token_id("<|im_end|>")


# ---- which file a template and its variables are from ----


def processor_template(folder: Path) -> str | None:
    """As transformers' processors load it, and for want of one there, as its tokenizers do."""
    from transformers.processing_utils import ProcessorMixin

    found = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template")
    found = loaded(folder).chat_template if found is None else found
    return found["default"] if isinstance(found, dict) else found


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]
FILES = {
    "processor_config.json": json.dumps({"chat_template": "processor"}),
    "chat_template.json": json.dumps({"chat_template": "legacy"}),
    "chat_template.jinja": "jinja",
    "tokenizer_config.json": json.dumps(CONFIG | {"chat_template": "tokenizer"}),
}


@pytest.mark.parametrize("mask", range(1, 16))
def test_the_file_of_a_template_is_that_of_transformers(tmp_path: Path, mask: int) -> None:
    folder = write_folder(tmp_path / "model")
    for number, (name, content) in enumerate(FILES.items()):
        if mask >> number & 1:
            (folder / name).write_text(content)
    assert find_template(folder) == processor_template(folder)


def test_a_list_and_a_folder_of_named_templates(tmp_path: Path) -> None:
    listed = write_folder(tmp_path / "list", chat_template=NAMED)
    assert find_template(listed) == processor_template(listed) == "list"
    folder = write_folder(tmp_path / "folder", "jinja", chat_template="tokenizer")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert find_template(folder) == processor_template(folder) == "jinja"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match=r"no chat template named 'default', only \['tool_use'\]"):
        find_template(folder)


@pytest.mark.parametrize("extra", [None, {"audio_token": SPECIAL[2]}, {"bos_token": SPECIAL[2]}])
@pytest.mark.parametrize("token", [SPECIAL[0], {"__type": "AddedToken", "content": SPECIAL[0]}])
@pytest.mark.parametrize("name", ["bos_token", "audio_token"])
def test_which_of_two_files_names_a_special_token(
    tmp_path: Path, name: str, token: str | dict, extra: dict | None
) -> None:
    folder = write_folder(tmp_path / "model")
    content = {name: token, "extra_special_tokens": extra, "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (folder / "special_tokens_map.json").write_text(json.dumps({name: SPECIAL[1]}))
    assert special_tokens(folder) == loaded(folder).special_tokens_map


TOKENS = st.none() | st.sampled_from(
    [*SPECIAL, {"__type": "AddedToken", "content": "<|im_end|>", "special": True}]
)
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "audio_token")


@settings(max_examples=examples(180), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    config=st.dictionaries(st.sampled_from(NAMES), TOKENS),
    older=st.none() | st.dictionaries(st.sampled_from(NAMES), st.sampled_from(SPECIAL)),
    extra=st.none()
    | st.just([SPECIAL[0]])
    | st.dictionaries(
        st.sampled_from(["video_token", "audio_token", "eos_token"]), st.sampled_from(SPECIAL)
    ),
    decoder=st.booleans(),
    kind=st.sampled_from(["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"]),
)
def test_variables_are_the_special_tokens_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    config: dict,
    older: dict | None,
    extra: object,
    decoder: bool,
    kind: str,
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("model"))
    content = config | {"tokenizer_class": kind, "extra_special_tokens": extra}
    if decoder:
        content["added_tokens_decoder"] = {}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    if older is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(older))
    assert special_tokens(folder) == loaded(folder).special_tokens_map


# ---- what cannot be asked ----


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            chat(
                body="{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
                "{% for p in m.content if p.type == 'video' %}<|video_pad|>{% endfor %}"
            ),
            "puts the question before the video",
        ),
        (
            chat(body="{{ m.content[0].text if m.content is not string }}<|video_pad|>"),
            "leaves out the question",
        ),
        (chat(body="<|video_pad|>"), "leaves out the question"),
        (chat(body="{{ parts(m.content) }}{{ parts(m.content) }}"), "puts several"),
        (chat(body="hello"), "puts no"),
    ],
)
def test_a_template_that_a_stream_cannot_use_is_refused(
    tmp_path: Path, template: str, words: str
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        Prompt(write_folder(tmp_path / "model", template), VIDEO)
    assert "\n" not in str(caught.value)


def test_a_beginning_that_depends_on_the_question_is_refused(tmp_path: Path) -> None:
    template = chat("{{ parts(messages[-1].content) | length }}")
    prompt = Prompt(write_folder(tmp_path / "model", template), VIDEO)
    with pytest.raises(QuestionError, match="another beginning for this question"):
        prompt.question("who?")


@pytest.mark.parametrize("token", [*SPECIAL, UNFLAGGED])
def test_no_question_holds_a_control_token(tmp_path: Path, token: str) -> None:
    prompt = Prompt(write_folder(tmp_path / "model", chat()), VIDEO)
    with pytest.raises(QuestionError, match="control token"):
        prompt.question(f"what is {token} there?")
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
    controls = [prompt.token_id(each) for each in (*SPECIAL, UNFLAGGED)]
    counts = [
        [tokens.count(control) for control in controls]
        for tokens in (prompt.question(f"what is {wide} there?"), prompt.question("x"))
    ]
    assert counts[0] == counts[1]


def test_full_width_letters_do_not_become_control_tokens() -> None:
    """The embedded model's tokenizer makes them narrow."""
    prompt = Prompt(TINY, 6)
    with pytest.raises(QuestionError, match=r"control token '<\|im_end\|>'"):
        prompt.question("what is there now \uff1c|im_end|\uff1e")
    assert prompt.question("what is a zebra")  # an unknown word is no control token


def test_what_a_tokenizer_cuts_and_fills_is_not_taken_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", chat())
    plain = Prompt(folder, VIDEO).question("a question of some length")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert Prompt(folder, VIDEO).question("a question of some length") == plain


# ---- limits ----

DOUBLED = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = DOUBLE %}{% endfor %}"
)
BOMBS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "one range nested": "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% for k in r %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "calls": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}"
    "{{ a(99) }}",
    "repetition": "{{ 'a' * 10**10 }}",
    "repetition of a list": "{{ ([0] * 10**10) | length }}",
    "constant": "{{ 'a' * 10000000000 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}",
    "sum": DOUBLED.replace("DOUBLE", "ns.x + ns.x"),
    "joined": DOUBLED.replace("DOUBLE", "ns.x ~ ns.x"),
    "list in a list": DOUBLED.replace("DOUBLE", "[ns.x, ns.x]") + "{{ ns.x }}",
    "tuple": DOUBLED.replace("DOUBLE", "(ns.x, ns.x)") + "{{ ns.x == ns.x }}",
    "dictionary": DOUBLED.replace("DOUBLE", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}"
    "{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "replaced": DOUBLED.replace("DOUBLE", "ns.x.replace('a', ns.x)"),
    "filter replace": DOUBLED.replace("DOUBLE", "ns.x | replace('a', ns.x)"),
    "translated": DOUBLED.replace("DOUBLE", "ns.x.translate({97: ns.x})"),
    "joined list": DOUBLED.replace("DOUBLE", "ns.x.join([ns.x, ns.x, ns.x])"),
    "centre": "{{ 'a' | center(10**9) }}",
    "fill": "{{ 'a'.ljust(10**9) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "filter format": "{{ '%999999999d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format of a format": "{{ '{:{w}}'.format(1, w='999999999') }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "indent": "{{ ('\n' * 1000000) | indent(1000000) }}",
    "json": "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}"
    "{% for i in range(99999) %}{{ ns.x | tojson(indent=1000) }}{% endfor %}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "blocks": "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    "depth": "{{ " + "[" * 500 + "]" * 500 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_without_end_costs_a_line(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(EngineError, match="chat template fails") as caught:
        ChatTemplate(BOMBS[name], {}).render([])
    assert time.thread_time() - start < 2 * MAX_SECONDS
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB


def test_a_long_conversation_is_within_the_limits(tmp_path: Path) -> None:
    prompt = Prompt(write_folder(tmp_path / "model", WITH_PARTS["namespace"]), VIDEO, "x" * 20_000)
    turns = [(f"question {i} " * 20, f"answer {i} " * 20) for i in range(400)]
    assert prompt.context("x" * 60_000, turns)


def test_a_tokenizer_whose_expression_takes_too_long_costs_a_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", chat())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match="tokenizer fails"):
        Prompt(folder, VIDEO).question("a" * 50 + "!")


def test_a_tokenizer_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", chat())
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(EngineError, match="at most 67108864 are allowed"):
        Prompt(folder, VIDEO)
