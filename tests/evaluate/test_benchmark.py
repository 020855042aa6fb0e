"""Public benchmarks end to end on generated videos: figures equal brute force, and nothing is left out silently."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgenvideo.cli import main
from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import sha256_of
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.text import caption_document
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.evaluate.benchmark import run_benchmark
from xgenvideo.evaluate.caption_scores import caption_scores
from xgenvideo.evaluate.formats.captioned import Captioned
from xgenvideo.evaluate.retrieving import Pool, scores
from xgenvideo.evaluate.table import benchmark_table
from xgenvideo.evaluate.videos import Videos, encode, video_vector, window_latents
from xgenvideo.infer.release import Release
from xgenvideo.infer.search import embed_text, embed_video
from xgenvideo.models.video_lm import VideoLM

CLIPS = 4
Folder = tuple[Path, list[Any]]


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    description = {"identity": "tested"}
    return Release(Path("nowhere"), small_model, twins_tokenizer, small_config, {"short_side": 64}, description)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Four generated clips, clip0.mp4 to clip3.mp4, in two folders; and one file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    scenes = [make_twins(77, number)[0] for number in range(CLIPS)]
    for number, scene in enumerate(scenes):
        (folder / f"part{number % 2}").mkdir(exist_ok=True)
        encode_video(folder / f"part{number % 2}" / f"clip{number}.mp4", render(scene, 64))
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return folder, scenes


@pytest.fixture(scope="module")
def asked(videos: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about the clips in MVBench's format, one about a part; and about a missing and a broken video."""
    rows: list[dict[str, Any]] = []
    for number, scene in enumerate(videos[1]):
        for question in scene.questions:
            answer = question.options[question.answer]
            row = {"video": f"clip{number}.mp4", "question": question.text, "candidates": list(question.options)}
            rows.append(row | {"answer": answer, "question_type": question.kind})
    rows[0] |= {"start": 2.0, "end": 6.0}
    rows.append(rows[1] | {"start": 900.0, "end": 901.0})
    rows += [rows[1] | {"video": "nowhere.mp4"}, rows[1] | {"video": "broken.mp4"}]
    path = tmp_path_factory.mktemp("annotations") / "tasks.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answered(release: Release, asked: Path, videos: Folder) -> dict[str, Any]:
    return run_benchmark(release, "mvbench", asked, videos[0], ["xgv", "evaluate", "a b"])


def test_questions_are_answered_as_by_hand(
    release: Release, asked: Path, videos: Folder, answered: dict[str, Any]
) -> None:
    rows = json.loads(asked.read_text(encoding="utf-8"))[:-3]
    right: dict[str, list[bool]] = {"accuracy": [], "accuracy_reversed": [], "accuracy_no_video": []}
    for row in rows:
        encoded = encode(release, next(videos[0].rglob(row["video"])))
        keep = (encoded.pts >= row.get("start", 0)) & (encoded.pts <= row.get("end", 1e9))
        features, pts = encoded.features[keep], encoded.pts[keep] - row.get("start", 0.0)
        answer = row["candidates"].index(row["answer"])
        mask = torch.ones(1, len(pts), dtype=torch.bool)
        for name, shown in (("accuracy", features), ("accuracy_reversed", features.flip(0))):
            with torch.no_grad():
                latents = release.model.latents(shown[None], pts[None], mask)
            values = release.score_options(latents, row["question"], row["candidates"])
            right[name].append(int(np.argmax(values)) == answer)
    del right["accuracy_no_video"]
    for name, found in right.items():
        assert answered[name] == pytest.approx(np.mean(found)), name
    assert answered["chance"] == 0.5
    kinds = answered["accuracy_by_kind"]
    assert sum(kind["questions"] for kind in kinds.values()) == len(rows)
    total = sum(kind["questions"] * kind["accuracy"] for kind in kinds.values())
    assert total / len(rows) == pytest.approx(answered["accuracy"])


def test_what_is_missing_is_counted_and_named(answered: dict[str, Any], videos: Folder, asked: Path) -> None:
    annotated = len(json.loads(asked.read_text(encoding="utf-8")))
    assert answered["videos"]["annotated"] == CLIPS + 2
    assert answered["videos"]["read"] == CLIPS
    assert answered["videos"]["missing"] == {"nowhere.mp4": "no such file"}
    assert list(answered["videos"]["unreadable"]) == ["broken.mp4"]
    assert answered["questions"]["asked"] == annotated - 3
    assert sum(answered["questions"]["not_asked"].values()) == 3
    text = benchmark_table(answered)
    assert f"{CLIPS} of {CLIPS + 2} videos read, 1 missing, 1 unreadable" in text
    assert f"{annotated - 3} of {annotated} questions asked" in text


def test_every_number_has_its_controls_and_the_result_says_what_it_is_of(
    answered: dict[str, Any], asked: Path, release: Release
) -> None:
    for rule in ("accuracy", "accuracy_per_token"):
        for control in ("", "_no_video", "_one_frame", "_shuffled", "_reversed"):
            low, high = answered["intervals"][rule + control]
            assert low <= answered[rule + control] <= high
    assert json.loads(json.dumps(answered)) == answered
    assert answered["data"]["annotations_sha256"] == {asked.name: sha256_of(asked)}
    assert answered["command"] == "xgv evaluate 'a b'"
    assert answered["config"]["model"]["embedding"] == release.config.model.embedding
    assert len(answered["weights_sha256"]) == len(answered["data"]["videos_sha256"]) == 64


def test_two_files_of_one_name_are_not_guessed_between(videos: Folder, tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "same.mp4").write_bytes((videos[0] / "part0" / "clip0.mp4").read_bytes())
    found = Videos(tmp_path)
    assert len(found._find("same.mp4")) == len(found._find("same")) == 2
    assert found._find("b/same.mp4") == [tmp_path / "b" / "same.mp4"]
    assert found._find("v_same") == found._find("same")
    assert found._find("other") == []


def test_a_video_is_embedded_as_search_does(release: Release, videos: Folder) -> None:
    path = videos[0] / "part1" / "clip1.mp4"
    encoded = encode(release, path)
    (found,) = embed_video(release, path)
    assert video_vector(release, encoded).numpy() == pytest.approx(found[2], abs=1e-6)
    assert torch.allclose(window_latents(release, encoded), release.watch(path).latents, atol=1e-6)


@pytest.fixture(scope="module")
def retrieved(release: Release, videos: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rows = [
        {"videoID": f"clip{number}", "enCap": [scene.caption, scene.questions[0].text]}
        for number, scene in enumerate(videos[1])
    ]
    rows.append({"videoID": "gone", "enCap": ["Nothing."]})
    path = tmp_path_factory.mktemp("vatex") / "vatex_validation_v1.0.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        # Starting METEOR's Java takes longer than all of this file.
        patch.setattr("shutil.which", lambda name: None)
        return run_benchmark(release, "vatex", path, videos[0])


def test_retrieval_is_what_loops_give(release: Release, videos: Folder, retrieved: dict[str, Any]) -> None:
    texts = [text for scene in videos[1] for text in (scene.caption, scene.questions[0].text)]
    vectors = [video_vector(release, encode(release, next(videos[0].rglob(f"clip{i}.mp4")))) for i in range(CLIPS)]
    table = [[float(embed_text(release, text) @ vector.numpy()) for vector in vectors] for text in texts]
    scale = math.exp(float(release.model.logit_scale.detach()))
    dual = [
        [row[v] * math.exp(scale * row[v]) / sum(math.exp(scale * other[v]) for other in table) for v in range(CLIPS)]
        for row in table
    ]
    for name, matrix in (("cosine", table), ("dual_softmax", dual)):
        ranks = [sum(score >= row[t // 2] for score in row) for t, row in enumerate(matrix)]
        assert retrieved[f"{name}/text_to_video_r1"] == pytest.approx(np.mean([rank <= 1 for rank in ranks]))
        assert retrieved[f"{name}/text_to_video_median_rank"] == np.median(ranks)
    back = []
    for v in range(CLIPS):
        best = max(table[2 * v][v], table[2 * v + 1][v])
        back.append(1 + sum(table[t][v] >= best for t in range(len(texts)) if t // 2 != v))
    assert retrieved["cosine/video_to_text_r1"] == pytest.approx(np.mean([rank <= 1 for rank in back]))
    assert retrieved["cosine/text_to_video_chance_r1"] == pytest.approx(1 / CLIPS)
    assert retrieved["cosine/video_to_text_chance_r1"] == pytest.approx(2 / len(texts))


def test_reranking_adds_the_decoders_likelihood_ratio(
    release: Release, videos: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgenvideo.evaluate.retrieving.CONSIDERED", 2)
    pool, scenes = Pool(), videos[1]
    for number, scene in enumerate(scenes):
        encoded = encode(release, next(videos[0].rglob(f"clip{number}.mp4")))
        pool.names.append(str(number))
        pool.vectors.append(video_vector(release, encoded))
        pool.latents.append(window_latents(release, encoded).flatten(0, 1)[None])
        pool.texts.append(scene.caption)
        pool.owners.append(number)
    (_, cosines, _), _, (name, by_text, by_video) = scores(release, pool)
    assert name == "reranked"
    scale = math.exp(float(release.model.logit_scale.detach()))
    for text in range(CLIPS):
        near = sorted(range(CLIPS), key=lambda v: -cosines[text, v])
        for place, video in enumerate(near):
            if place < 2:
                ratio = nats(release, pool.texts[text], pool.latents[video]) - nats(release, pool.texts[text], None)
                assert by_text[text, video] == pytest.approx(scale * cosines[text, video] + ratio, abs=1e-3)
            else:
                assert by_text[text, video] < min(by_text[text, near[0]], by_text[text, near[1]])
    assert by_video.shape == (CLIPS, CLIPS)


@torch.no_grad()
def nats(release: Release, text: str, latents: torch.Tensor | None) -> float:
    """Log-likelihood of a caption, a token at a time."""
    ids = caption_document(text, release.tokenizer, 128).ids
    total = 0.0
    for length in range(1, len(ids)):
        tokens, positions = torch.tensor([ids[:length]]), torch.arange(length)[None]
        none = torch.zeros(1, length, dtype=torch.int64)
        logits = release.model.logits(tokens, positions, none, latents, none == 0)
        total += float(logits[0, -1].log_softmax(-1)[ids[length]])
    return total


def test_the_three_scores_stand_apart_with_what_they_use(retrieved: dict[str, Any]) -> None:
    assert retrieved["videos"]["missing"] == {"gone": "no such file"}
    for score in ("cosine", "dual_softmax", "reranked"):
        assert score in retrieved["protocol"]
        for way in ("text_to_video", "video_to_text"):
            for figure in ("r1", "r5", "r10", "median_rank", "chance_r1"):
                assert f"{score}/{way}_{figure}" in retrieved
    assert "whole test set" in retrieved["protocol"]["dual_softmax"]
    captions = retrieved["captions"]
    assert list(captions["greedy"]) == [f"clip{number}" for number in range(CLIPS)]
    assert 0 <= captions["bleu_4"] <= captions["bleu_1"] <= 1
    assert "cosine/text_to_video_r1" in benchmark_table(retrieved)


def test_captions_are_scored_against_all_texts_of_a_video(
    retrieved: dict[str, Any], videos: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    references = [[scene.caption, scene.questions[0].text] for scene in videos[1]]
    expected = caption_scores(list(retrieved["captions"]["greedy"].values()), references)
    assert retrieved["captions"] | expected == retrieved["captions"]


def test_impossible_requests(release: Release, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="video-mme"):
        run_benchmark(release, "nosuch", asked, tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        run_benchmark(release, "mvbench", asked, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"clip0\.mp4"):
        run_benchmark(release, "mvbench", asked, tmp_path)
    with pytest.raises(DataError, match="every video needs one"):
        Captioned("x", ())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert main(["evaluate", str(tmp_path), "--benchmark", "mvbench"]) == 2
    assert "--annotations" in capsys.readouterr().err
