"""Limited answers: which tokens may follow, against rules on texts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_tokenizer import ADDED, SPECIAL, VIDEO, WIDTH, save_byte_tokenizer
from support.error_lines import one_line
from support.plain_schema import SCHEMAS, obeys
from support.sizes import examples

from vicort.export.tiny.tokenizer import CHAT_TEMPLATE
from vicort.runtime.core import Constraint, Sampling
from vicort.runtime.errors import EngineError, QuestionError
from vicort.runtime.language.constraints import MAX_CHOICES, MAX_TEXT
from vicort.runtime.language.prompt import Prompt, TextStream
from vicort.runtime.language.token_choice import TokenChoice
from vicort.runtime.language.token_grammars import MAX_KEPT, TokenGrammars

ROOT = Path(__file__).parents[3]
TINY = ROOT / "export" / "tiny" / "checkpoint"
QWEN = ROOT.parent / "shared" / "qwen2-tokenizer"
ENDS = (2, 0)
SAMPLED = Sampling(temperature=1.5, top_p=0.95, top_k=40, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    video = save_byte_tokenizer(folder).token_to_id(VIDEO)
    return TokenGrammars(Prompt(folder, video), WIDTH, ENDS)


@pytest.fixture(scope="module")
def by_words():
    """The embedded model's: one token is one word."""
    prompt = Prompt(TINY, 6)
    return TokenGrammars(prompt, 120, ENDS)


def written(grammars, constraint, seed, sampling=SAMPLED, most=200):
    """The text of random logits under a constraint, and whether it came to its end."""
    mask, text = grammars.start(constraint), TextStream(grammars._prompt)
    random = np.random.default_rng(seed)
    choice, tokens = TokenChoice(Sampling(**vars(sampling) | {"seed": seed})), []
    while len(tokens) < most:
        logits = random.normal(0, 4, len(mask.allowed())).astype(np.float32)
        if mask.closed:
            break
        token = choice.choose(logits, tokens, mask.allowed())
        assert mask.allowed()[token]
        if token in ENDS:
            break
        tokens.append(token)
        mask.accept(token)
        text.add(token)
    text.finish()
    return text.text, mask.fulfilled and len(tokens) < most


@settings(max_examples=examples(60), deadline=None)
@given(SCHEMAS, st.integers(0, 1000), st.sampled_from([SAMPLED, Sampling(temperature=0.0)]))
def test_a_complete_answer_is_json_that_obeys_its_schema(by_bytes, schema, seed, sampling):
    text, complete = written(by_bytes, Constraint(json_schema=json.dumps(schema)), seed, sampling)
    if complete:
        assert obeys(json.loads(text), schema), text


def test_answers_of_small_schemas_do_come_to_their_end(by_bytes):
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
        "required": ["color", "count"],
        "additionalProperties": False,
    }
    answers = [
        written(by_bytes, Constraint(json_schema=json.dumps(schema)), seed, Sampling())
        for seed in range(10)
    ]
    assert sum(complete for _, complete in answers) >= 8
    for text, complete in answers:
        assert not complete or set(json.loads(text)) == {"color", "count"}


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from(["yes|no", "a+", "(red|blue) circle( and no)*", "[0-9]{2}:[0-9]{2}", "é?x.y"]),
    st.integers(0, 1000),
)
def test_a_complete_answer_matches_its_regular_expression(by_bytes, regex, seed):
    text, complete = written(by_bytes, Constraint(regex=regex), seed)
    if complete:
        assert re.fullmatch(regex, text), text


TEXTS = ["yes", "yes there", "the star", "there", "no", "no no", "no no no", "red circle"]


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, unique=True), st.integers(0, 1000))
def test_words_may_follow_exactly_where_some_text_goes_on_with_them(by_words, texts, seed):
    """And an answer may end exactly where one is whole."""
    mask = by_words.start(Constraint(regex="|".join(texts)))
    tokenizer, random, said = by_words._prompt.tokenizer, np.random.default_rng(seed), []
    while True:
        rest = [text.split()[len(said) :] for text in texts if text.split()[: len(said)] == said]
        expected = {tokenizer.token_to_id(words[0]) for words in rest if words}
        expected |= set(ENDS) if [] in rest else set()
        assert set(np.flatnonzero(mask.allowed()).tolist()) == expected
        assert mask.fulfilled == ([] in rest)
        assert mask.closed == (expected <= set(ENDS))
        going_on = sorted(expected - set(ENDS))
        if not going_on:
            return
        token = int(random.choice(going_on))
        said.append(tokenizer.id_to_token(token))
        mask.accept(token)


@pytest.mark.parametrize("rule", ["regex", "lark"])
def test_tokens_that_are_no_text_never_come(by_bytes, rule):
    mask = by_bytes.start(
        Constraint(**{rule: "(?s:.*)" if rule == "regex" else "start: /(?s:.*)/"})
    )
    tokenizer = by_bytes._prompt.tokenizer
    allowed = set(np.flatnonzero(mask.allowed()).tolist())
    names = {tokenizer.token_to_id(name) for name in (*SPECIAL, VIDEO, ADDED)}
    assert allowed & names == set(ENDS)  # the text may end at once
    assert max(allowed) < tokenizer.get_vocab_size() < WIDTH
    assert len(allowed) > 200


@pytest.mark.parametrize("token", ["<|im_start|>", "<[1]>", "<[440]>", "<|im_end|>"])
def test_a_grammar_cannot_ask_for_tokens_that_are_no_text(by_bytes, token):
    with pytest.raises(QuestionError, match="cannot begin"):
        by_bytes.check(Constraint(lark=f"start: {token} /a/"))


def test_a_text_that_the_model_cannot_go_on_with_is_closed_and_not_whole(by_words):
    mask = by_words.start(Constraint(regex="yes xylophone"))
    mask.accept(by_words._prompt.token_id("yes"))
    assert not mask.allowed().any()
    assert mask.closed
    assert not mask.fulfilled


def test_what_only_can_end_is_known_before_the_next_mask(by_bytes):
    mask = by_bytes.start(Constraint(regex="y|n"))
    mask.accept(by_bytes._prompt.words("y")[0])
    assert mask._allowed is None
    assert mask.closed
    assert mask.fulfilled
    assert set(np.flatnonzero(mask.allowed()).tolist()) == set(ENDS)


def test_json_is_written_in_one_line(by_bytes):
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 2}'
    for seed in range(5):
        text, _ = written(by_bytes, Constraint(json_schema=schema), seed, Sampling())
        assert "\n" not in text
        assert "  " not in text


BAD = {
    "nothing": (Constraint(), "exactly one"),
    "two rules": (Constraint(("yes",), regex="yes"), "choices and regex"),
    "no constraint": ("yes", "vicort.runtime.Constraint"),
    "one text": (Constraint("yes,no"), "tuple of texts"),
    "a number": (Constraint(("yes", 3)), "no text"),
    "an empty choice": (Constraint(("yes", "")), "is empty"),
    "a choice twice": (Constraint(("yes", "no", "yes")), "comes twice"),
    "a control token": (Constraint(("yes", "<|im_end|>")), "cannot be written"),
    "an added token": (Constraint((ADDED,)), "cannot be written"),
    "a lone surrogate": (Constraint(("\ud800",)), "no text"),
    "many choices": (Constraint(tuple(map(str, range(MAX_CHOICES + 1)))), "at most"),
    "an empty expression": (Constraint(regex=""), "is empty"),
    "an open group": (Constraint(regex="(yes"), "unclosed group"),
    "look-ahead": (Constraint(regex="(?=a)b"), "look-around"),
    "a reference": (Constraint(regex=r"(a)\1"), "backreferences"),
    "a long expression": (Constraint(regex="a" * (MAX_TEXT + 1)), "at most"),
    "deep groups": (Constraint(regex="(" * 5000 + "a" + ")" * 5000), "refused"),
    "no JSON": (Constraint(json_schema="{"), "refused"),
    "an object": (Constraint(json_schema={"type": "null"}), "no text"),
    "an unknown type": (Constraint(json_schema='{"type": "bool"}'), "bool"),
    "an unknown keyword": (Constraint(json_schema='{"not": {}}'), "not"),
    "an empty range": (Constraint(json_schema='{"type":"integer","minimum":3,"maximum":2}'), "3"),
    "deep JSON": (Constraint(json_schema='{"items":' * 300 + "1" + "}" * 300), "refused"),
    "a schema elsewhere": (Constraint(json_schema='{"$ref": "https://localhost/a"}'), "retriev"),
    "a schema of a file": (Constraint(json_schema='{"$ref": "file:///etc/passwd"}'), "retriev"),
    "no rule": (Constraint(lark='a: "b"'), "start"),
    "an unknown name": (Constraint(lark="start: a"), "unknown name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_constraint_that_is_none_is_refused_in_one_line(by_bytes, name):
    constraint, said = BAD[name]
    with pytest.raises(QuestionError, match=re.escape(said)) as caught:
        by_bytes.check(constraint)
    one_line(caught.value)


def test_a_choice_that_the_tokenizer_does_not_give_back_is_refused(by_words):
    for choice, given_back in (("Yes", "'yes'"), ("xylophone", "''"), ("no.", "'no'")):
        with pytest.raises(QuestionError, match=given_back):
            by_words.check(Constraint(("yes", choice)))
    by_words.check(Constraint(("no", "none", "no no")))


def test_json_that_a_model_of_words_cannot_write_is_refused(by_words):
    with pytest.raises(QuestionError, match="cannot begin"):
        by_words.check(Constraint(json_schema='{"type": "boolean"}'))


def test_a_model_without_an_end_can_have_no_constraint_but_choices(by_words):
    endless = TokenGrammars(by_words._prompt, 120, ())
    endless.check(Constraint(("yes", "no")))
    with pytest.raises(EngineError, match="no token that ends"):
        endless.check(Constraint(regex="yes"))


def test_an_expression_without_an_end_is_taken_and_cut(by_bytes):
    assert written(by_bytes, Constraint(regex="(?s:.+)x{1000}"), 1, most=30)[1] is False


def test_equal_constraints_are_compiled_once_and_the_oldest_are_forgotten(by_bytes):
    grammars = TokenGrammars(by_bytes._prompt, WIDTH, ENDS)
    first = grammars._grammar(Constraint(regex="yes|no"))
    assert grammars._grammar(Constraint(regex="yes|no")) is first
    for number in range(MAX_KEPT):
        grammars.check(Constraint((f"{number}",)))
    assert len(grammars._kept) == MAX_KEPT
    assert grammars._grammar(Constraint(regex="yes|no")) is not first


def test_answers_at_once_do_not_disturb_each_other(by_bytes):
    one, other = (by_bytes.start(Constraint(regex="ab|cd")) for _ in range(2))
    a, c = (by_bytes._prompt.words(letter)[0] for letter in "ac")
    one.accept(a)
    other.accept(c)
    decode = by_bytes._prompt.decode
    assert [decode([each]) for each in np.flatnonzero(one.allowed())] == ["b"]
    assert [decode([each]) for each in np.flatnonzero(other.allowed())] == ["d"]


@pytest.mark.slow
def test_with_a_vocabulary_of_a_published_model(tmp_path):
    """Padded to the width of its logits."""
    if not QWEN.is_dir():
        pytest.skip("the real Qwen2 tokenizer is not beside this checkout")
    shutil.copy(QWEN / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    prompt = Prompt(tmp_path, 151656)
    grammars = TokenGrammars(prompt, 151936, (151645, 151643))
    allowed = np.flatnonzero(grammars.start(Constraint(regex="(?s:.*)")).allowed())
    known = {token for name, token in prompt.tokenizer.get_vocab().items()}
    assert set(allowed.tolist()) <= known
    assert set(allowed.tolist()) & prompt.controls == {151645, 151643}
    mask = grammars.start(Constraint(regex="yes|no|none"))
    texts = [prompt.decode([token]) for token in np.flatnonzero(mask.allowed())]
    assert set(texts) == {"y", "ye", "yes", "n", "no", "non", "none"}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    mask, text = grammars.start(Constraint(json_schema=json.dumps(schema))), '{"n": 12}'
    for token in prompt.words(text):
        assert mask.allowed()[token]
        mask.accept(token)
    assert mask.fulfilled
