"""What users load: weights in diffusers' own layout, and the model card that records where they come from.

A folder written here needs nothing of this package: `pipe.load_lora_weights(folder)`, or
`from_pretrained(folder, subfolder=component)` after full fine-tuning. The card in it shows the exact code.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin

from alignment import __version__
from alignment.checkpoints.adapter_files import frozen_file, lying_under, trained_adapters, write_adapter
from alignment.checkpoints.network_files import write_network
from alignment.errors import CheckpointError
from alignment.policy.networks.adapter_places import CARD_DATA, file_name
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import GGUF
from alignment.policy.networks.weights import Weights
from alignment.reports.terminal import visible

CARD = "README.md"
SECRET = re.compile(r"token|secret|password|credential|authorization|api_?key", re.IGNORECASE)
USERINFO_OR_QUERY = re.compile(r"(?<=://)[^/@\s]*@|(?<=\w)\?\S*(?=$)")

MARKUP = frozenset("\\`*_{}[]()#+!|~$")
"""What Markdown would read; other marks are HTML's."""

SavedLayout = Literal["lora", "adapter", "alone", "peft", "comfyui", "kohya", "component", "pipeline", "original"]
"""What lies in a folder: adapters that the pipeline loads, that only the component loads, that diffusers cannot load at
all; adapters in another program's format; or whole weights, in diffusers' names or in their authors'."""
_BY_REACH: tuple[SavedLayout, ...] = ("alone", "adapter", "lora")
"""Of adapters of several kinds in one folder, the first of these that one of them has is that of all."""


@dataclass(frozen=True)
class Card:
    """What a model card holds.

    Attributes:
        config: The resolved config; names of recipe, rewards and base model are read from it.
        step: Steps trained.
        evaluation: {metric: {"base", "final": {"mean", "low", "high", "n"}}}, as in `summary.json`; any may be missing.
        task: The hub's name for what the pipeline does.
        trigger: Words that call up what was learned; None where there are none.
        licence: The hub's name of the weights' licence; None where nobody said.
        base: Hash of the base pipeline's content, as training had loaded it; None in cards of earlier versions.
    """

    config: Mapping[str, Any]
    step: int
    evaluation: Mapping[str, Mapping[str, Mapping[str, float]]]
    task: str = "text-to-image"
    trigger: str | None = None
    licence: str | None = None
    base: str | None = None

    @property
    def rounded(self) -> str | None:
        """How the base's weights were rounded in training: `policy.quantize`, or a GGUF file; None as they are."""
        policy = self.config["policy"]
        file = policy.get("single_file") or ""
        return policy.get("quantize") or (Path(file).name if file.endswith(GGUF) else None)


@dataclass(frozen=True)
class Classes:
    """What a pipeline is made of, as far as its card needs it.

    Attributes:
        pipeline: Its class.
        trained: Classes of the trained components by name, the main one first.
    """

    pipeline: type
    trained: Mapping[str, type]

    @classmethod
    def of(cls, pipe: Any) -> Classes:
        """Return the classes of a pipeline."""
        return cls(type(pipe), {name: type(network) for name, network in experts(pipe).items()})

    @property
    def main(self) -> str:
        """Name of the main trained component."""
        return next(iter(self.trained))

    def layout(self, kind: str) -> SavedLayout:
        """Return how diffusers loads adapters of them: LoRA into pipelines, LoKr into networks, LoHa not at all."""
        if kind == "LoHa" or not issubclass(self.trained[self.main], PeftAdapterMixin):
            return "alone"
        return "adapter" if kind == "LoKr" or not issubclass(self.pipeline, LoraBaseMixin) else "lora"


def write_artifacts(folder: Path, pipe: Any, weights: Weights, card: Card, *, writes: bool = True) -> None:
    """Write the trained weights that are in place now, the frozen adapters under them, and their card.

    Where processes hold parts of the weights, all of them call this together.

    Args:
        folder: An existing folder.
        pipe: A diffusers pipeline.
        weights: Its trained weights. Of adapters, a file for each trained network and one for each frozen adapter is
            written; otherwise whole components, which have the frozen adapters in them.
        card: The model card.
        writes: Whether this process writes; the others bring their parts.
    """
    main, classes = next(iter(weights.experts)), Classes.of(pipe)
    layout: SavedLayout = "component"
    if weights.spec.lora is None:
        for name, network in weights.experts.items():
            write_network(network, folder / name, writes=writes)
    else:
        trained = trained_adapters(weights)
        under = [adapter for adapters, _ in weights.brought.frozen for adapter in adapters.values()]
        layouts = {classes.layout(adapter.kind) for adapter in (*trained.values(), *under)}
        layout = next(kind for kind in _BY_REACH if kind in layouts)
        for name, adapter in trained.items():
            if writes:
                write_adapter(adapter, folder / file_name(name, main), main)
        for k, (adapters, _) in enumerate(weights.brought.frozen):
            for name, adapter in adapters.items():
                if writes:
                    write_adapter(adapter, folder / frozen_file(k, name, main), main)
    if writes:
        write_card(folder, classes, layout=layout, card=card)


def write_card(folder: Path, classes: Classes, *, layout: SavedLayout, card: Card) -> None:
    """Write the card as Markdown for people and as JSON for `visalign export`, without secrets.

    Args:
        folder: Where to.
        classes: What the pipeline is made of.
        layout: What lies beside the card.
        card: Its content.
    """
    shown = {**asdict(card), "config": _public(card.config)}
    (folder / CARD_DATA).write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    base, component = str(shown["config"]["policy"]["pipeline"]), classes.main
    base_name = name_of_base(card)
    whole = layout in ("component", "pipeline", "original")
    header = {
        "base_model": base_name,
        **({} if card.licence is None else {"license": card.licence}),
        "library_name": "diffusers",
        "pipeline_tag": card.task,
        "tags": [card.task, *([] if whole else ["lora"]), "diffusers", "visalign"],
        **({} if card.trigger is None else {"instance_prompt": card.trigger}),
    }
    text = _template().render(
        card=shown,
        header=_yaml(header),
        layout=layout,
        base=base,
        base_name=base_name,
        rounded=card.rounded,
        component=component,
        files={name: file_name(name, component) for name in classes.trained if name != component},
        samplers=[told for told in shown["config"]["policy"].get("adapters") or () if told.get("when") == "sampling"],
        frozen=_frozen(folder, lying_under(shown["config"]), tuple(classes.trained)),
        classes={"pipeline": classes.pipeline.__name__, "component": classes.trained[component].__name__},
        version=__version__,
        interval=_interval,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def name_of_base(card: Card) -> str:
    """Return what others know the base pipeline as: a hub id, or the last part of a folder's path."""
    base = str(_public(card.config["policy"]["pipeline"]))
    return Path(base).name if Path(base).exists() else base


def _frozen(folder: Path, adapters: Sequence[Mapping[str, Any]], components: Sequence[str]) -> list[dict[str, Any]]:
    """Return what each component needs to be as it was under the trained adapters, where it needs something."""
    main, found = components[0], []
    for component in components:
        named = [(k, frozen_file(k, component, main), told["weight"]) for k, told in enumerate(adapters)]
        places = [(k, file, Path(file).stem, weight) for k, file, weight in named]  # PEFT has a folder for each
        files = [
            (f"frozen_{k}", file if (folder / file).is_file() else stem, weight)
            for k, file, stem, weight in places
            if (folder / file).is_file() or (folder / stem).is_dir()
        ]
        if files:
            found.append({"component": component, "files": files})
    return found


def read_card(folder: Path) -> Card:
    """Return the card of a folder written here.

    Raises:
        CheckpointError: If there is none.
    """
    path = folder / CARD_DATA
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); is {folder} a checkpoint-N folder?") from None


def _public(value: Any) -> Any:
    """Return the config without the values of keys that name a secret, and URLs without user and query."""
    if isinstance(value, Mapping):
        return {
            key: "***" if SECRET.search(str(key)) and isinstance(entry, str) else _public(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [_public(entry) for entry in value]
    return USERINFO_OR_QUERY.sub("", value) if isinstance(value, str) and "://" in value else value


def _yaml(value: object, *, flow: bool = False) -> str:
    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=2**16 if flow else 100
    )
    return text.removesuffix("...\n").strip()


def _interval(found: Mapping[str, Mapping[str, float | None]], when: str) -> str:
    if when not in found:  # a checkpoint from the middle of a run
        return "not measured"
    mean, low, high = (found[when][name] for name in ("mean", "low", "high"))
    if mean is None:
        return "no picture could be scored"
    # One prompt alone has no interval.
    return f"{mean:.4f}" if low is None or high is None else f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def _cell(text: object) -> str:
    """Return text as a cell of a Markdown table shows it: no markup, one line."""
    line = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in MARKUP else html.escape(letter) for letter in visible(line))


def _code(text: object) -> str:
    """Return text as code within a line of a Markdown table, whatever marks it has."""
    line = visible(" ".join(str(text).split())).replace("|", "\\|")
    fence = _fence(line, 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _fence(text: str, least: int = 3) -> str:
    """Return more back-ticks than stand side by side in `text`."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


@functools.cache
def _template() -> jinja2.Template:
    # The output is Markdown, where escaping for HTML would spoil the config.
    surroundings = jinja2.Environment(
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    surroundings.filters.update(
        block=_yaml, inline=lambda value: _yaml(value, flow=True), literal=repr, string=json.dumps,
        cell=_cell, code=_code, fence=_fence,
    )  # fmt: skip
    return surroundings.from_string(
        resources.files("alignment.checkpoints").joinpath("card.md.jinja").read_text(encoding="utf-8")
    )
