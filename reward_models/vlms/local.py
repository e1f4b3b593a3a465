"""A vision-language model in this process: any that transformers loads for images and text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from reward_models.base import RewardError
from reward_models.foreign import ForeignCode, first_line
from reward_models.loading.weights import quiet_transformers
from reward_models.vlms.base import CUE, NO, YES, Question, Verdicts, Vlm, fit, spells


@dataclass(frozen=True)
class Local(Vlm):
    """Load a model for images and text by the generic classes of transformers (Qwen-VL, InternVL, LLaVA, Gemma, ...).

    Attributes:
        model: Folder or hub id, with its processor and chat template; weights in safetensors.
        adapter: Folder of a LoRA adapter in PEFT's layout, which is folded into the weights; null for none.
        revision: Hub revision; null for the default branch.
        dtype: Precision of the weights. Log-probabilities are computed in float32 whatever it is.
        batch_size: Questions in one forward pass.
        side: Longest side in pixels that the model is shown; larger pictures are scaled down. Null: as they are.
        clips: Whether clips are passed as videos, or frame by frame for models that take only pictures.
        template: Further arguments of the chat template. By default thinking is turned off where the template allows
            it.
    """

    model: str
    adapter: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 16
    side: int | None = None
    clips: Literal["video", "frames"] = "video"
    template: Mapping[str, object] = field(default_factory=dict)

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.side is not None and self.side < 1):
            raise RewardError(f"vlm: batch_size and side are at least 1, got {self.batch_size} and {self.side}")

    def __str__(self) -> str:
        """Return where the model comes from."""
        return self.model

    def load(self, *, device: torch.device) -> LocalReader:
        """Return the model on `device`, frozen.

        Raises:
            RewardError: If the folder or hub id holds no such model, or one that cannot answer.
        """
        model, processor = _loaded(self)
        return LocalReader(self, model.requires_grad_(False).eval().to(device), processor)


def _loaded(described: Local) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    name, revision = described.model, described.revision
    named = name if described.adapter is None else f"{name} with the adapter {described.adapter}"

    def unloadable(error: BaseException) -> RewardError:
        return RewardError(
            f"vlm: {named} could not be loaded: {first_line(error)}. It has to be a model for images and text "
            "with its processor, as `save_pretrained` writes them, or a hub id"
        )

    with ForeignCode(unloadable):
        processor = AutoProcessor.from_pretrained(name, revision=revision)
        with quiet_transformers():  # its table of loaded weights is what we turn into an error
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name,
                revision=revision,
                dtype=getattr(torch, described.dtype),
                use_safetensors=True,
                output_loading_info=True,
            )
        model, found = loaded
        if described.adapter is not None:
            model = _adapted(model, described.adapter)
    if found["missing_keys"]:
        lacking = sorted(found["missing_keys"])
        raise RewardError(f"vlm: the weights of {name} lack {len(lacking)} tensors: {', '.join(lacking[:3])}, ...")
    _check_kind(name, model, processor)
    return model, processor


def _adapted(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, use_safetensors=True).merge_and_unload()


def _check_kind(name: str, model: Any, processor: Any) -> None:
    """Refuse models that load but cannot be asked."""
    if model.config.is_encoder_decoder:
        raise RewardError(f"vlm: {name} is an encoder-decoder; a judge has to write its answer after the question")
    if "image_processor" not in vars(processor):
        raise RewardError(f"vlm: {name} has no image processor ({type(processor).__name__}); it cannot see")
    if processor.chat_template is None:
        raise RewardError(f"vlm: {name} has no chat template (chat_template.jinja): it cannot be asked a question")


def _template(described: Local, written: str) -> dict[str, object]:
    """Return the arguments of the chat template.

    A template that thinks by default opens a block of thought at once, and the next word is not a verdict.
    """
    unknown = [name for name in described.template if name not in written]
    if unknown:
        raise RewardError(f"vlm: the chat template of {described} knows no {', '.join(unknown)}; take it out")
    return {**({"enable_thinking": False} if "enable_thinking" in written else {}), **described.template}


class LocalReader:
    """A loaded model, its processor, and the tokens that mean yes and no.

    Attributes:
        model: Frozen and in eval mode; a training loop may unfreeze it.
        processor: Text and pictures to tensors; pads on the left.
    """

    def __init__(self, described: Local, model: Any, processor: Any) -> None:
        self.described, self.model, self.processor = described, model, processor
        tokenizer = processor.tokenizer
        # On the left, so that the last column of logits is what follows each question, however long it is.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._template = _template(described, processor.chat_template)
        self._yes, self._no = (_spellings(described, tokenizer, word) for word in (YES, NO))
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model.forward) else {}

    def verdicts(self, questions: Sequence[Question], *, reasoning: int = 0) -> Verdicts:
        """Return how likely yes and no are, from the logits at the place of the answer; see `Reader`.

        Gradients reach the clips, and the weights where they are unfrozen; not through the words of the reasoning.
        """
        starts = [""] * len(questions)
        if reasoning:
            starts = [_up_to_verdict(text) for text in self.write(questions, tokens=reasoning)]
        found = [self._next(questions[rows], starts[rows]) for rows in self._chunks(len(questions))]
        yes, no = (torch.cat(column) for column in zip(*found, strict=True))
        undecided = torch.tensor([bool(reasoning) and not start for start in starts], device=yes.device)
        return Verdicts(yes.masked_fill(undecided, torch.nan), no.masked_fill(undecided, torch.nan))

    def chances(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return how likely the next token begins one of the answers; see `Reader`."""
        tokenizer, found = self.processor.tokenizer, []
        for rows in self._chunks(len(questions)):
            chances = self._log_probs(questions[rows], [""] * len(questions[rows])).exp()
            for row, spelled in zip(chances, answers[rows], strict=True):
                begins = {tokenizer.encode(one, add_special_tokens=False)[0] for one in spelled}
                found.append(row[sorted(begins)].sum())
        return torch.stack(found)

    def log_likelihood(self, questions: Sequence[Question], answers: Sequence[str]) -> Tensor:
        """Return the log-probability `[B]` of each answer, word for word, with gradients: to learn to write it."""
        found = []
        for rows in self._chunks(len(questions)):
            batch = self._batch(questions[rows], answers[rows])
            # Padding is on the left, so an answer is the last of its row, and each of its tokens is told one before.
            lengths = self._lengths(questions[rows], answers[rows])
            longest = max(lengths)
            logits = self.model(**batch).logits[:, -longest - 1 : -1].float()
            word_log_probs = logits.log_softmax(-1).gather(2, batch["input_ids"][:, -longest:, None])[..., 0]
            outside = torch.arange(longest)[None] < longest - torch.tensor(lengths)[:, None]
            found.append(word_log_probs.masked_fill(outside.to(word_log_probs.device), 0.0).sum(1))
        return torch.cat(found)

    def _lengths(self, questions: Sequence[Question], answers: Sequence[str]) -> list[int]:
        tokenizer, texts = self.processor.tokenizer, [self._text(question, False) for question in questions]
        whole = tokenizer([text + answer for text, answer in zip(texts, answers, strict=True)])["input_ids"]
        return [len(w) - len(q) for w, q in zip(whole, tokenizer(texts)["input_ids"], strict=True)]

    @torch.no_grad()
    def write(self, questions: Sequence[Question], *, tokens: int) -> list[str]:
        """Return the likeliest continuation of each question; see `Reader`."""
        from transformers import GenerationConfig

        tokenizer, written = self.processor.tokenizer, []
        # Our own: a model's generation_config.json may sample, or punish repetition, which verdicts are full of.
        plan = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_ends(self.model.generation_config.eos_token_id, tokenizer.eos_token_id),
        )
        for rows in self._chunks(len(questions)):
            batch = self._batch(questions[rows], [""] * len(questions[rows]))
            ids = self.model.generate(**batch, generation_config=plan)
            written += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return written

    def _chunks(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.described.batch_size):
            yield slice(start, start + self.described.batch_size)

    def _next(self, questions: Sequence[Question], starts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities `[B]` of yes and no after the question and the start of an answer."""
        log_probs = self._log_probs(questions, starts)
        return log_probs[:, self._yes].logsumexp(-1), log_probs[:, self._no].logsumexp(-1)

    def _log_probs(self, questions: Sequence[Question], starts: Sequence[str]) -> Tensor:
        """Return the log-probabilities of every token after the question and the start of an answer, `[B, tokens]`."""
        batch = self._batch(questions, starts)
        return self.model(**batch, **self._only_last).logits[:, -1].float().log_softmax(-1)

    def _batch(self, questions: Sequence[Question], starts: Sequence[str]) -> Any:
        """Return everything the processor makes of the questions: some models need more than ids and pixels."""
        shown = [[fit(clip, self.described.side) for clip in question.clips] for question in questions]
        as_video = self.described.clips == "video" and any(len(clip) > 1 for clips in shown for clip in clips)
        texts = [self._text(question, as_video) + start for question, start in zip(questions, starts, strict=True)]
        pictures = None if as_video else [[frame for clip in clips for frame in clip] for clips in shown]
        videos = [clip for clips in shown for clip in clips] if as_video else None
        bos = self.processor.tokenizer.bos_token
        try:
            batch = self.processor(
                text=texts,
                images=pictures if pictures and any(pictures) else None,
                videos=videos,
                text_kwargs={"padding": True, "add_special_tokens": not (bos and texts[0].startswith(bos))},
                # Pixels come in [0, 1], and the frames have been chosen.
                images_kwargs={"do_rescale": False},
                videos_kwargs={"do_rescale": False, "do_sample_frames": False, **_timing(videos, questions)},
                common_kwargs={"return_tensors": "pt"},
            )
        except (ValueError, TypeError, IndexError) as error:
            raise RewardError(f"vlm: the processor of {self.described} refuses the question: {error}") from error
        if torch.is_grad_enabled() and any(clip.requires_grad for clips in shown for clip in clips):
            self._check_graph(batch)
        return batch.to(self.model.device, dtype=self.model.dtype)

    def _text(self, question: Question, as_video: bool) -> str:
        """Return the question in the model's own chat format, up to where the answer begins."""
        content: list[dict[str, str]] = []
        for piece in question.pieces:
            if isinstance(piece, str):
                content.append({"type": "text", "text": piece})
            else:
                content += [{"type": "video"}] if as_video else [{"type": "image"}] * len(piece)
        message = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(message, add_generation_prompt=True, **self._template)

    def _check_graph(self, batch: Any) -> None:
        if not any(isinstance(value, Tensor) and value.requires_grad for value in batch.values()):
            raise RewardError(
                f"vlm: gradients cannot pass through {type(self.processor).__name__} of {self.described}: it turns "
                "pixels into arrays. Use the model with policy-gradient methods, which need none"
            )


def _ends(*ids: int | list[int] | None) -> list[int]:
    """Return every token that ends an answer."""
    return sorted({index for one in ids if one is not None for index in ([one] if isinstance(one, int) else one)})


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _timing(videos: Sequence[Tensor] | None, questions: Sequence[Question]) -> dict[str, object]:
    """Return when each frame of each video is shown; without it Qwen3-VL would assume 24 frames per second."""
    if videos is None:
        return {}
    rates = [question.fps for question in questions for _ in question.clips]
    return {
        "video_metadata": [
            {"total_num_frames": len(clip), "fps": rate, "frames_indices": list(range(len(clip)))}
            for clip, rate in zip(videos, rates, strict=True)
        ]
    }


def _spellings(described: Local, tokenizer: Any, word: str) -> list[int]:
    """Return the tokens that are the word: "Yes" and " yes" have ids of their own, and all of them are a yes."""
    pieces = {index: piece for piece, index in tokenizer.get_vocab().items() if word in piece.lower()}
    found = [i for i, piece in pieces.items() if spells(tokenizer.convert_tokens_to_string([piece]), word)]
    if not found:
        raise RewardError(f"vlm: the tokenizer of {described} has no token for {word!r}; its answer cannot be read")
    return sorted(found)


def _up_to_verdict(text: str) -> str:
    """Return the text up to and with its last cue, or nothing where there is none."""
    before, cue, _ = text.rpartition(CUE)
    return before + cue
