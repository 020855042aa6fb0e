"""The command line: what it says, its exit codes, and that no verb pays for a room that it does not use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xgenvideo import __version__, cli
from xgenvideo.cli import verbs
from xgenvideo.errors import MissingExtra, TrainError

VERBS = ["audit", "curate", "demo", "evaluate", "export", "generate", "plan", "recipes", "search", "serve", "train"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the last line on stderr of a command that is refused; no traceback, nothing on stdout."""
    code = cli.main(arguments)
    printed = capsys.readouterr()
    assert code != 0
    assert printed.out == ""
    assert "Traceback" not in printed.err
    line = printed.err.splitlines()[-1]
    assert line.startswith(f"xgv {arguments[0]}: ")
    return code, line


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "from xgenvideo.cli import main\n"
        "heavy = {'torch', 'numpy', 'transformers', 'cv2'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        "main(['--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
    for verb in VERBS:
        assert f"\n    {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"usage: xgv {verb}" in capsys.readouterr().out


def test_help_and_recipes_load_no_torch() -> None:
    code = "import sys; from xgenvideo.cli import main; main(['recipes', 'tiny']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"xgv {__version__}\n"


def test_no_verb_or_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["audit", "x", "y=1"], ["recipes", "tiny", "--fast"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
    assert "train" in capsys.readouterr().err


def test_recipes_lists_all_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    text = capsys.readouterr().out
    for word in ("tiny", "one_gpu", "video_30b", "Cost:"):
        assert word in text


def test_a_recipe_prints_as_json_with_its_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "tiny", "train.steps=7"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["steps"] == 7


def test_overrides_may_stand_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny", "train.steps=3", "--json", "train.global_batch_pairs=64"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["steps"], values["global_batch_pairs"]) == (3, 64)


@pytest.mark.parametrize("verb", ["plan", "recipes", "train"])
def test_a_wrong_setting_is_one_line_with_the_cure(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")] if verb == "train" else []
    code, line = fails(capsys, verb, "huge", *out)
    assert (code, line) == (2, f"xgv {verb}: recipe = 'huge': no such recipe. Valid: tiny, one_gpu, video_30b.")
    code, line = fails(capsys, verb, "tiny", "train.precision=fp8", *out)
    assert (code, line) == (2, f"xgv {verb}: train.precision = 'fp8': no such precision. Valid: fp32, bf16, fp64.")
    assert not (tmp_path / "run").exists()


def test_serve_refuses_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, "serve", "release", "--port", "99999")
    assert (code, line) == (2, "xgv serve: --port = 99999: must be from 0 (any that is free) to 65535.")


def test_plan_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, "plan", "video_30b", "--gpus", "33")
    assert code == 2
    assert "--gpus = 33" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TrainError("this needs several processes"), 1, "xgv audit: this needs several processes"),
        (MissingExtra("rapidocr", "curate"), 3, "xgv audit: This needs the package rapidocr."),
        (KeyboardInterrupt(), 130, "xgv audit: interrupted"),
        (TrainError("two\nlines"), 1, "xgv audit: two lines"),
        (PermissionError(13, "Permission denied", "/x"), 1, "xgv audit: /x: Permission denied; mend that"),
    ],
)
def test_errors_become_one_line_and_their_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(parsed: object) -> None:
        raise error

    monkeypatch.setattr(verbs, "run", fail)
    found, printed = fails(capsys, "audit", "x")
    assert found == code
    assert printed.startswith(line)


def test_our_own_bug_shows_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(parsed: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(verbs, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["audit", "x"])


def test_options_of_generate_are_refused_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = fails(capsys, "curate", str(tmp_path), "--out", str(tmp_path / "out"), "--clips", "3")
    assert code == 2
    assert "curate generate" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["curate", "NOWHERE", "--out", "OUT"],
        ["audit", "NOWHERE"],
        ["evaluate", "NOWHERE", "--data", "NOWHERE"],
        ["export", "NOWHERE", "--out", "OUT"],
        ["generate", "NOWHERE", "NOWHERE"],
        ["search", "NOWHERE", "NOWHERE", "a dog"],
        ["serve", "NOWHERE"],
        ["train", "tiny", "data.shards=NOWHERE", "--out", "OUT"],
    ],
)
def test_a_folder_that_is_not_there_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere, out = str(tmp_path / "nowhere"), str(tmp_path / "out")
    _, line = fails(capsys, *[word.replace("NOWHERE", nowhere).replace("OUT", out) for word in arguments])
    assert nowhere in line


def test_train_without_data_says_how_to_give_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, line = fails(capsys, "train", "tiny", "--out", str(tmp_path / "run"))
    assert "data.shards" in line
