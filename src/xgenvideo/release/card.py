"""The model card: YAML front matter and plain sections, every figure out of the run's own records."""

import json
from collections.abc import Iterator
from typing import Any

from xgenvideo.config import RunConfig

CARD = "README.md"
NOT_MEASURED = "not measured"
JOULES_A_KWH = 3.6e6
# name in the evaluation, how people call it
REPORTED = (
    ("temporal_qa", "Questions about time, accuracy"),
    ("twin_choice", "Twin choice, accuracy"),
    ("retrieval_t2v_r1", "Text-to-video retrieval, R@1"),
    ("retrieval_v2t_r1", "Video-to-text retrieval, R@1"),
    ("caption_cider", "Captioning, CIDEr-D (0 to 10)"),
)
CONTROLS = (
    ("no_video", "No video"),
    ("one_frame", "The middle frame only"),
    ("shuffled", "Frames shuffled"),
    ("reversed", "Frames reversed"),
    ("reversed_direction_order", "Frames reversed, direction and order questions only"),
)


def model_card(figures: dict[str, Any], config: RunConfig, licence: str) -> str:
    """Markdown of the card. A figure that the run has no record of is called not measured."""
    sections = (
        _front_matter(figures, licence),
        _opening(figures, config),
        _use(),
        _training(figures, config),
        _data(figures["data"]),
        _evaluation(figures["evaluation"]),
        _limits(figures, config),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _front_matter(figures: dict[str, Any], licence: str) -> Iterator[str]:
    """YAML; strings are quoted as JSON does, which YAML reads."""
    yield from (
        "---",
        f"license: {json.dumps(licence)}",
        "library_name: transformers",
        "pipeline_tag: video-text-to-text",
    )
    yield "tags: [video-language, long-video, temporal-reasoning, video-text-retrieval]"
    evaluation = figures["evaluation"]
    measured = [(name, title) for name, title in REPORTED if evaluation and evaluation.get(name) is not None]
    if evaluation and measured:
        yield from ("model-index:", f"- name: {json.dumps(figures['name'])}", "  results:")
        yield from ("  - task: {type: video-text-to-text}", "    dataset:")
        yield f"      name: {json.dumps(_dataset_title(figures['data']))}"
        yield f"      type: {json.dumps('xgenvideo-' + _fingerprint(figures['data']))}"
        yield f"      split: {json.dumps(str(evaluation.get('split', 'heldout')))}"
        yield "    metrics:"
        for name, title in measured:
            yield f"    - {{type: {name}, name: {json.dumps(title)}, value: {evaluation[name]:.6g}, verified: false}}"
    yield "---"


def _dataset_title(data: dict[str, Any] | None) -> str:
    title = data["card"].get("title") if data else None
    return str(title) if title else "the run's own curated dataset"


def _fingerprint(data: dict[str, Any] | None) -> str:
    return data["fingerprint"][:12] if data else "unknown"


def _opening(figures: dict[str, Any], config: RunConfig) -> Iterator[str]:
    decoder, resampler, vision = config.model.decoder, config.model.resampler, config.model.vision
    yield f"# {figures['name']}"
    yield ""
    yield (
        "A video language model: a frozen vision encoder, a resampler that turns the frames of a video and their real "
        "times into a fixed number of latents, and a causal decoder that reads the latents by gated cross-attention in "
        "its upper half. It was exported from one training run; every figure below was measured on that run."
    )
    yield from ("", "| part | parameters |", "|---|---:|")
    for part, count in figures["parameters"].items():
        yield f"| {part} | {count:,} |"
    yield ""
    yield (
        f"Encoder {vision.width} wide, {vision.depth} layers, patch {vision.patch} at {vision.image_size} px; "
        f"{resampler.queries} latents of {resampler.width}; decoder {decoder.width} wide, {decoder.depth} layers, "
        f"{decoder.cross_blocks} cross-attention blocks, vocabulary {decoder.vocab:,}."
    )


def _use() -> Iterator[str]:
    yield from ("## Use", "", "```", 'xgv generate RELEASE VIDEO "Which appears first?"', "xgv generate RELEASE VIDEO")
    yield from (
        "xgv search RELEASE FOLDER TEXT",
        "```",
        "",
        "With transformers, PyAV and OpenCV alone:",
    )
    yield from ("", "```python", "from transformers import AutoModelForCausalLM, AutoProcessor", "")
    yield "model = AutoModelForCausalLM.from_pretrained(RELEASE, trust_remote_code=True)"
    yield "processor = AutoProcessor.from_pretrained(RELEASE, trust_remote_code=True)"
    yield 'question = {"type": "text", "text": "Which appears first?"}'
    yield 'talk = [{"role": "user", "content": [{"type": "video", "path": VIDEO}, question]}]'
    yield "inputs = processor.apply_chat_template(talk, tokenize=True)"
    yield 'print(processor.post_process_text(model.generate(**inputs), inputs["input_ids"].shape[1]))'
    yield from ("```", "")
    yield (
        "Intended for research on video-text pre-training: captions, answers about the order and timing of events, "
        "search in videos. Not intended for decisions about people, surveillance, or any use where a wrong answer does "
        "harm: nothing here was tested for that."
    )


def _training(figures: dict[str, Any], config: RunConfig) -> Iterator[str]:
    yield from ("## Training", "")
    optimizer, training = config.optimizer, figures["training"]
    yield f"- Steps: {figures['step']:,} of {figures['steps_planned']:,} planned; {figures['pairs_seen']:,} pairs seen."
    yield (
        f"- Objective: next token, plus {config.objective.contrastive_weight:g} x contrastive "
        f"({config.objective.contrastive}). AdamW, lr {optimizer.lr:g}, betas {optimizer.beta1:g} and "
        f"{optimizer.beta2:g}, weight decay {optimizer.weight_decay:g}; {config.train.precision}."
    )
    for name, title in (("loss_next_token", "Next-token loss"), ("loss_contrastive", "Contrastive loss")):
        yield f"- {title}: {_first_and_last(training, name)}."
    yield from _utilisation(training)
    machine = figures["hardware"]
    gpus = ", ".join(machine.get("gpus", [])) or "no GPU"
    yield f"- Machine of the export, as detected: {machine['cpu']}, {machine['cores']} cores, {gpus}."
    yield from _cost(figures, config)
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    yield f"- Versions: {versions}."


def _cost(figures: dict[str, Any], config: RunConfig) -> Iterator[str]:
    """Time out of the log; what no record of the run holds is called so."""
    seconds = (figures["training"] or {"median": {}})["median"].get("seconds_per_step")
    ranks = config.layout.world
    if seconds is None:
        yield f"- Time: {NOT_MEASURED}; the run's layout has {ranks} ranks."
    else:
        hours = figures["step"] * seconds / 3600
        yield (
            f"- Time: {hours:.2f} h, the median {seconds:.3g} s a step times {figures['step']:,} steps, "
            f"without restarts and saving; {ranks} ranks, so {ranks * hours:.2f} rank-hours."
        )
    yield from _energy(figures)


def _energy(figures: dict[str, Any]) -> Iterator[str]:
    """What counters added up to, and what its operator said of the place; nothing is guessed from an address."""
    place, energy = figures["place"], figures["energy"]
    yield f"- Country: {place['country'] or 'not recorded'}."
    if not energy:
        yield f"- Energy and CO2: {NOT_MEASURED}, as no counter of the hardware could be read."
        return
    names = {"gpu_joules": "GPUs (NVML counters)", "cpu_joules": "processor packages (RAPL counters)"}
    parts = [
        f"{names[name]} {part['joules'] / JOULES_A_KWH:.4g} kWh over {part['lines']} of {part['of']} log lines"
        for name, part in energy.items()
    ]
    total = sum(part["joules"] for part in energy.values()) / JOULES_A_KWH
    yield (
        f"- Energy: {total:.4g} kWh measured: {', '.join(parts)}. Memory, disks, the network, power supplies and "
        "cooling are not in it."
    )
    grams = place["co2_grams_per_kwh"]
    if grams is None:
        yield "- CO2: not computed; nobody said what a kWh of the grid emits."
    else:
        kilograms = total * grams / 1000
        yield f"- CO2: {kilograms:.4g} kg, that energy times {grams:g} g a kWh, as the run's operator gave it."


def _first_and_last(training: dict[str, Any] | None, name: str) -> str:
    losses = training["losses"].get(name) if training else None
    if not losses:
        return NOT_MEASURED
    return f"{losses['first']:.4f} at step {losses['first_step']}, {losses['last']:.4f} at step {losses['last_step']}"


def _utilisation(training: dict[str, Any] | None) -> Iterator[str]:
    rates = training["median"] if training else {}
    if rates.get("pairs_per_second") is not None:
        yield f"- Speed, median over the log: {rates['pairs_per_second']:.2f} pairs a second."
    if not training or rates.get("mfu") is None:
        yield f"- MFU: {NOT_MEASURED}."
        return
    yield (
        f"- MFU, median over the log: {100 * rates['mfu']:.1f} % of {training['peak'] or 'a peak that was not noted'}. "
        "Counted are three times the forward of what is trained, the frozen encoder's forward once (not at all where "
        "its features were read from a cache), causal attention as half the square, and no recomputation."
    )


def _data(data: dict[str, Any] | None) -> Iterator[str]:
    yield from ("## Data", "")
    if data is None:
        yield "The dataset was not at hand when this was exported; its counts and licences are not known here."
        return
    yield f"{_dataset_title(data)}, fingerprint `{data['fingerprint']}`."
    yield from ("", "| split | clips | hours |", "|---|---:|---:|")
    for split, counts in data["splits"].items():
        yield f"| {split} | {counts['clips']:,} | {counts['hours']:.2f} |"
    yield from ("", "Licences of the clips: " + _counts(data["licences"]) + ".")
    more = f", and {data['sources_not_named']:,} more" if data["sources_not_named"] else ""
    yield from ("", f"Sources, in clips: {_counts(data['sources'])}{more}.")
    yield from _dropped(data)


def _dropped(data: dict[str, Any]) -> Iterator[str]:
    """Each filter's count, and its share of all that curation read: what was kept and what was dropped."""
    dropped = data["card"].get("dropped")
    if not isinstance(dropped, dict):
        return
    counts = {str(reason): count for reason, count in dropped.items() if isinstance(count, int)}
    kept = sum(counts_of["clips"] for counts_of in data["splits"].values())
    read = kept + sum(counts.values())
    yield from ("", f"Curation kept {kept:,} of {read:,} clips, {kept / max(1, read):.1%}, and dropped, by the filter")
    if not counts:
        yield "that decided: nothing."
        return
    yield from ("that decided:", "", "| filter | dropped | of all read |", "|---|---:|---:|")
    for reason, count in sorted(counts.items(), key=lambda one: -one[1]):
        yield f"| {reason} | {count:,} | {count / read:.1%} |"


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in counts.items()
    )


def _evaluation(evaluation: dict[str, Any] | None) -> Iterator[str]:
    yield from ("## Evaluation", "")
    if not evaluation:
        yield "Not evaluated."
        return
    yield (
        f"On {evaluation['clips']} clips of the split `{evaluation.get('split', 'heldout')}` with "
        f"{evaluation['questions']} questions. Intervals are bootstrap 95 %, resampling twin pairs."
    )
    yield from ("", "| figure | value | interval | chance |", "|---|---:|---:|---:|")
    chances = {
        "temporal_qa": "chance",
        "retrieval_t2v_r1": "retrieval_chance_r1",
        "retrieval_v2t_r1": "retrieval_chance_r1",
    }
    for name, title in REPORTED:
        chance = 0.5 if name == "twin_choice" else evaluation.get(chances.get(name, ""))
        yield _line(evaluation, name, title, chance)
    yield from (
        "",
        "The same questions with less to see; a model that reads time from the video is near chance here:",
        "",
    )
    yield from ("| control | accuracy | interval | chance |", "|---|---:|---:|---:|")
    for name, title in CONTROLS:
        yield _line(evaluation, f"temporal_qa_{name}", title, evaluation.get("chance"))
    kinds = evaluation.get("temporal_qa_by_kind") or {}
    if kinds:
        yield from (
            "",
            "By kind of question: " + ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items()) + ".",
        )


def _line(evaluation: dict[str, Any], name: str, title: str, chance: float | None) -> str:
    value, interval = evaluation.get(name), evaluation.get("intervals", {}).get(name)
    shown = NOT_MEASURED if value is None else f"{value:.3f}"
    span = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"| {title} | {shown} | {span} | {'' if chance is None else f'{chance:.3f}'} |"


def _limits(figures: dict[str, Any], config: RunConfig) -> Iterator[str]:
    seconds = config.data.frames / config.data.fps
    yield from ("## Limits", "")
    yield (
        f"- It was trained on clips of at most {seconds:g} s ({config.data.frames} frames at {config.data.fps:g} a "
        "second). Longer videos are read as consecutive windows, which this run did not train on or measure."
    )
    yield "- It knows only what its data show: the captions, questions and pictures above, in their language."
    yield "- Answers and captions can be wrong and sound sure. It was not tuned to follow instructions or to refuse."
    if figures["step"] < figures["steps_planned"]:
        yield "- The run had not ended when this was exported."
    if not figures["evaluation"]:
        yield "- Nothing was evaluated: treat it as untested."
