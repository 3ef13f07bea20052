"""The scripts of ``fedsim completion``, in the shells that read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedsim.cli import main as cli


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", shell])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["com"], ["compare", "completion"]),
        (["ru"], ["run", "runs"]),
        (["run", "exp.toml", "--tr"], ["--track"]),
        (["compare", "study.toml", "--se"], ["--set", "--seeds"]),
        (["run", "ex"], ["exp.toml"]),
        (["run", "exp.toml", "--out", "res"], ["results"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash_completes_commands_options_and_files(
    words: list[str], completions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exp.toml").write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "completion.bash").write_text(script("bash", capsys))
    typed = " ".join(f"'{word}'" for word in ["fedsim", *words])
    ask = f"""
        eval "$(cat completion.bash)"
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}
        set -- $(complete -p fedsim)
        while [ "$1" != -F ]; do shift; done
        "$2"; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split()) == sorted(completions)
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_accepts_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "_fedsim").write_text(script("zsh", capsys))
    subprocess.run(["zsh", "-n", str(tmp_path / "_fedsim")], check=True, timeout=60)


def test_the_script_of_zsh_has_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    written = script("zsh", capsys)
    assert written.startswith("#compdef fedsim\n")
    assert all(f"\n    {name}:'" in written for name in cli.COMMANDS)
