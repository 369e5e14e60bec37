"""The documents: links lead somewhere, names exist, and code blocks run.

A `python` or `sh` block is run with the embedded model, the fixture video as `clip.mp4` and a
`questions.jsonl`, unless a comment `<!-- not run: WHY -->` stands before it.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from test_house import FLOORS

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
READMES = [ROOT / "benchmarks" / "README.md", ROOT / "export" / "tiny" / "README.md"]
BLOCK = re.compile(r"(<!-- not run:[^>]*-->\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def tool(name):
    """A script of docs/tools as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links, cli = tool("links"), tool("cli")
COMMANDS = cli.COMMANDS


def blocks(language):
    """(page and number, whether it is run, text) of every block of a language."""
    return [
        pytest.param(not skipped, text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (skipped, kind, text) in enumerate(BLOCK.findall(page.read_text()), 1)
        if kind == language
    ]


def relative(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def desk(tmp_path, monkeypatch, build_tiny):
    """A folder in which the documents' examples work."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "tiny-fp32-openvino").symlink_to(build_tiny("openvino"))
    (tmp_path / "clip.mp4").symlink_to(FIXTURES / "shapes.mp4")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    question = {"at": 4, "question": "what is there now?", "id": "a"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", links.pages(), ids=relative)
def test_links_lead_to_files_and_headings(page):
    assert list(links.broken_links(page)) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](page.md#one-two) [d](gone.md)\n")
    assert [line.split(": ")[1].split(" ")[0] for line in links.broken_links(page)] == [
        "#three",
        "gone.md",
    ]


def test_the_readme_fits_on_a_few_screens():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_text_has_at_most_100_columns(page):
    """Tables, which Markdown cannot wrap, excepted."""
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_the_page_of_options_is_what_the_parsers_say():
    assert cli.PAGE.read_text() == cli.page(), "docs/cli.md is out of date: run `make docs`"


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=relative)
def test_files_and_modules_that_are_named_exist(page):
    text = page.read_text()
    folders = "runtime|export|configs|benchmarks|capi|tests|docs"
    names = re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]*\w\.\w+|(?:{folders})/[\w/-]+/)", text)
    assert [name for name in names if not (ROOT / name).exists()] == []
    modules = re.findall(r"python -m vicort\.([\w.]+)", text)
    paths = [ROOT / Path(*name.split(".")) for name in modules]
    assert [path for path in paths if not (path.with_suffix(".py").exists() or path.is_dir())] == []


def test_the_architecture_page_shows_every_room_on_its_floor():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.*?) \|", text, re.MULTILINE)
    shown = {
        name: int(floor) for floor, cell in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)
    }
    assert shown == FLOORS


def test_classes_and_methods_on_the_architecture_page_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)*|\w+_in_stream|\w+_rerun)`", text)
    code = "".join(path.read_text() for path in (ROOT / "runtime").rglob("*.py"))
    defined = set(re.findall(r"^ *(?:async )?(?:class|def) (\w+)|^(\w+) = ", code, re.MULTILINE))
    known = {name for pair in defined for name in pair}
    parts = {part for name in names for part in name.split(".")}
    assert len(parts) > 20
    assert parts - known == set()


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / ".github").rglob("*.md")], ids=relative)
def test_targets_of_make_exist(page):
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = re.findall(r"(?:^ *|`)make ([a-z -]+?)(?=$|`|  |&| [A-Z#])", page.read_text(), re.M)
    assert {word for call in calls for word in call.split()} - there == set()


def options(parser):
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options(child) for child in cli.subcommands(parser).values()))


def commands(text):
    """The calls of vicort's commands in a block, as words."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words and words[0] in COMMANDS]


@pytest.mark.parametrize(("runs", "text"), blocks("sh"))
def test_options_in_shell_blocks_exist(runs, text):
    for command, *words in commands(text):
        named = {word for word in words if word.startswith("--")}
        assert named <= options(cli.find_parser(command))


# Runs every example in one process, since loading the engines' libraries takes longer than they do.
DRIVER = """
import json, sys
from vicort.runtime.cli.run import main

for name, example in json.load(sys.stdin):
    print(f"{name}:", file=sys.stderr, flush=True)
    if isinstance(example, str):
        exec(compile(example, name, "exec"), {"__name__": "__main__"})
    elif main(example):
        sys.exit(f"vicort-run failed: {example}")
"""


def test_python_and_shell_blocks_run(desk, tiny_engines):
    examples = []
    for block in blocks("sh"):
        for command, *words in commands(block.values[1]) if block.values[0] else []:
            assert command == "vicort-run", f"{block.id}: say `<!-- not run: WHY -->` before it"
            examples.append((block.id, [*words, "--engine-dir", str(tiny_engines)]))
    examples += [(block.id, block.values[1]) for block in blocks("python") if block.values[0]]
    assert len(examples) >= 6
    done = run("-c", DRIVER, input=json.dumps(examples))
    assert done.returncode == 0, done.stderr
    assert "white" in done.stdout


@pytest.mark.parametrize(("runs", "text"), blocks("json"))
def test_json_blocks_are_json(runs, text):
    for line in text.splitlines():
        json.loads(line)


def run(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = run("-m", "vicort.runtime.cli.run", "--version")
    assert done.stdout == f"vicort {project['version']}\n" == f"vicort {version('vicort')}\n"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    if shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    subprocess.run(["make", "types"], cwd=ROOT, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "architecture.html").exists()
