"""Readers of public annotation formats, on small files in exactly the published shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from xgenvideo.errors import DataError
from xgenvideo.evaluate.formats import captioned, questions
from xgenvideo.evaluate.formats.captioned import Captioned
from xgenvideo.evaluate.formats.questions import Asked

VIDEO_MME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many red socks hang above the fireplace?",
    "options": ["A. 1.", "B. 4.", "C. 2.", "D. 3."],
    "answer": "D",
}
LONGVIDEOBENCH = {
    "video_id": "86CxyhFV9MI",
    "question": "In the video, which subtitles appear at the same time as the man with black hair?",
    "question_wo_referring_query": "Which subtitles appear at the same time?",
    "candidates": ["promisc has come to an end", "run away countless times", "so that was it"],
    "correct_choice": 1,
    "position": [854, 1421],
    "topic_category": "NP-News-Programs",
    "question_category": "TOS",
    "level": "L2-Relation",
    "id": "86CxyhFV9MI_0",
    "video_path": "86CxyhFV9MI.mp4",
    "subtitle_path": "86CxyhFV9MI_en.json",
    "duration_group": 600,
    "starting_timestamp_for_subtitles": 0,
    "duration": 190.16,
    "view_count": 259852,
}


def written(folder: Path, name: str, values: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(values), path)
    else:
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "videomme.json", "videomme.jsonl"])
def test_video_mme(tmp_path: Path, name: str) -> None:
    values: Any = json.dumps(VIDEO_MME) + "\n" if name.endswith("jsonl") else [VIDEO_MME]
    expected = Asked("fFjv93ACGo8", str(VIDEO_MME["question"]), ("1.", "4.", "2.", "3."), 3, "short/Counting Problem")
    assert questions.read_video_mme(written(tmp_path, name, values)) == [expected]


def test_video_mme_with_a_row_a_video(tmp_path: Path) -> None:
    """The shape of the benchmark's own result file."""
    asked = {name: VIDEO_MME[name] for name in ("question_id", "task_type", "question", "options", "answer")}
    row = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "x", "questions": [asked] * 3}
    found = questions.read_video_mme(written(tmp_path, "output.json", [row]))
    assert [(one.video, one.answer) for one in found] == [("001", 3)] * 3


def test_mvbench_tvbench_and_mlvu_by_file_and_by_folder(tmp_path: Path) -> None:
    star = {
        "video": "ZS9XR.mp4",
        "question": "What happened after the person took the food?",
        "candidates": [
            "Ate the medicine.",
            "Tidied up the blanket.",
            "Put down the cup/glass/bottle.",
            "Took the box.",
        ],
        "answer": "Ate the medicine.",
        "question_id": "Interaction_T1_13",
        "question_type": None,
        "start": 11.1,
        "end": 19.6,
    }
    clevrer = {"video": "video_10009.mp4", "question": "Which is first?", "candidates": ["a", "b"], "answer": "b"}
    file = written(tmp_path, "json/action_sequence.json", [star])
    written(tmp_path, "json/moving_count.json", [clevrer])
    whole = questions.read_candidates(tmp_path / "json")
    assert [(one.video, one.answer, one.kind, one.start, one.end) for one in whole] == [
        ("ZS9XR.mp4", 0, "action_sequence", 11.1, 19.6),
        ("video_10009.mp4", 1, "moving_count", None, None),
    ]
    assert questions.read_candidates(file) == whole[:1]
    plot = {
        "video": "movie101_66.mp4",
        "duration": 246,
        "question": "What color is the main male character in the video?",
        "candidates": ["Yellow", "Red", "Green", "Blue"],
        "answer": "Yellow",
        "question_type": "plotQA",
    }
    (mlvu,) = questions.read_candidates(written(tmp_path, "1_plotQA.json", [plot]))
    assert (mlvu.kind, mlvu.answer, mlvu.options) == ("plotQA", 0, ("Yellow", "Red", "Green", "Blue"))
    with pytest.raises(DataError, match="none of the candidates"):
        questions.read_candidates(written(tmp_path, "bad.json", [plot | {"answer": "Purple"}]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.json"):
        questions.read_candidates(tmp_path / "empty")


def test_longvideobench(tmp_path: Path) -> None:
    secret = {name: value for name, value in LONGVIDEOBENCH.items() if name != "correct_choice"}
    found = questions.read_longvideobench(written(tmp_path, "lvb_val.json", [LONGVIDEOBENCH, secret]))
    assert [(one.video, one.answer, one.kind, len(one.options)) for one in found] == [
        ("86CxyhFV9MI.mp4", 1, "600/TOS", 3),
        ("86CxyhFV9MI.mp4", None, "600/TOS", 3),
    ]
    flat = {name: value for name, value in LONGVIDEOBENCH.items() if name != "candidates"}
    flat |= {"option0": "x", "option1": "y", "option2": "z", "option3": "N/A", "option4": "N/A"}
    (row,) = questions.read_longvideobench(written(tmp_path, "validation-00000-of-00001.parquet", [flat]))
    assert (row.options, row.answer) == (("x", "y", "z"), 1)


def test_egoschema(tmp_path: Path) -> None:
    row = {
        "q_uid": "0074f737-11cb-497d-8d07-77c3a8127391",
        "google_drive_id": "17sBN2Fr9R5oqOUWsCMnNP0lIrqLxiLSM",
        "question": "Taking into account all the actions performed by c, what is the main objective?",
        "option 0": "C is cooking.",
        "option 1": "C is doing laundry.",
        "option 2": "C is cleaning the kitchen.",
        "option 3": "C is cleaning dishes.",
        "option 4": "C is cleaning the bathroom.",
    }
    path = written(tmp_path, "questions.json", [row, row | {"q_uid": "secret"}])
    assert [one.answer for one in questions.read_egoschema(path)] == [None, None]
    written(tmp_path, "subset_answers.json", {row["q_uid"]: 3})
    first, second = questions.read_egoschema(path)
    assert (first.video, first.answer, first.options[3]) == (row["q_uid"], 3, "C is cleaning dishes.")
    assert second.answer is None
    flat = {
        "question_idx": "8",
        "question": "Why?",
        "video_idx": "001934bb",
        "option": [f"{letter}. c {number}." for number, letter in enumerate("ABCDE")],
        "answer": "4",
    }
    (harness,) = questions.read_egoschema(written(tmp_path, "Subset.parquet", [flat]))
    assert (harness.video, harness.answer, harness.options[0]) == ("001934bb", 4, "c 0.")


def test_tempcompass(tmp_path: Path) -> None:
    choice = {
        "question": "What is the man doing in the video?\nA. dunking a basketball\nB. passing a basketball",
        "answer": "B. passing a basketball",
    }
    matching = {
        "question": "Which is a more suitable match for the video?\nOption 1: A man dribbles.\nOption 2: A man dunks.",
        "answer": "Option 2: A man dunks.",
    }
    for name, asked, options in (
        ("multi-choice.json", choice, ("dunking a basketball", "passing a basketball")),
        ("caption_matching.json", matching, ("A man dribbles.", "A man dunks.")),
        ("yes_no.json", {"question": "Is the man dunking?", "answer": "no"}, ("yes", "no")),
    ):
        path = written(tmp_path, name, {"1034419625": {"action": [asked], "direction": [asked]}})
        found = questions.read_tempcompass(path)
        assert [(one.video, one.kind, one.options, one.answer) for one in found] == [
            ("1034419625", kind, options, 1) for kind in ("action", "direction")
        ]
    row = choice | {"video_id": "1034419625", "dim": "speed", "task": "multi-choice"}
    (flat,) = questions.read_tempcompass(written(tmp_path, "test.parquet", [row]))
    assert (flat.kind, flat.answer, flat.question) == ("speed", 1, "What is the man doing in the video?")


def test_letters_are_taken_off_only_where_all_options_have_one() -> None:
    assert questions._unmarked(["(A) one", "(B) two"]) == ("one", "two")
    assert questions._unmarked(["A. one", "two"]) == ("A. one", "two")
    assert questions._unmarked(["A man", "B side"]) == ("A man", "B side")


def test_msr_vtt(tmp_path: Path) -> None:
    text = 'key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person, connecting something"\n'
    expected = [Captioned("video9770", ("a person, connecting something",))]
    assert captioned.read_pairs(written(tmp_path, "MSRVTT_JSFUSION_test.csv", text)) == expected
    rows = [{"video": "video7020.mp4", "caption": "a woman creating a fondant baby"}]
    assert captioned.read_pairs(written(tmp_path, "msrvtt_ret_test1k.json", rows)) == [
        Captioned("video7020.mp4", ("a woman creating a fondant baby",))
    ]


def test_msvd(tmp_path: Path) -> None:
    text = "# Microsoft Research Video Description Corpus\n\n-4wsuPCjDBc_5_15 a squirrel eats\n"
    text += "-4wsuPCjDBc_5_15 a chipmunk\n"
    text += "-7KMZQEsJW4_205_208 a boy runs\n"
    path = written(tmp_path, "AllVideoDescriptions.txt", text)
    both = captioned.read_msvd(path)
    assert both == [
        Captioned("-4wsuPCjDBc_5_15", ("a squirrel eats", "a chipmunk")),
        Captioned("-7KMZQEsJW4_205_208", ("a boy runs",)),
    ]
    written(tmp_path, "test_list.txt", "-7KMZQEsJW4_205_208\n")
    assert captioned.read_msvd(path) == both[1:]
    rows = [{"video": "-4wsuPCjDBc_5_15.avi", "caption": ["a squirrel eats", "a chipmunk"]}]
    assert len(captioned.read_msvd(written(tmp_path, "msvd_ret_test.json", rows))[0].texts) == 2


def test_didemo_and_activitynet_make_paragraphs(tmp_path: Path) -> None:
    moments = [
        {
            "annotation_id": number,
            "description": said,
            "dl_link": "https://www.flickr.com/video_download.gne?id=1",
            "num_segments": 6,
            "times": [[0, 0], [0, 1]],
            "video": "12090392@N02_13482799053_87ef417396.mov",
        }
        for number, said in enumerate(("camera zooms in ", "the dog leaves"))
    ]
    assert captioned.read_didemo(written(tmp_path, "test_data.json", moments)) == [
        Captioned(str(moments[0]["video"]), ("camera zooms in the dog leaves",))
    ]
    value = {
        "duration": 55.15,
        "timestamps": [[0.28, 55.15], [13.79, 54.32]],
        "sentences": ["A weight lifting tutorial is given.", " The coach shows the correct posture."],
    }
    assert captioned.read_activitynet(written(tmp_path, "val_1.json", {"v_uqiMw7tQ1Cc": value})) == [
        Captioned("v_uqiMw7tQ1Cc", ("A weight lifting tutorial is given. The coach shows the correct posture.",))
    ]


def test_vatex(tmp_path: Path) -> None:
    row = {"videoID": "G9zN5TTuGO4_000179_000189", "enCap": ["One.", "Two."], "chCap": ["一。"]}
    assert captioned.read_vatex(written(tmp_path, "vatex_validation_v1.0.json", [row])) == [
        Captioned("G9zN5TTuGO4_000179_000189", ("One.", "Two."))
    ]


@pytest.mark.parametrize("reader", [*questions.READERS.values(), *captioned.READERS.values()])
def test_other_files_are_refused_by_name(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    path = written(tmp_path, "other.json", [{"some": "thing"}])
    for wrong in (path, written(tmp_path, "broken.json", "{"), tmp_path / "nowhere.json"):
        with pytest.raises(DataError, match=wrong.name):
            reader(wrong)
