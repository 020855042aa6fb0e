"""CLIP and SigLIP folders and our own releases as judges of alignment, and the publisher's scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from xgenvideo.config import RunConfig
from xgenvideo.curate.alignment import judge_score
from xgenvideo.curate.clips import Clip
from xgenvideo.curate.run import curate
from xgenvideo.curate.scorers import ClipScorer, ReleaseScorer, open_scorer
from xgenvideo.curate.settings import CurateSettings, settings_from
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.release import Release
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.records import SampledVideo

from .conftest import line, write_clip_file

TEXT = {"vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
VISION = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 64}  # fmt: skip


def save(folder: Path, model: PreTrainedModel) -> Path:
    words = Words(WordLevel({w: n for n, w in enumerate(["[PAD]", "[END]", "a", "red", "blue", "square"])}, "[PAD]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[END]").save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


@pytest.fixture(params=["clip", "siglip"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    if request.param == "clip":
        return save(
            tmp_path / "model", CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
        )
    return save(tmp_path / "model", SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)))


def clip_of(colour: tuple[int, int, int], frames: int = 3) -> Clip:
    pictures = np.full((frames, 32, 32, 3), colour, np.uint8)
    return Clip.from_sampled(SampledVideo(pictures, np.arange(frames) / 2, np.arange(frames), frames / 2), 95)


def test_a_checkpoint_gives_the_cosine_that_transformers_gives(checkpoint: Path) -> None:
    scorer = open_scorer(str(checkpoint))
    assert isinstance(scorer, ClipScorer)
    captions = scorer.embed(["red square", "blue square"])
    model = scorer._model
    clip = clip_of((200, 30, 40))
    picture = torch.from_numpy(np.stack(clip.frames(1))).permute(0, 3, 1, 2).float() / 127.5 - 1
    padding = "max_length" if isinstance(model, SiglipModel) else True
    tokens = scorer._tokenizer(
        ["red square", "blue square"], padding=padding, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        cosines = model(**tokens, pixel_values=picture)
        wanted = (cosines.image_embeds @ cosines.text_embeds.T)[0].numpy()
    found = [scorer.score(scorer.see_clip(clip, 3), caption) for caption in captions]
    assert found == pytest.approx(wanted.tolist(), abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"curate\.align_model.*no CLIP or SigLIP model"):
        open_scorer(str(tmp_path))


def test_a_curation_takes_the_model_and_its_threshold(checkpoint: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_clip_file(raw / "one.mp4", seed=1)
    (raw / "pairs.jsonl").write_bytes(line("one", "one.mp4"))
    outcomes = {}
    for least in (-1.0, 1.0):
        settings = CurateSettings(
            steps=("alignment",), align_model=str(checkpoint), min_align_score=least, vocabulary=300, workers=1
        )
        outcomes[least] = curate(raw, tmp_path / f"out{least}", settings, work=tmp_path / "work").dropped
    assert outcomes == {-1.0: {}, 1.0: {"misaligned": 1}}
    assert (tmp_path / "work" / "scores" / "semantic.jsonl").read_text().count("\n") == 1  # scored once


def test_the_publishers_score_may_judge() -> None:
    settings = settings_from(["curate.align_column=matching_score", "curate.min_align_score=0.43"])
    assert judge_score(0.5, settings).keep
    assert judge_score(0.4, settings).reason == "misaligned"
    assert judge_score(None, settings).reason == "no_score"
    with pytest.raises(ConfigError, match="beside"):
        CurateSettings(align_column="umt_sim", align_model="/models/clip")


def test_a_release_judges_by_its_own_embeddings(
    small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer
) -> None:
    release = Release(Path("none"), small_model, twins_tokenizer, small_config, {"short_side": 256}, {})
    scorer = ReleaseScorer(release)
    text = "A red square appears."
    caption = scorer.embed([text])[0]
    assert caption == pytest.approx(embed_text(release, text), abs=1e-6)
    scores = [
        scorer.score(scorer.see_clip(clip_of(colour, 6), 3), caption) for colour in ((220, 30, 30), (30, 30, 220))
    ]
    assert all(-1 <= score <= 1 for score in scores)
    assert scores[0] != scores[1]
