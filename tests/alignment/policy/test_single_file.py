"""A denoiser from one file: in diffusers' names, in its authors', in fewer bits; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, QuantoConfig, TorchAoConfig
from safetensors.torch import save, save_file
from torchao.quantization import Float8WeightOnlyConfig

from alignment.checkpoints.adapter_files import trained_adapters
from alignment.config.places import misplaced
from alignment.errors import ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.loading import load_pipeline
from alignment.policy.networks.single_file import check_rounded
from alignment.policy.networks.spec import FrozenAdapter, Lora, PolicySpec
from alignment.policy.policy import Policy
from samplers.dynamics.flow_sde import FlowSDE
from tests.pipelines.zoo import built
from tests.support.policies import CPU, build, learn, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, tiny_flux

AUTHORS = {"proj_in.": "patchify_proj.", "time_embed.": "adaln_single.", "norm_q.": "q_norm.", "norm_k.": "k_norm."}
"""What the authors of LTX-Video call modules that diffusers renames."""


def changed(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return weights that are not those of the pipeline's folder."""
    return {name: tensor + 0.25 for name, tensor in network.state_dict().items()}


def test_one_file_in_the_names_of_its_authors_is_the_denoiser(tmp_path: Path) -> None:
    member = built("ltx_video")
    member.pipe.save_pretrained(tmp_path / "pipeline")
    wanted, file = changed(member.pipe.transformer), tmp_path / "ltx.safetensors"
    theirs = dict(wanted)
    for ours, named in AUTHORS.items():
        theirs = {name.replace(ours, named): tensor for name, tensor in theirs.items()}
    assert theirs.keys() != wanted.keys()
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in theirs.items()}, file)
    pipe = load_pipeline(PolicySpec(str(tmp_path / "pipeline"), single_file=str(file)), CPU)
    found = pipe.transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_a_file_trains_like_the_folder_it_is_a_part_of(flux_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    save_file(changed(tiny_flux().transformer), file)
    policy = build(flux_folder, FLUX_CALL, single_file=str(file))
    other = tiny_flux()
    other.transformer.load_state_dict(changed(other.transformer))
    other.save_pretrained(tmp_path / "whole")
    whole = build(tmp_path / "whole", FLUX_CALL)
    pictures = []
    for each in (policy, whole):
        perturb(each)
        pictures.append(each.generate(("a red circle",), torch.tensor([0]), {}).pixels)
    assert torch.equal(*pictures)


def test_files_that_are_not_the_denoiser_are_refused(flux_folder: Path, tmp_path: Path) -> None:
    wrong, wider = tmp_path / "wrong.safetensors", tmp_path / "wider.safetensors"
    save_file({"one": torch.ones(2)}, wrong)
    config = tiny_flux().transformer.config
    save_file(FluxTransformer2DModel.from_config(config, num_attention_heads=4).state_dict(), wider)
    for file, kind, says in (
        (wrong, PipelineError, "could not be read as a FluxTransformer2DModel|would be random"),
        (wider, ConfigError, r"has context_embedder.bias of shape \[64\], where the FluxTransformer2DModel of"),
    ):
        with pytest.raises(kind, match=says) as refused:
            load_pipeline(PolicySpec(str(flux_folder), single_file=str(file)), CPU)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("authors", [False, True])
def test_a_file_of_more_or_fewer_tensors_is_of_another_network(
    authors: bool, flux_folder: Path, tmp_path: Path
) -> None:
    """It is left out by the library that reads it. The names are diffusers' own, or those of LTX-Video's authors."""
    folder, tensors, block = flux_folder, changed(tiny_flux().transformer), "transformer_blocks."
    if authors:
        member = built("ltx_video")
        folder = tmp_path / "pipeline"
        member.pipe.save_pretrained(folder)
        tensors = changed(member.pipe.transformer)
        for ours, named in AUTHORS.items():
            tensors = {name.replace(ours, named): tensor for name, tensor in tensors.items()}
    last = max(name for name in tensors if name.startswith(block) and name.endswith("ff.net.2.weight"))
    deeper = {**tensors, f"{block}9.ff.net.2.weight": tensors[last].clone()}
    fewer = {name: tensor for name, tensor in tensors.items() if name != last}
    for held, says in (
        (deeper, rf"holds {block}9\.\S+, for which .* no place"),
        (fewer, rf"lacks {last}, which .* needs"),
    ):
        save_file(held, tmp_path / "other.safetensors")
        with pytest.raises(ConfigError, match=says):
            load_pipeline(PolicySpec(str(folder), single_file=str(tmp_path / "other.safetensors")), CPU)
    if authors:  # who publish files of whole models, too
        save_file({**tensors, "vae.encoder.weight": torch.ones(2)}, tmp_path / "whole.safetensors")
        load_pipeline(PolicySpec(str(folder), single_file=str(tmp_path / "whole.safetensors")), CPU)


def test_a_network_that_its_pipeline_may_lack_is_taken_too(tmp_path: Path) -> None:
    """Wan's class has two networks of which either may be missing: the class that reads indices forgets those given."""
    folder, file = Path("assets/tiny_video"), tmp_path / "twice.safetensors"
    base = load_pipeline(PolicySpec(str(folder)), CPU).transformer
    save_file({name: 2 * z for name, z in base.state_dict().items()}, file)
    loaded = load_pipeline(PolicySpec(str(folder), single_file=str(file)), CPU).transformer
    assert all(torch.equal(z, 2 * base.state_dict()[name]) for name, z in loaded.state_dict().items())


SPOILT = {
    "whole numbers": (
        ".safetensors",
        save({"proj_out.weight": torch.ones(2, dtype=torch.int32)}),
        "proj_out.weight is of I32, and weights are no whole numbers",
    ),
    "empty": (".safetensors", b"", "is not a whole safetensors file"),
    "cut off": (".safetensors", save({"one": torch.ones(64)})[:-9], "is not a whole safetensors file"),
    "nothing": (".safetensors", save({}), "holds no tensor"),
    "an adapter": (".safetensors", save({"to_q.lora_A.weight": torch.ones(2)}), r"an adapter \(to_q.lora_A.weight\)"),
    "no GGUF": (".gguf", b"PK\3\4", "is no GGUF file: it does not begin with GGUF"),
    "a GGUF cut off": (".gguf", b"GGUF\3\0\0\0", "is not a whole GGUF file"),
}


@pytest.mark.parametrize(("ending", "content", "says"), SPOILT.values(), ids=SPOILT)
def test_files_that_are_no_network_say_what_they_are(
    ending: str, content: bytes, says: str, flux_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"spoilt{ending}"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"policy.single_file: .*{says}"):
        build(flux_folder, FLUX_CALL, lora=Lora(2), single_file=str(file))


def test_names_that_diffusers_cannot_place_are_shown(flux_folder: Path, tmp_path: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in tiny_flux().transformer.state_dict().items()}
    save_file(
        {name: tensor for name, tensor in tensors.items() if "transformer_blocks" not in name},
        tmp_path / "odd.safetensors",
    )
    with pytest.raises(PipelineError, match=r"It holds \d+ tensors: model\.") as refused:
        load_pipeline(PolicySpec(str(flux_folder), single_file=str(tmp_path / "odd.safetensors")), CPU)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("style.ckpt", "style.ckpt is no .safetensors or .gguf file; others are pickles, which can run code"),
        ("gone.safetensors", "there is no file gone.safetensors"),
        ("UP.SAFETENSORS", "UP.SAFETENSORS ends in .SAFETENSORS, by which diffusers knows no file; rename it"),
        ("", "the name is empty"),
    ],
)
def test_files_that_cannot_be_opened_are_refused_before_anything_is_loaded(
    file: str, says: str, flux_folder: Path
) -> None:
    spec = PolicySpec(str(flux_folder), single_file=file)
    assert [key for key, problem in misplaced(spec) if says in problem] == ["policy.single_file"]
    with pytest.raises(ConfigError, match=r"policy.single_file: "):
        load_pipeline(spec, CPU)


def test_pipelines_that_take_no_single_file_say_so(sd15_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file({"one": torch.ones(2)}, file)
    member = built("wan_2_2")
    member.pipe.save_pretrained(tmp_path / "wan")
    with pytest.raises(ConfigError, match=r"has two networks, transformer and transformer_2, and there is one file"):
        load_pipeline(PolicySpec(str(tmp_path / "wan"), single_file=str(file)), CPU)
    for name in ("pixart_sigma", "hunyuan_image"):  # whose class says that it does, and is not among those that do
        built(name).pipe.save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=r"diffusers reads no single file into the transformer of"):
            load_pipeline(PolicySpec(str(tmp_path / name), single_file=str(file)), CPU)


def test_gguf_names_the_package_that_reads_it(
    flux_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "flux.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"is read by gguf, which is not installed; run `pip install gguf`"):
        load_pipeline(PolicySpec(str(flux_folder), single_file=str(file), lora=Lora(2)), CPU)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora": None}, "rounded weights cannot be trained; train adapters"),
        ({"lora": Lora(2, merge=True)}, "adapters cannot be folded into them"),
        ({"lora": Lora(2, init="pissa")}, "pissa takes a part out of them"),
        ({"adapters": (FrozenAdapter("style"),)}, "policy.adapters cannot be folded into them"),
    ],
)
def test_weights_in_fewer_bits_take_adapters_alone(change: dict[str, object], says: str, flux_folder: Path) -> None:
    given = {"lora": Lora(2), **change}
    with pytest.raises(ConfigError, match=says):
        PolicySpec(str(flux_folder), single_file="flux.gguf", **given)
    with pytest.raises(ConfigError, match="is in fewer bits already; leave quantize out"):
        PolicySpec(str(flux_folder), single_file="flux.gguf", lora=Lora(2), quantize="8bit")
    network = tiny_flux().transformer
    network.register_to_config(quantization_config={"quant_method": "bitsandbytes"})  # as a stored one says
    with pytest.raises(ConfigError, match=f"the transformer of .* is stored in fewer bits: {says}"):
        check_rounded(PolicySpec(str(flux_folder), **given), {"transformer": network})
    check_rounded(PolicySpec(str(flux_folder), lora=Lora(2)), {"transformer": network})


def trains_adapters(policy: Policy, kinds: set[str]) -> None:
    """Check what its layers are, that the first ratio is 1, that all adapters learn, and that they can be exported."""
    assert {type(layer.get_base_layer().weight).__name__ for layer in policy.weights.adapters} == kinds
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    for k, model_output in enumerate(replayed(policy, batch)):
        assert torch.equal(model_output, batch.model_output[:, k])
    perturb(policy)
    gradients = learn(policy, batch)
    assert all(bool(gradient.any()) for gradient in gradients.values())
    adapter = trained_adapters(policy.weights)["transformer"]
    assert len(adapter.modules) == len(policy.weights.adapters)


def save_gguf(tensors: Mapping[str, torch.Tensor], path: Path, kind: str) -> None:
    """Write a GGUF file, the matrices of whole blocks in fewer bits."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "flux")
    for name, tensor in tensors.items():
        fits = tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "blocks." in name
        stored = gguf.GGMLQuantizationType[kind if fits else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_a_file_in_fewer_bits_trains_adapters(kind: str, flux_folder: Path, tmp_path: Path) -> None:
    save_gguf(tiny_flux().transformer.state_dict(), tmp_path / "flux.gguf", kind)
    policy = build(flux_folder, FLUX_CALL, lora=Lora(2), single_file=str(tmp_path / "flux.gguf"))
    trains_adapters(policy, {"GGUFParameter"})


def test_a_file_in_fewer_bits_of_another_network_is_refused(flux_folder: Path, tmp_path: Path) -> None:
    tensors = dict(tiny_flux().transformer.state_dict())
    last = "transformer_blocks.0.ff.net.2.weight"
    deeper = {**tensors, last.replace(".0.", ".9."): tensors[last]}
    fewer = {name: tensor for name, tensor in tensors.items() if name != last}
    for held, says in ((deeper, r"holds transformer_blocks\.9\.\S+, for which .* no place"), (fewer, f"lacks {last}")):
        save_gguf(held, tmp_path / "other.gguf", "Q8_0")
        with pytest.raises(ConfigError, match=says):
            build(flux_folder, FLUX_CALL, lora=Lora(2), single_file=str(tmp_path / "other.gguf"), ready=False)


@pytest.mark.parametrize("kind", ["torchao", "quanto"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_ways_to_store_fewer_bits_train_adapters(kind: str, flux_folder: Path, tmp_path: Path) -> None:
    if kind == "quanto":
        settings, stored = QuantoConfig(weights_dtype="int8"), "WeightQBytesTensor"
    else:
        settings, stored = TorchAoConfig(Float8WeightOnlyConfig()), "Float8Tensor"
    shutil.copytree(flux_folder, tmp_path / "rounded")
    rounded = FluxTransformer2DModel.from_pretrained(
        flux_folder, subfolder="transformer", quantization_config=settings, torch_dtype=torch.float32
    )
    shutil.rmtree(tmp_path / "rounded" / "transformer")
    rounded.save_pretrained(tmp_path / "rounded" / "transformer")
    trains_adapters(build(tmp_path / "rounded", FLUX_CALL, lora=Lora(2)), {stored})


def test_a_pipeline_that_is_stored_in_fewer_bits_trains_adapters(flux_folder: Path, tmp_path: Path) -> None:
    rounded = load_pipeline(PolicySpec(str(flux_folder), lora=Lora(2), quantize="8bit"), CPU)
    rounded.save_pretrained(tmp_path / "rounded")
    stored = build(tmp_path / "rounded", FLUX_CALL)
    here = build(flux_folder, FLUX_CALL, quantize="8bit")
    assert {type(layer.get_base_layer().weight).__name__ for layer in stored.weights.adapters} == {"Int8Tensor"}
    _, batch = transitions(here, plan(here, FlowSDE()))
    for a, b, k in zip(replayed(stored, batch), replayed(here, batch), range(3), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, batch.model_output[:, k])
    with pytest.raises(ConfigError, match=r"the transformer of .* is stored in fewer bits: rounded weights"):
        build(tmp_path / "rounded", FLUX_CALL, lora=None, ready=False)


def test_a_pipeline_whose_bits_nobody_here_can_read_says_what_is_missing(flux_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(flux_folder, tmp_path / "rounded")
    settings = tmp_path / "rounded/transformer/config.json"
    told = {
        **json.loads(settings.read_text()),
        "quantization_config": {"quant_method": "modelopt", "quant_type": "NVFP4"},
    }
    settings.write_text(json.dumps(told))
    with pytest.raises(PipelineError, match=r"could not be loaded: .*modelopt") as refused:
        load_pipeline(PolicySpec(str(tmp_path / "rounded"), lora=Lora(2)), CPU)
    assert "\n" not in str(refused.value)
