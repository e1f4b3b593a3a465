"""Adapters under those that are trained, and kinds of new ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.checkpoints.adapter_files import frozen_file, trained_adapters, write_adapter
from alignment.checkpoints.artifacts import CARD, Card, write_artifacts
from alignment.checkpoints.checkpoint import Checkpoints
from alignment.checkpoints.export import Order, export
from alignment.checkpoints.lineage import compare_bases
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_CONFIG, PEFT_FILE, Place
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import FrozenAdapter, Lora, PolicySpec
from alignment.policy.networks.tuning import add_lora
from alignment.policy.networks.weights import bring
from alignment.policy.policy import Policy
from tests.support.adapters import save
from tests.support.policies import DYNAMICS, build, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, picture, tiny_flux
from tests.support.trained import card_of, config_of, quiet

FOLDED = 1e-5
"""Folded into the weights, adapters add up in another order than beside them."""

ODD = Lora(2, alpha=3)
"""An alpha that is not the rank."""


def shown(policy: Policy) -> Tensor:
    """Return the picture that a policy makes as a user would: what `picture` makes of a plain pipeline."""
    return policy.generate(("a red circle",), torch.tensor([0]), {}).pixels[0, 0].permute(1, 2, 0)


def test_frozen_adapters_are_in_all_that_the_policy_does(flux_folder: Path, tmp_path: Path) -> None:
    """Rollout, replay, evaluation and reference are those of plain diffusers with the same adapters and weights."""
    weights = {"one": 0.7, "two": -0.4}
    plain = quiet(DiffusionPipeline.from_pretrained(flux_folder))
    for name in weights:
        save(tiny_flux(), tmp_path / name, Lora(2, targets=("to_q", "to_v") if name == "one" else ("to_q", "to_k")))
        plain.load_lora_weights(str(tmp_path / name), adapter_name=name)
    plain.set_adapters(list(weights), list(weights.values()))
    stack = tuple(FrozenAdapter(str(tmp_path / name), weight) for name, weight in weights.items())
    policy = build(flux_folder, FLUX_CALL, adapters=stack, lora=Lora(2))
    bare = build(flux_folder, FLUX_CALL)
    wanted = picture(plain)
    seen = shown(policy)
    torch.testing.assert_close(seen, wanted, atol=FOLDED, rtol=0)
    assert (shown(bare) - wanted).abs().max() > 0.01
    _, batch = transitions(policy, plan(policy, DYNAMICS["flux"][0]))
    assert all(torch.equal(v, batch.model_output[:, k]) for k, v in enumerate(replayed(policy, batch)))
    perturb(policy)
    with policy.using("reference"):
        kept = shown(policy)
    torch.testing.assert_close(kept, wanted, atol=FOLDED, rtol=0)


def test_adapters_that_do_not_add_up_are_refused(flux_folder: Path, tmp_path: Path) -> None:
    save(tiny_flux(), tmp_path / "plain", Lora(2))
    save(tiny_flux(), tmp_path / "dora", Lora(2, dora=True))
    stack = (FrozenAdapter(str(tmp_path / "plain")), FrozenAdapter(str(tmp_path / "dora")))
    with pytest.raises(ConfigError, match=r"touch the same layer \S+ of the transformer, and .*dora.* is a DoRA"):
        build(flux_folder, FLUX_CALL, adapters=stack, ready=False)
    with pytest.raises(ConfigError, match=r"touch the same layer"):
        build(flux_folder, FLUX_CALL, adapters=stack[:1], lora=Lora(start=str(tmp_path / "dora")), ready=False)
    for under, lora in ((0, Lora(2, dora=True)), (1, Lora(2, dora=True)), (1, Lora(2))):
        with pytest.raises(
            ConfigError, match=r"policy.lora: the new adapter and .* touch the same layer .*policy.lora.targets"
        ):
            build(flux_folder, FLUX_CALL, adapters=(stack[under],), lora=lora, ready=False)
    sampler = (FrozenAdapter(str(tmp_path / "plain"), when="sampling"),)
    for lora in (Lora(2, dora=True), Lora(start=str(tmp_path / "dora"))):
        with pytest.raises(ConfigError, match=r"touch the same layer .* is a DoRA"):
            build(flux_folder, FLUX_CALL, adapters=sampler, lora=lora, ready=False)
    with pytest.raises(ConfigError, match="weight: got nan, expected a finite number other than 0"):
        FrozenAdapter("style", float("nan"))
    with pytest.raises(ConfigError, match=r"weight: got -1e\+38, expected a number between -1000 and 1000"):
        FrozenAdapter("style", -1e38)
    with pytest.raises(
        ConfigError, match=r"quantize: 8bit .* policy.adapters cannot be folded into them; export a merged"
    ):
        PolicySpec("somewhere", lora=Lora(), quantize="8bit", adapters=stack)


def test_a_dora_to_start_from_is_neither_folded_in_nor_on_rounded_weights(flux_folder: Path, tmp_path: Path) -> None:
    save(tiny_flux(), tmp_path, Lora(2, dora=True))
    start = str(tmp_path)
    with pytest.raises(ConfigError, match=r"policy.lora.merge: .* is a DoRA: the rows .* set it to false"):
        build(flux_folder, FLUX_CALL, lora=Lora(start=start, merge=True), ready=False)
    with pytest.raises(ConfigError, match=r"start: .* is a DoRA, which measures weights .* policy.quantize: 8bit"):
        build(flux_folder, FLUX_CALL, lora=Lora(start=start), quantize="float8", ready=False)
    with pytest.raises(ConfigError, match=r"some.gguf holds rounded weights: DoRA measures them at every call"):
        PolicySpec("somewhere", single_file="some.gguf", lora=Lora(dora=True))


def test_what_was_trained_on_top_of_others_is_not_taken_without_them(flux_folder: Path, tmp_path: Path) -> None:
    save(tiny_flux(), tmp_path / "start", Lora(2))
    save(tiny_flux(), tmp_path / "style", Lora(2, targets=("to_q",)))
    under = tmp_path / "start" / frozen_file(0, "transformer", "transformer")
    (tmp_path / "style" / LORA_FILE).rename(under)
    start = str(tmp_path / "start")
    says = (
        rf"start\S* was trained on top of {under}, which is not among policy.adapters; add it there, \{{path: {under},"
    )
    for place in (start, f"{start}/{LORA_FILE}"):
        with pytest.raises(ConfigError, match=says):
            build(flux_folder, FLUX_CALL, lora=Lora(start=place), ready=False)
    with pytest.raises(ConfigError, match=r"policy.adapters.0.path: .* was trained on top of"):
        build(flux_folder, FLUX_CALL, lora=Lora(2), adapters=(FrozenAdapter(start),), ready=False)
    rescaled = tmp_path / "rescaled.safetensors"
    with safe_open(under, "pt") as file:
        header = {key: value.replace('lora_alpha": 2', 'lora_alpha": 4') for key, value in file.metadata().items()}
    save_file(load_file(under), rescaled, header)
    with pytest.raises(ConfigError, match=says):
        build(flux_folder, FLUX_CALL, lora=Lora(start=start), adapters=(FrozenAdapter(str(rescaled)),), ready=False)
    stack = (FrozenAdapter(str(under), 0.5),)
    assert build(flux_folder, FLUX_CALL, lora=Lora(start=start), adapters=stack, ready=False).weights.brought.start
    twice = shutil.copy(under, under.with_name(frozen_file(1, "transformer", "transformer")))
    with pytest.raises(ConfigError, match=rf"was trained on top of {twice}, which is not among policy.adapters"):
        build(flux_folder, FLUX_CALL, lora=Lora(start=start), adapters=stack, ready=False)
    found = build(flux_folder, FLUX_CALL, lora=Lora(start=start), adapters=stack * 2, ready=False).weights.brought.under
    assert {0: 0, 1: 1} in found.values()
    Path(twice).unlink()
    in_peft = tmp_path / "start" / "frozen_adapter_0"
    in_peft.mkdir()
    under.rename(in_peft / PEFT_FILE)
    (in_peft / PEFT_CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(ConfigError, match=rf"was trained on top of {in_peft / PEFT_FILE}, which is not among"):
        build(flux_folder, FLUX_CALL, lora=Lora(start=start), ready=False)


def test_what_lay_under_a_start_in_training_is_compared_with_what_lies_there_now(
    flux_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    save(tiny_flux(), tmp_path / "style", Lora(2))
    stack = (FrozenAdapter(str(tmp_path / "style"), 0.5),)
    policy = build(flux_folder, FLUX_CALL, adapters=stack, lora=ODD)
    told = {"adapters": [{"path": "style", "weight": 0.5, "when": "always"}], "dtype": "float32", "quantize": None}
    config = config_of(str(flux_folder), lora=True)
    config["policy"] |= told
    start = tmp_path / "start"
    start.mkdir()
    write_artifacts(start, policy.pipe, policy.weights, Card(config, 7, {}, base="of then"))

    def said(weight: float, base: str) -> list[str]:
        recwarn.clear()
        under = (FrozenAdapter(str(start / frozen_file(0, "transformer", "transformer")), weight),)
        spec = PolicySpec(str(flux_folder), lora=Lora(start=str(start)), adapters=under)
        pipe = DiffusionPipeline.from_pretrained(flux_folder)
        compare_bases(spec, base, bring(spec, pipe, experts(pipe)))
        return [str(one.message) for one in recwarn if "was trained on" in str(one.message)]

    assert said(0.5, "of then") == []
    assert re.fullmatch(
        r"policy.lora.start: \S+ was trained on \S+, and \S+ is another .* by content: .*", *said(0.5, "now")
    )
    assert said(0.25, "of then") == [
        f"policy.lora.start: {start} was trained on top of style at weight 0.5, which has weight 0.25 here "
        "(policy.adapters)"
    ]


def test_what_training_was_on_top_of_is_exported_with_it(flux_folder: Path, tmp_path: Path) -> None:
    """A checkpoint holds its own copies: the whole pipeline and the card's code both make the policy's picture."""
    save(tiny_flux(), tmp_path / "style", Lora(2))
    stack = (FrozenAdapter(str(tmp_path / "style"), 0.5),)
    policy = build(flux_folder, FLUX_CALL, adapters=stack, lora=ODD)
    perturb(policy)
    wanted = shown(policy)
    config = config_of(flux_folder, lora=True)
    config["policy"]["adapters"] = [{"path": "gone", "weight": 0.5}]
    write = lambda folder: write_artifacts(folder, policy.pipe, policy.weights, card_of(config))  # noqa: E731
    checkpoint = Checkpoints(tmp_path / "run", keep=1, config=config).save(7, write)
    export(checkpoint, tmp_path / "whole", Order("merged"))
    whole = picture(quiet(DiffusionPipeline.from_pretrained(tmp_path / "whole")))
    torch.testing.assert_close(whole, wanted, atol=FOLDED, rtol=0)
    export(checkpoint, tmp_path / "lora", Order("diffusers"))
    export(checkpoint, tmp_path / "peft", Order("peft"))
    for form in ("lora", "peft"):
        code = re.search(r"```python\n(.*?)result = pipe\(", (tmp_path / form / CARD).read_text(), re.DOTALL)
        assert code is not None
        names: dict[str, Any] = {}
        exec(code[1].replace("THIS_FOLDER", str(tmp_path / form)), names)
        torch.testing.assert_close(picture(quiet(names["pipe"])), wanted, atol=FOLDED, rtol=0)


def test_what_lies_under_decides_how_a_card_loads_it(flux_folder: Path, tmp_path: Path) -> None:
    """Diffusers loads a LoRA, and none that was trained on top of a LoHa."""
    module, shapes = "lycoris_transformer_blocks_0_attn_to_q", {"a": (32, 2), "b": (2, 32)}
    tensors = {f"{module}.hada_w{k}_{side}": torch.ones(shape) for k in (1, 2) for side, shape in shapes.items()}
    save_file(tensors, tmp_path / "loha.safetensors")
    policy = build(flux_folder, FLUX_CALL, adapters=(FrozenAdapter(str(tmp_path / "loha.safetensors")),), ready=False)
    config = config_of(flux_folder, lora=True)
    config["policy"]["adapters"] = [{"path": "gone", "weight": 1.0}]
    (tmp_path / "out").mkdir()
    write_artifacts(tmp_path / "out", policy.pipe, policy.weights, card_of(config))
    assert "diffusers does not load these adapters" in (tmp_path / "out" / CARD).read_text()


def test_files_of_several_networks_belong_together_by_their_names(tmp_path: Path) -> None:
    names = ("style.safetensors", "style_other.safetensors", "frozen_adapter_0.safetensors")
    for name in (*names, "frozen_adapter_0_other.safetensors", LORA_FILE):
        (tmp_path / name).touch()
    for name in ("peft", "peft/other", "frozen_adapter_1", "frozen_adapter_1_other", "alone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / PEFT_FILE).touch()
        (tmp_path / name / PEFT_CONFIG).write_text("{}")

    def found(name: str) -> dict[str, str]:
        files = Place("policy.adapters.0.path", str(tmp_path / name)).files("main", ("main", "other"))
        return {component: str(file.relative_to(tmp_path)) for component, (file, _) in files.items()}

    assert found("style.safetensors") == {"main": "style.safetensors", "other": "style_other.safetensors"}
    assert found("style_other.safetensors") == {"other": "style_other.safetensors"}
    assert list(found("frozen_adapter_0.safetensors")) == ["main", "other"]
    assert found(LORA_FILE) == {"main": LORA_FILE}
    assert found("peft") == {"main": f"peft/{PEFT_FILE}", "other": f"peft/other/{PEFT_FILE}"}
    assert found(f"frozen_adapter_1/{PEFT_FILE}")["other"] == f"frozen_adapter_1_other/{PEFT_FILE}"
    assert list(found("alone")) == ["main"]
    for name in ("peft/other", f"peft/other/{PEFT_FILE}", "frozen_adapter_1_other", "style_other.safetensors"):
        assert list(found(name)) == ["other"], name
    for name in ("other.safetensors", "style-OTHER.safetensors"):
        (tmp_path / name).touch()
        assert list(found(name)) == ["other"], name
    (tmp_path / "style_main.safetensors").touch()
    assert found("style_main.safetensors") == {"main": "style_main.safetensors", "other": "style_other.safetensors"}


def test_what_lay_under_goes_by_its_number_wherever_it_is_named(tmp_path: Path) -> None:
    """The first of these is of another network alone; the third is a folder of PEFT's."""
    names = ("frozen_adapter_0_other.safetensors", "frozen_adapter_1.safetensors", "frozen_adapter_1_other.safetensors")
    for name in (*names, "card.json", LORA_FILE, "pytorch_lora_weights_other.safetensors"):
        (tmp_path / name).touch()
    for name in ("frozen_adapter_10", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / PEFT_FILE).touch()
    wanted = {0: tmp_path / names[0], 1: tmp_path / names[1], 10: tmp_path / "frozen_adapter_10" / PEFT_FILE}
    for place in ("", LORA_FILE, "pytorch_lora_weights_other.safetensors", "other", f"other/{PEFT_FILE}"):
        assert Place("policy.lora.start", str(tmp_path / place)).lying_under() == wanted, place
    for copy in (names[1], f"frozen_adapter_10/{PEFT_FILE}", "frozen_adapter_10"):
        assert not Place("policy.adapters.0.path", str(tmp_path / copy)).lying_under()


def test_magnitudes_are_not_exported_for_tools_that_would_read_past_them(flux_folder: Path, tmp_path: Path) -> None:
    policy, config = (
        build(flux_folder, FLUX_CALL, lora=Lora(2, dora=True), ready=False),
        config_of(flux_folder, lora=True),
    )
    write = lambda folder: write_artifacts(folder, policy.pipe, policy.weights, card_of(config))  # noqa: E731
    checkpoint = Checkpoints(tmp_path / "run", keep=1, config=config).save(7, write)
    with pytest.raises(ConfigError, match=r"--as kohya: kohya's tools know no magnitudes, .* use --as comfyui, or"):
        export(checkpoint, tmp_path / "out", Order("kohya"))
    assert not (tmp_path / "out").exists()


# ---- other kinds of new adapters -------------------------------------------------------------------------------------

KINDS = {
    "dora": Lora(2, dora=True),
    "rslora": Lora(4, rslora=True),
    "pissa": Lora(2, alpha=3, init="pissa"),
    "ranks": Lora(2, ranks={"to_q": 3, "to_k": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_begin_at_the_pipeline_and_are_exported_as_they_are(kind: str, flux_folder: Path, tmp_path: Path) -> None:
    """The first answer is the pipeline's, and so is the reference's; plain diffusers has what was learned, too."""
    bare, policy = build(flux_folder, FLUX_CALL), build(flux_folder, FLUX_CALL, lora=KINDS[kind])
    policy.weights.keep("reference")
    begin = shown(bare)
    for name in ("live", "reference"):
        with policy.using(name):
            torch.testing.assert_close(shown(policy), begin, atol=FOLDED, rtol=0)
    perturb(policy, 0.05)
    moved = shown(policy)
    with policy.using("reference"):
        torch.testing.assert_close(shown(policy), begin, atol=FOLDED, rtol=0)
    write_adapter(trained_adapters(policy.weights)[policy.component], tmp_path / LORA_FILE, policy.component)
    plain = quiet(DiffusionPipeline.from_pretrained(flux_folder))
    before = picture(plain)
    plain.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(picture(plain), moved, atol=FOLDED, rtol=0)
    assert (moved - before).abs().max() > 100 * FOLDED


def test_ranks_and_kinds_are_those_asked_for() -> None:
    network = tiny_flux().transformer
    add_lora(network, KINDS["ranks"], 0)
    attention = network.transformer_blocks[0].attn
    layers = (attention.to_q, attention.to_k, attention.to_v)
    found = [(layer.r["default"], layer.scaling["default"]) for layer in layers]
    assert found == [(3, 1.0), (1, 1.0), (2, 1.0)]
    network = tiny_flux().transformer
    add_lora(network, KINDS["rslora"], 0)
    assert network.transformer_blocks[0].attn.to_q.scaling == {"default": 2.0}  # 4 / sqrt(4)
    with pytest.raises(ConfigError, match=r"policy.lora.ranks.to_z is the ending of no adapted module"):
        add_lora(tiny_flux().transformer, Lora(2, ranks={"to_z": 3}), 0)


def test_kinds_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge: the rows of a DoRA weight are scaled"):
        Lora(dora=True, merge=True)
    with pytest.raises(ConfigError, match=r"init: pissa changes the weights whose magnitudes DoRA starts from"):
        Lora(dora=True, init="pissa")
    with pytest.raises(ConfigError, match=r"ranks.to_q: got 0, expected at least 1"):
        Lora(ranks={"to_q": 0})
    with pytest.raises(ConfigError, match=r"quantize: 8bit .* pissa takes a part out of them; use init: gaussian"):
        PolicySpec("somewhere", lora=Lora(init="pissa"), quantize="8bit")
