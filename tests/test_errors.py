"""The exception tree: one base, the drawing at the top of errors.py is true, exit codes are what the docs say."""

import inspect
import pickle

import pytest

from xgenvideo import errors
from xgenvideo.errors import ConfigError, MediaError, MissingExtra, TrainError, XGenVideoError


def all_errors() -> list[type[XGenVideoError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    return [value for value in found if value.__module__ == errors.__name__]


def test_every_error_is_ours_and_in_the_drawing() -> None:
    assert errors.__doc__ is not None
    for error in all_errors():
        assert issubclass(error, XGenVideoError)
        assert error.__name__ in errors.__doc__
        assert error.__doc__


def test_the_drawing_shows_the_real_parents() -> None:
    assert errors.__doc__ is not None
    depths = {}
    for line in errors.__doc__.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if name.endswith(("Error", "Extra")):
            depths[name] = len(line) - len(line.lstrip("│├└─ "))
    for error in all_errors():
        if error is not XGenVideoError:
            assert error.__base__ is not None
            assert depths[error.__base__.__name__] < depths[error.__name__]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (XGenVideoError("x"), 1),
        (ConfigError("a.b", 1, "no"), 2),
        (MissingExtra("av", "curate"), 3),
        (TrainError("x"), 1),
    ],
)
def test_exit_codes(error: XGenVideoError, code: int) -> None:
    assert error.exit_code == code


def test_a_config_error_names_setting_value_rule_and_choices() -> None:
    message = str(ConfigError("train.precision", "fp8", "no such precision", ("fp32", "bf16")))
    assert message == "train.precision = 'fp8': no such precision. Valid: fp32, bf16."


def test_a_missing_extra_prints_the_exact_line_to_run() -> None:
    assert "pip install -c constraints.txt 'xgenvideo[curate]'" in str(MissingExtra("rapidocr", "curate"))


def test_a_media_error_carries_its_reason_code() -> None:
    error = MediaError("truncated", "a.mp4", "12 of 300 frames")
    assert (error.reason, str(error)) == ("truncated", "a.mp4: truncated (12 of 300 frames)")


@pytest.mark.parametrize("error", [XGenVideoError("x"), TrainError("soon")])
def test_plain_errors_cross_process_borders(error: XGenVideoError) -> None:
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("setting", "value", "choices", "meant"),
    [
        ("recipe", "tny", ("tiny", "one_gpu"), "tiny"),
        ("train.stepz", "3", ("seed", "steps"), "steps"),
        ("curate.stepz", "language", ("language", "steps"), "steps"),
        ("curate.min_align_scor", 3.0, ("fps", "min_align_score"), "min_align_score"),
    ],
)
def test_a_slip_of_the_pen_is_named(setting: str, value: object, choices: tuple[str, ...], meant: str) -> None:
    assert f"Did you mean {meant}?" in str(ConfigError(setting, value, "no such thing", choices))


def test_a_number_or_another_word_is_not_taken_for_a_slip() -> None:
    assert "mean" not in str(ConfigError("layout.tensor", 3, "must divide", (1, 30, 2)))
    assert "mean" not in str(ConfigError("recipe", "huge", "no such recipe", ("tiny", "one_gpu")))
