"""Tokenizers of strangers: what their library fails, panics or aborts at is refused in one line,
and nothing else is printed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vicort.runtime.errors import EngineError
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.tokenizer_parts import check_parts

TINY = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"
VIDEO = 6
LETTERS = {"a": 0, "b": 1, "ab": 2, "é": 3}
# parts of a tokenizer.json that its library was seen to panic at, or worse
PANICS = {
    "precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9h"}},
    "no charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "stripped ends": {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 3}},
    "long prefix": {
        "model": {"type": "BPE", "continuing_subword_prefix": "####", "vocab": LETTERS,
                  "merges": [["a", "b"]]}
    },
    "half a letter": {
        "model": {"type": "BPE", "continuing_subword_prefix": "a", "vocab": LETTERS,
                  "merges": [["a", "é"]]}
    },
    "words without end": {
        "model": {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 2**40, "vocab": LETTERS}
    },
}  # fmt: skip
# what it reports as an error, at loading or at the first text
ERRORS = {
    "no unknown word": {"model": {"type": "WordLevel", "vocab": LETTERS, "unk_token": "none"}},
    "no unknown piece": {"model": {"type": "Unigram", "vocab": []}},
    "a merge of nothing": {"model": {"type": "BPE", "vocab": LETTERS, "merges": [["a", "zz"]]}},
    "no unknown letter": {"model": {"type": "BPE", "unk_token": "no", "vocab": LETTERS,
                                    "merges": []}},
    "no video": {"added_tokens": []},
}  # fmt: skip


def folder_of(tmp_path: Path, parts: dict) -> Path:
    shutil.copytree(TINY, tmp_path / "set")
    path = tmp_path / "set" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return tmp_path / "set"


@pytest.mark.parametrize("parts", (PANICS | ERRORS).values(), ids=PANICS | ERRORS)
def test_a_tokenizer_that_fails_is_refused_in_one_line(tmp_path, parts, capfd) -> None:
    with pytest.raises(EngineError) as caught:
        Prompt(folder_of(tmp_path, parts), VIDEO)
    assert str(caught.value).isprintable()
    assert "tokenizer" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_the_parts_that_are_refused_are_those_that_the_library_fails_at(tmp_path) -> None:
    """Half a letter ends the whole program: this is why it is looked for in advance."""
    path = folder_of(tmp_path, PANICS["half a letter"]) / "tokenizer.json"
    program = f"from tokenizers import Tokenizer; Tokenizer.from_file({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode < 0


@pytest.mark.parametrize("way", ["escaped", "twice"])
def test_a_part_cannot_be_hidden(way) -> None:
    written = '{"type": "Precompiled", "precompiled_charsmap": ""}'
    if way == "escaped":
        written = written.replace("Pre", "\\u0050re")
    else:
        written = written.replace("}", ', "type": "NFC"}')
    with pytest.raises(ValueError, match="precompiled"):
        check_parts(written.encode())


@given(
    st.lists(st.text("abé", min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["", "#", "##"]),
)
def test_merges_that_continue_words_are_read(seconds, prefix) -> None:
    """As the library reads them: each merge of a letter and a piece that has the prefix."""
    pieces = [*LETTERS, *(prefix + second for second in seconds), *("a" + s for s in seconds)]
    model = {
        "type": "BPE",
        "continuing_subword_prefix": prefix,
        "vocab": {piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
        "merges": [["a", prefix + second] for second in dict.fromkeys(seconds)],
    }
    content = json.dumps(json.loads((TINY / "tokenizer.json").read_text()) | {"model": model})
    check_parts(content.encode())
    assert Tokenizer.from_str(content).get_vocab_size() > 0
