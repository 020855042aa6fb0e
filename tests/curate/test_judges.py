"""Judges that the user brings (image classifiers for watermarks and aesthetics), and the balance of concepts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tests.curate.conftest import line, write_clip_file
from xgenvideo.curate.balance import Concepts, concepts_of, count_concepts, judge_concepts, read_concepts
from xgenvideo.curate.classifier import PictureClassifier
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings, Decision, settings_from
from xgenvideo.errors import ConfigError, DataError

SIDE = 32


def save_classifier(folder: Path, labels: tuple[str, ...]) -> ViTForImageClassification:
    torch.manual_seed(5)
    config = ViTConfig(
        image_size=SIDE, patch_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.1)
    model.save_pretrained(folder)
    about = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(about | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return model


@pytest.mark.parametrize("labels", [("No Watermark", "Watermark"), ("quality",)])
def test_a_classifier_gives_the_mean_of_what_the_model_gives(tmp_path: Path, labels: tuple[str, ...]) -> None:
    model = save_classifier(tmp_path, labels)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    inputs = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        outputs = model(pixel_values=inputs).logits
    expected = outputs.softmax(-1)[:, 1] if len(labels) > 1 else outputs[:, 0]
    found = PictureClassifier(tmp_path, "watermark", "watermark_model").score(frames)
    assert found == pytest.approx(float(expected.mean()), abs=1e-5)


def test_wrong_folders_and_labels_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"curate\.aesthetic_model.*no image classification model"):
        PictureClassifier(tmp_path / "empty", "aesthetic", "aesthetic_model")
    save_classifier(tmp_path / "model", ("cat", "dog"))
    with pytest.raises(ConfigError, match=r"curate\.watermark_label.*no label.*cat") as error:
        PictureClassifier(tmp_path / "model", "watermark", "watermark_model")
    assert "dog" in str(error.value)
    write_clip_file(tmp_path / "raw" / "one.mp4")
    (tmp_path / "raw" / "pairs.jsonl").write_bytes(line("one", "one.mp4"))
    with pytest.raises(DataError, match=r"curate\.watermark_model = .*nowhere: is no folder"):
        curate(tmp_path / "raw", tmp_path / "out", CurateSettings(watermark_model=str(tmp_path / "nowhere")))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (out / "audit.jsonl").read_text().splitlines()]


def test_a_threshold_between_two_clips_drops_one_and_nothing_is_scored_twice(tmp_path: Path) -> None:
    save_classifier(tmp_path / "model", ("none", "watermark"))
    raw = tmp_path / "raw"
    for seed, name in ((1, "one"), (40, "two")):
        write_clip_file(raw / f"{name}.mp4", seed=seed)
    (raw / "pairs.jsonl").write_bytes(line("one", "one.mp4") + line("two", "two.mp4"))
    model = str(tmp_path / "model")
    given: dict[str, Any] = {"steps": (), "watermark_model": model, "vocabulary": 300, "workers": 1}
    work = tmp_path / "work"
    summary = curate(raw, tmp_path / "all", CurateSettings(**given, max_watermark_chance=1.0), work=work)
    assert summary.pairs_kept == 2
    assert "aesthetic_model" not in summary.funnel
    chances = [row["decisions"][-1]["scores"]["watermark_chance"] for row in rows_of(tmp_path / "all")]
    low, high = sorted(chances)
    assert low < high
    between = CurateSettings(**given, max_watermark_chance=(low + high) / 2)
    assert curate(raw, tmp_path / "some", between, work=work).dropped == {"watermark_classified": 1}
    dropped = next(row for row in rows_of(tmp_path / "some") if row["status"] == "dropped")
    assert dropped["name"] == ("one", "two")[chances.index(high)]
    assert (work / "scores" / "watermark_model.jsonl").read_text().count("\n") == 2
    pretty: dict[str, Any] = {"aesthetic_model": model, "aesthetic_label": "watermark"}
    judged = CurateSettings(**given | {"watermark_model": ""} | pretty, min_aesthetic_model_score=(low + high) / 2)
    assert curate(raw, tmp_path / "pretty", judged, work=work).dropped == {"unaesthetic": 1}
    assert "aesthetic score, by your model" in (tmp_path / "pretty" / "report.html").read_text()


def test_the_publishers_aesthetic_score_may_drop(tmp_path: Path) -> None:
    rows = []
    for number, score in enumerate((3.0, 5.5)):
        write_clip_file(tmp_path / f"id{number}.mp4", seed=number)
        about = {"YoutubeID": f"id{number}", "Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:02.900"}
        caption = "A bright square moves slowly over a dark floor and then stops."
        rows.append(about | {"Caption": caption, "UMT_Score": 0.4, "Aesthetic_Score": score})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_from(["curate.min_aesthetic_score=4.5", "curate.steps=", "curate.vocabulary=300"])
    summary = curate(tmp_path / "clips.jsonl", tmp_path / "out", settings)
    assert summary.dropped == {"unaesthetic": 1}
    assert [row["reason"] for row in rows_of(tmp_path / "out")] == ["unaesthetic", None]


def balance(pairs: list[tuple[str, str]], most: int, known: Concepts | None) -> list[Decision]:
    counts = count_concepts((caption for _, caption in pairs), known)
    return [judge_concepts(key, caption, counts, most, known) for key, caption in pairs]


def test_balance_thins_what_is_said_often_and_keeps_what_is_rare() -> None:
    captions = [(f"dog{n}", "A dog runs.") for n in range(2000)]
    captions += [(f"eel{n}", "A dog sees an eel.") for n in range(20)]
    decisions = balance(captions, 200, None)
    kept = {key for (key, _), decision in zip(captions, decisions, strict=True) if decision.keep}
    assert {f"eel{n}" for n in range(20)} <= kept
    # Three words (a, dog, runs), each drawing with a chance of a tenth: 1 - 0.9^3 of 2,000.
    assert sum(key.startswith("dog") for key in kept) == pytest.approx(2000 * (1 - 0.9**3), rel=0.12)
    assert decisions[0].scores == {"rarest_concept": "runs", "captions_with_it": 2000}
    assert decisions[-1].scores["captions_with_it"] == 20
    backwards = balance(captions[::-1], 200, None)[::-1]
    assert [d.reason for d in backwards] == [d.reason for d in decisions]
    assert all(decision.keep for decision in balance(captions, 10_000, None))


def test_concepts_come_from_a_file_and_may_be_phrases(tmp_path: Path) -> None:
    path = tmp_path / "concepts.txt"
    path.write_text("# animals\nPolar bear\nseal\n\n")
    known = read_concepts(str(path))
    assert known == {"polar bear", "seal"}
    assert concepts_of("A polar-bear hunts a Seal.", known) == {"polar bear", "seal"}
    assert concepts_of("A bear hunts.", known) == set()
    reasons = [d.reason for d in balance([("a", "A bear hunts."), ("b", "A seal swims.")], 1, known)]
    assert reasons == ["no_concept", None]
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="names no concept"):
        read_concepts(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        read_concepts(str(tmp_path / "gone.txt"))
    with pytest.raises(ConfigError, match=r"curate\.max_per_concept"):
        CurateSettings(concepts=str(path))


def test_a_curation_is_balanced_over_what_is_kept(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "raw" / "a.mp4", seed=1)
    lines = [line(f"dog{n}", "a.mp4", "A dog runs over a wide green meadow.") for n in range(30)]
    (tmp_path / "raw" / "pairs.jsonl").write_bytes(b"".join([*lines, line("eel", "a.mp4", "Eels swim.")]))
    settings = CurateSettings(steps=(), max_per_concept=2, vocabulary=300, workers=1)
    summary = curate(tmp_path / "raw", tmp_path / "out", settings)
    assert 0 < summary.pairs_kept < 31
    assert summary.dropped == {"common_concept": 31 - summary.pairs_kept}
    assert list(summary.funnel)[-1] == "balance"
    assert rows_of(tmp_path / "out")[-1]["status"] == "kept"
