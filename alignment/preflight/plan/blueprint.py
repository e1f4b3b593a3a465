"""A pipeline without weights: its own classes and configuration on the meta device, behind its own `__call__`.

The pipeline runs as it always does, on the CPU, with its own scheduler; its networks take their inputs to the meta
device and compute there. Nothing here knows a model: what a pipeline asks its networks for is found out by running it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from alignment.config.shipped import CONFIGS
from alignment.data.prompts import Prompts, read_prompts
from alignment.errors import PipelineError
from alignment.policy.latents import Ends, Latents, Sample
from alignment.policy.networks.loading import components_listed, loop_networks
from alignment.policy.networks.low_memory import decode_in_parts
from alignment.policy.networks.spec import PolicySpec, not_a_pipeline
from alignment.preflight.plan.known_outputs import META
from reward_models.foreign import ForeignCode, first_line

ARCHITECTURES = CONFIGS / "architectures"
"""Sizes of pipelines that people know by a hub id, in a file of that name."""

_DESCRIPTIONS = ["*.json", "*.model", "*.txt"]
"""What is fetched of a pipeline on the hub: configuration and vocabularies, no weights."""

_CHARACTERS_A_TOKEN = 4
"""Where vocabularies are not at hand; about what they do to English."""

_LONGEST = 512
"""Tokens, where a text encoder sets no limit."""

_PLACES = ("<|image_pad|>", "<|video_pad|>")
"""Of a picture and of a clip in a text, in the vocabularies that have them; a processor counts them in what it cut."""

_PROMPT = " ".join(["word"] * 50)
"""About as long as the prompts people train on."""

_SIDE = 512
"""Of a picture to plan with, where the call does not say how large its own will be."""

Settings = dict[str, Any]

_HERE = property(lambda self: torch.device("cpu"))
"""The device of what stays on the CPU."""


@dataclass(frozen=True)
class Description:
    """What a pipeline is made of.

    Attributes:
        cls: Its class.
        parts: Name of the class and settings of each component; None for one that is not there.
        settings: Further arguments of the class.
        folder: Where its files are; None where only sizes are known.
    """

    cls: Any
    parts: Mapping[str, tuple[str, Settings] | None]
    settings: Settings
    folder: Path | None


def describe(spec: PolicySpec) -> Description:
    """Return what the pipeline of `spec` is made of, without reading a weight.

    Its own folder is asked first, then the sizes that ship, then the hub.

    Raises:
        PipelineError: If nothing describes it, or it names a class that is not there.
    """
    folder, sizes = Path(spec.pipeline), ARCHITECTURES / f"{spec.pipeline}.yaml"
    if not folder.is_dir() and sizes.is_file():
        listed: Settings = yaml.safe_load(sizes.read_text(encoding="utf-8"))
        name = listed.pop("_class_name")
        parts = {k: (v.pop("_class_name"), v) if v else None for k, v in listed.items() if isinstance(v, dict | None)}
        folder = None
    else:
        folder = folder if folder.is_dir() else _fetched(spec)
        if (reason := not_a_pipeline(folder)) is not None:
            raise PipelineError(f"policy.pipeline: {reason}")
        listed = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        name = listed.pop("_class_name")
        kinds = components_listed(listed)
        parts = {k: None if kind is None else (kind, _settings(folder / k)) for k, kind in kinds.items()}
    if not hasattr(diffusers, name):
        raise PipelineError(f"policy.pipeline: {spec.pipeline} is a {name}, which this diffusers does not have")
    settings = {k: v for k, v in listed.items() if k not in parts and not k.startswith("_")}
    return Description(getattr(diffusers, name), parts, settings, folder)


def _settings(folder: Path) -> Settings:
    file = next((folder / n for n in ("config.json", "scheduler_config.json") if (folder / n).is_file()), None)
    return {} if file is None else json.loads(file.read_text(encoding="utf-8"))


def _fetched(spec: PolicySpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(spec.pipeline, revision=spec.revision, allow_patterns=_DESCRIPTIONS))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PipelineError(
            f"policy.pipeline: the configuration of {spec.pipeline} is not on this machine, and the hub did not give "
            "it. A plan needs model_index.json and each component's config.json, no weights: set policy.pipeline to a "
            "folder that has them"
        ) from error


def draw(spec: PolicySpec) -> Any:
    """Return the pipeline of `spec` without weights.

    Raises:
        PipelineError: If its configuration is not at hand, or nothing can be built from it.
    """
    described = describe(spec)

    def unbuildable(error: BaseException) -> PipelineError:
        reason = first_line(error)
        return PipelineError(f"policy.pipeline: {spec.pipeline} cannot be planned: {reason}")

    with ForeignCode(unbuildable):
        parts = {
            name: None if part is None else _component(name, part, described, spec)
            for name, part in described.parts.items()
        }
        words = {
            name.replace("text_encoder", "tokenizer"): _vocabulary(encoder)
            for name, encoder in parts.items()
            if name.startswith("text_encoder") and encoder is not None
        }
        processor = described.parts.get("processor")
        if processor is not None and parts["processor"] is None:
            parts["processor"] = _processor(processor, parts.get("tokenizer") or words["tokenizer"])
        takes = inspect.signature(described.cls.__init__).parameters
        parts |= {name: made for name, made in words.items() if name in takes and parts.get(name) is None}
        # Tensors of the pipeline's own stay on the CPU; its networks alone are elsewhere.
        body = {"_execution_device": _HERE, "device": _HERE, "__module__": described.cls.__module__}
        pipe = type(described.cls.__name__, (described.cls,), body)(**parts, **described.settings)
    pipe.set_progress_bar_config(disable=True)
    decode_in_parts(pipe, spec.decode)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            _compute_on_meta(part, encodes=name.startswith("text_encoder"), in_loop=name in loop_networks(pipe))
    return pipe


class BlankLatents(Latents):
    """Latents of samples where nothing is encoded: a run does that once, and keeps it."""

    def __init__(self, pipe: Any, shape: tuple[int, ...]) -> None:
        super().__init__(pipe, pipe.device, Ends(lambda: torch.Size(shape), lambda state: state), None)
        self._shape = shape

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return zeros, `[n, *shape]`."""
        return torch.zeros(len(samples), *self._shape)

    def pixels(self, sample: Sample) -> Tensor:
        """Return one black pixel."""
        return torch.zeros(1, 3, 1, 1)


def stand_in_prompts(spec: PolicySpec, folder: Path) -> Prompts:
    """Return a prompt to plan with, and a picture in `folder` where the pipeline takes one."""
    if "image" not in inspect.signature(describe(spec).cls.__call__).parameters:
        return Prompts((_PROMPT,))
    width, height = (side if isinstance(side, int) else _SIDE for side in map(spec.call.get, ("width", "height")))
    Image.new("RGB", (width, height)).save(folder / "picture.png")
    record = {"prompt": _PROMPT, "image": "picture.png"}
    (folder / "prompts.jsonl").write_text(json.dumps(record), encoding="utf-8")
    return read_prompts(str(folder / "prompts.jsonl"))


def _component(name: str, part: tuple[str, Settings], described: Description, spec: PolicySpec) -> Any:
    """Return a component without weights; None for a vocabulary that is not at hand, or another library's class."""
    kind, settings = part
    library = next((library for library in (diffusers, transformers) if hasattr(library, kind)), None)
    if library is None:
        return None
    cls: Any = getattr(library, kind)
    if nn.Module not in cls.__mro__:
        if library is diffusers:
            return cls.from_config(settings)
        if described.folder is not None and (described.folder / name).is_dir():
            return cls.from_pretrained(described.folder / name)
        return cls() if issubclass(cls, transformers.BaseImageProcessor) else None
    with torch.device(META):
        network = cls.from_config(settings) if library is diffusers else cls(cls.config_class.from_dict(settings))
    _store_as(network, getattr(torch, spec.dtype))
    return network.requires_grad_(False).eval()


def _store_as(network: nn.Module, dtype: torch.dtype) -> None:
    """Store weights as loading in `dtype` does: modules that ask for it stay float32."""
    kept = vars(type(network)).get("_keep_in_fp32_modules") or ()
    for name, parameter in network.named_parameters():
        full = any(part in name.split(".") for part in kept)
        parameter.data = parameter.data.to(torch.float32 if full else dtype)


def _vocabulary(encoder: Any) -> Any:
    """Return a tokenizer that cuts text into pieces of four characters, as long as its text encoder allows."""
    settings = encoder.config.get_text_config().to_dict()
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{1,{_CHARACTERS_A_TOKEN}}}"), "isolated")
    words.add_special_tokens(list(_PLACES))  # found before a text is cut, wherever they stand
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end>",
        model_max_length=settings.get("max_position_embeddings", _LONGEST),
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _processor(part: Any, tokenizer: Any) -> Any:
    """Return what prepares pictures and texts for a text encoder that also sees."""
    return getattr(transformers, part[0])(
        image_processor=transformers.Qwen2VLImageProcessor(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
    )


# ---- networks between two devices ------------------------------------------------------------------------------------


def _compute_on_meta(network: Any, *, encodes: bool, in_loop: bool) -> None:
    """Let a network take its inputs to the meta device.

    Args:
        network: The network.
        encodes: Whether it encodes text: it then answers without computing.
        in_loop: Whether whoever calls it looks after its answer; else that comes back to the CPU.
    """
    if encodes:
        network.register_forward_pre_hook(_ids_alone, with_kwargs=True)
        vars(network)["forward"] = lambda ids: _encoded(network, ids)
        return
    autoencoder = hasattr(network, "encode") and hasattr(network, "decode")  # which call its parts
    if autoencoder:
        _read_on_cpu(network)
    for name, module in network.named_children() if autoencoder else [("", network)]:
        module.register_forward_pre_hook(_to_meta_in_place if autoencoder else _to_meta, with_kwargs=True)
        if not in_loop and name != "decoder":  # pixels are large and stay where they are
            module.register_forward_hook(_back)


def _read_on_cpu(network: nn.Module) -> None:
    """Let a pipeline find on the CPU what it reads of an autoencoder itself: its device, statistics of its latents."""
    body = {"device": _HERE, "__module__": type(network).__module__}
    network.__class__ = type(type(network).__name__, (type(network),), body)
    for child in (child for child in network.children() if not list(child.parameters())):
        for name, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(name, torch.ones_like(buffer, device="cpu"))


def _to_meta(network: nn.Module, args: Any, named: Any) -> Any:
    return tree_map_only(Tensor, lambda z: z.to(META), (args, named))


def _to_meta_in_place(network: nn.Module, args: Any, named: Any) -> Any:
    """Keep lists: autoencoders of clips are handed one to remember the last frames in."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            value[:] = map(moved, value)
            return value
        return value.to(META) if isinstance(value, Tensor) else value

    return tuple(map(moved, args)), {name: moved(value) for name, value in named.items()}


def _back(network: nn.Module, args: Any, answer: Any) -> Any:
    return tree_map_only(Tensor, zeros, answer)


def zeros(z: Tensor) -> Tensor:
    """Return zeros of a tensor's shape on the CPU, which take no memory."""
    return torch.zeros((), dtype=z.dtype).expand(z.shape)


def _ids_alone(network: nn.Module, args: Any, named: Mapping[str, Any]) -> Any:
    return ((named["input_ids"] if "input_ids" in named else args[0],), {})


def _encoded(network: Any, ids: Tensor) -> Any:
    """Return what a text encoder answers, zeros of the right shape; its own masks could not be made without values."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.clip.modeling_clip import CLIPTextModelOutput

    config = network.config.get_text_config()
    blank = torch.zeros((), dtype=network.dtype)
    states = blank.expand(*ids.shape, config.hidden_size)
    layers = (states,) * (config.num_hidden_layers + 1)
    if hasattr(network, "text_projection"):
        return CLIPTextModelOutput(
            text_embeds=blank.expand(len(ids), config.projection_dim), last_hidden_state=states, hidden_states=layers
        )
    return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0], hidden_states=layers)
