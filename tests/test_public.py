"""The names that users rely on: adding one is a decision, losing one breaks somebody."""

import re
from pathlib import Path

import xgenvideo
from xgenvideo import cli, config, errors, records

ROOT = Path(__file__).parent.parent


def public(module: object) -> set[str]:
    name = getattr(module, "__name__", "")
    return {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    }


def test_the_version_is_the_one_of_the_project_and_the_changelog() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{xgenvideo.__version__}"' in pyproject
    assert f"## {xgenvideo.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_errors() -> None:
    assert public(errors) == {
        "CheckpointError",
        "ConfigError",
        "DataError",
        "MediaError",
        "MissingExtra",
        "ReleaseError",
        "TrainError",
        "XGenVideoError",
    }


def test_records() -> None:
    assert public(records) == {"Pair", "Question", "Sample", "SampledVideo"}


def test_config() -> None:
    assert set(config.__all__) == {
        "DataConfig",
        "DecoderConfig",
        "LayoutConfig",
        "ModelConfig",
        "ObjectiveConfig",
        "OptimizerConfig",
        "ResamplerConfig",
        "RopeScaling",
        "RunConfig",
        "SafetyConfig",
        "TrainConfig",
        "VisionConfig",
        "check",
        "from_dict",
        "load",
        "override",
    }
    assert all(hasattr(config, name) for name in config.__all__)


def test_verbs() -> None:
    listed = re.findall(r"^    ([a-z]+)\b", cli.build_parser().format_help(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(
        [
            "audit",
            "calibrate",
            "chaos",
            "checkpoints",
            "curate",
            "demo",
            "evaluate",
            "export",
            "forget",
            "generate",
            "plan",
            "recipes",
            "search",
            "serve",
            "trace",
            "train",
        ]
    )


def test_the_readme_and_the_docs_name_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in re.findall(r"^    ([a-z]+)\b", cli.build_parser().format_help(), flags=re.MULTILINE):
        assert f"xgv {verb}" in text
