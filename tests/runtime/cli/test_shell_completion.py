"""`--print-completion`: the scripts, and one of them in a real bash."""

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from vicort.runtime.cli import run
from vicort.runtime.cli.writers import WRITERS
from vicort.runtime.shell_completion import SHELLS, add_completion_option

COMMANDS = sorted(
    script.name for script in entry_points(group="console_scripts") if script.name[:7] == "vicort-"
)
# what bash does when Tab is pressed after the words
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\).*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def printed(command, shell, capsys):
    (script,) = entry_points(group="console_scripts", name=command)
    with pytest.raises(SystemExit) as ended:
        script.load()(["--print-completion", shell])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.fixture
def press_tab(tmp_path, capsys):
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    pytest.importorskip("shtab", reason="shtab is not installed: pip install '.[completion]'")

    def press(*words):
        script = tmp_path / "script"
        script.write_text(printed(words[0], "bash", capsys))
        (tmp_path / "clip.mp4").touch()
        (tmp_path / "engines").mkdir(exist_ok=True)
        done = subprocess.run(
            ["bash", "-c", PRESS_TAB, "-", script, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return press


def test_bash_completes_options(press_tab):
    assert press_tab("vicort-run", "--sys") == ["--system", "--system-prompt"]
    assert press_tab("vicort-run", "clip.mp4", "--repeti") == ["--repetition-penalty"]
    assert press_tab("vicort-build", "tiny", "--prec") == ["--precision"]


def test_bash_completes_choices(press_tab):
    assert press_tab("vicort-run", "--format", "") == list(WRITERS)
    assert press_tab("vicort-run", "--on-lag", "d") == ["drop-oldest"]
    assert press_tab("vicort-build", "--backend", "open") == ["openvino"]
    assert "shapestream" in press_tab("vicort-eval", "sh")


def test_bash_completes_files_and_folders(press_tab):
    assert press_tab("vicort-run", "cl") == ["clip.mp4"]
    assert press_tab("vicort-run", "--trace", "cl") == ["clip.mp4"]
    assert press_tab("vicort-run", "--engine-dir", "e") == ["engines"]
    assert press_tab("vicort-run", "--engine-dir", "cl") == [], "a file is no folder"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_every_script(command, shell, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed: pip install '.[completion]'")
    script = printed(command, shell, capsys)
    assert command in script
    assert "help" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_without_shtab_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run.main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "vicort-run: --print-completion bash needs shtab, which is not installed: run `pip install "
        "shtab`\n"
    )


def test_an_unknown_shell_is_one_line(capsys):
    assert run.main(["--print-completion", "tcsh"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_a_normal_run_has_no_trace_of_it():
    parser = argparse.ArgumentParser()

    add_completion_option(parser)
    assert vars(parser.parse_args([])) == {}
