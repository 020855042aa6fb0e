"""A release as a model of lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval), which finds it by an entry point.

    python -m lmms_eval --model xgenvideo --model_args release=RELEASE --tasks videomme --batch_size 1

lmms-eval imports this module; nothing of this program does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from torch import Tensor

from xgenvideo.data.text import Document, question_document
from xgenvideo.errors import ConfigError
from xgenvideo.infer.generate import generate, question_ids
from xgenvideo.infer.likelihood import log_likelihoods
from xgenvideo.infer.release import NEW_TOKENS, Release, load_release

REMEMBERED = 8


def manifest() -> ModelManifest:
    """What lmms-eval learns from the entry point: the name `xgenvideo` and where the class is."""
    return ModelManifest(model_id="xgenvideo", simple_class_path=f"{__name__}.XGenVideo")


class XGenVideo(lmms):  # type: ignore[misc]
    """Answers lmms-eval's requests from whole videos at the release's own rate, each decoded once for its questions."""

    is_simple = True

    def __init__(self, release: str, device: str = "cpu", **unused: Any) -> None:
        """`release`: a folder that `xgv export` wrote. lmms-eval also hands over its batch size, which is 1 here."""
        super().__init__()
        self.release: Release = load_release(Path(release), device)
        self.device = device
        self._latents: dict[str, Tensor] = {}

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """For each (context, continuation): its loss, and whether greedy decoding writes just it.

        The loss is minus the summed log-likelihood, in nats, of the continuation and its end: lmms-eval takes the
        option with the smallest number, whatever the name of this method (`process_results` in its api/task.py).
        """
        found = []
        for context, continuation, *rest in (request.args for request in requests):
            document = self._document(context, self._target(continuation, *rest[1:]))
            latents = self._watch(*rest)
            (nats,) = log_likelihoods(self.release.model, [document], latents, [0])
            # lmms-eval 0.7.3 turns a bare pair into a text before a task reads it; what is wrapped is left alone.
            found.append(GenerationResult((-nats, self._is_greedy(document, latents))))
        return found

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """For each (context, settings): the text up to the first of the settings' `until`."""
        found = []
        for context, settings, *rest in (request.args for request in requests):
            ids = question_ids(_question(context), self.release.tokenizer)
            drawn = bool(settings.get("do_sample")) and float(settings.get("temperature") or 0.0)
            written = generate(
                self.release.model,
                self.release.tokenizer,
                self._watch(*rest),
                [ids],
                int(settings.get("max_new_tokens") or NEW_TOKENS),
                temperature=float(drawn),
                top_p=float(settings.get("top_p") or 1.0) if drawn else 1.0,
                seed=0,
            )
            text = self.release.tokenizer.decode(written[0]).strip()
            until = settings.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.split(stop)[0] if stop else text
            found.append(text)
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Conversations of several rounds are not what this model was trained on. Raises ConfigError."""
        raise ConfigError("output_type", "generate_until_multi_round", "is not for a model of single questions")

    def _document(self, context: str, continuation: str) -> Document:
        return question_document(_question(context), continuation.strip(), self.release.tokenizer)

    def _target(self, continuation: str | Callable[[Any], str], doc_id: int, task: str, split: str) -> str:
        """Tasks of the type loglikelihood hand over a function of the row."""
        if callable(continuation):
            return str(continuation(self.task_dict[task][split][doc_id]))
        return continuation

    def _watch(self, to_visual: Callable[[Any], Any] | None, doc_id: int, task: str, split: str) -> Tensor | None:
        """Latents [1 W*Q Dr] of the row's video; None for a row without one. The last few videos are remembered."""
        visuals = [] if to_visual is None else to_visual(self.task_dict[task][split][doc_id]) or []
        if not visuals:
            return None
        if len(visuals) != 1 or not isinstance(visuals[0], str | Path):
            kinds = [type(one).__name__ for one in visuals]
            raise ConfigError("doc_to_visual", kinds, "must give one path of a video, so that its times are known")
        path = str(visuals[0])
        if path not in self._latents:
            while len(self._latents) >= REMEMBERED:
                del self._latents[next(iter(self._latents))]
            self._latents[path] = self.release.latents(Path(path))
        return self._latents[path]

    def _is_greedy(self, document: Document, latents: Tensor | None) -> bool:
        prompt, answer = document.ids[: document.predicted_from], document.ids[document.predicted_from : -1]
        room = len(answer) + 1
        (written,) = generate(self.release.model, self.release.tokenizer, latents, [list(prompt)], room)
        return tuple(written) == answer


def _question(context: str) -> str:
    """The question alone, where a task has written it as this model was trained: "Question: ... Answer:"."""
    return context.strip().removeprefix("Question:").removesuffix("Answer:").strip()
