"""A pipeline that cannot be used says so in one line."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KarrasVeScheduler,
    LTXLatentUpsamplePipeline,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from safetensors.torch import load_file, save_file
from torch import nn

from alignment.errors import ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.loading import (
    denoiser_name,
    load_pipeline,
    loop_networks,
    own_scheduler,
    trained_scheduler,
)
from alignment.policy.networks.spec import PolicySpec
from alignment.preflight.plan.blueprint import describe
from tests.pipelines.zoo import decoders
from tests.support.policies import CPU
from tests.support.tiny import tiny_flux, tiny_sd15


@pytest.fixture
def copied(flux_folder, tmp_path):
    return shutil.copytree(flux_folder, tmp_path / "flux")


def refused(folder, **spec):
    with pytest.raises(PipelineError) as caught:
        load_pipeline(PolicySpec(str(folder), **spec), CPU)
    message = str(caught.value)
    assert message.startswith("policy.pipeline: ")
    assert str(folder) in message
    assert "\n" not in message
    return message


def weights(folder):
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def test_a_loaded_pipeline_is_frozen_quiet_and_of_the_dtype_asked_for(flux_folder, capfd):
    pipe = load_pipeline(PolicySpec(str(flux_folder), dtype="bfloat16"), CPU)
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    assert all(not m.training for m in modules)
    assert all(not p.requires_grad for m in modules for p in m.parameters())
    assert next(pipe.transformer.parameters()).dtype == torch.bfloat16
    out, err = capfd.readouterr()
    assert "it/s" not in out + err


def networks(pipe):
    return [name for name, part in pipe.components.items() if isinstance(part, nn.Module)]


NETWORKS = [(make, name) for make in (tiny_flux, tiny_sd15) for name in networks(make())]


@pytest.mark.parametrize(("make", "component"), NETWORKS, ids=lambda part: part if isinstance(part, str) else "")
@pytest.mark.parametrize("which", ["one", "all"])
def test_weights_that_no_file_holds_are_refused(tmp_path, make, component, which):
    make().save_pretrained(tmp_path)
    load_pipeline(PolicySpec(str(tmp_path)), CPU)
    (file,) = (tmp_path / component).glob("*.safetensors")
    held = load_file(file)
    renamed = set(held) if which == "all" else {sorted(held)[len(held) // 2]}
    save_file({f"{key}_old" if key in renamed else key: z for key, z in held.items()}, file, metadata={"format": "pt"})
    message = refused(tmp_path)
    assert f"the files of the {component} of" in message
    assert any(key.removeprefix("text_model.") in message for key in renamed)
    if which == "one":
        assert "more would" not in message


def test_a_folder_without_an_index(tmp_path):
    assert "holds no model_index.json" in refused(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    assert "could not be loaded" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "component", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"]
)
def test_a_component_is_missing(copied, component):
    shutil.rmtree(copied / component)
    assert f"lacks the folder {component} that" in refused(copied)
    (copied / component).mkdir()
    assert f"lacks the folder {component} that" in refused(copied)


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
def test_a_vocabulary_is_missing(copied, tokenizer):
    (copied / tokenizer / "tokenizer.json").unlink()
    assert f"the {tokenizer} of" in refused(copied)


def test_weights_are_missing(copied):
    weights(copied).unlink()
    refused(copied)


@pytest.mark.parametrize("keep", [0, 4, 1000, -10])
def test_weights_are_cut_short(copied, keep):
    data = weights(copied).read_bytes()
    weights(copied).write_bytes(data[:keep])
    refused(copied)


@pytest.mark.parametrize("place", [0, 7, 20])
def test_a_bit_of_the_header_is_flipped(copied, place):
    data = bytearray(weights(copied).read_bytes())
    data[place] ^= 0x40
    weights(copied).write_bytes(bytes(data))
    refused(copied)


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"])
def test_a_file_of_json_is_not(copied, file):
    (copied / file).write_text('{"_class_name": ')
    refused(copied)


@pytest.mark.parametrize("setting", [[1, 2, 3], [2, 5], [], ["a"], {"layers": [1]}])
def test_a_setting_of_a_pipeline_may_be_a_list(copied, setting):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "some_layers": setting, "image_encoder": [None] * 2}))
    assert type(load_pipeline(PolicySpec(str(copied)), CPU)).__name__ == "FluxPipeline"
    assert set(describe(PolicySpec(str(copied))).parts) >= {"transformer", "scheduler", "image_encoder"}


def test_a_pipeline_without_a_scheduler(tmp_path):
    upsampler = LTXLatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    LTXLatentUpsamplePipeline(decoders.ltx(), upsampler).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="LTXLatentUpsamplePipeline has no component called scheduler"):
        load_pipeline(PolicySpec(str(tmp_path)), CPU)
    two = SimpleNamespace(components={"prior_scheduler": DDIMScheduler(), "decoder_scheduler": DDIMScheduler()})
    with pytest.raises(PipelineError, match=r"called scheduler, .* it has decoder_scheduler, prior_scheduler instead"):
        own_scheduler(two)


@pytest.mark.parametrize("kind", [KarrasVeScheduler, ScoreSdeVeScheduler])
def test_a_scheduler_that_is_stepped_in_another_way(kind):
    with pytest.raises(
        PipelineError, match=rf"{kind.__name__}, the scheduler of SimpleNamespace, is not one that goes"
    ):
        own_scheduler(SimpleNamespace(components={"scheduler": kind()}))


def test_a_class_nobody_knows(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index["_class_name"] = "NoSuchPipeline"
    (copied / "model_index.json").write_text(json.dumps(index))
    assert "NoSuchPipeline" in refused(copied)


def test_weights_of_another_network(copied):
    config = json.loads((copied / "transformer" / "config.json").read_text())
    config["num_attention_heads"] = 3
    (copied / "transformer" / "config.json").write_text(json.dumps(config))
    refused(copied)


def test_native_attention_works_on_every_family(flux_folder, sd15_folder):
    for folder in (flux_folder, sd15_folder):
        load_pipeline(PolicySpec(str(folder), attention="native"), CPU)


def test_another_backend_of_torch(flux_folder):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    try:
        pipe = load_pipeline(PolicySpec(str(flux_folder), attention="_native_math"), CPU)
        backends = {m.processor._attention_backend for m in pipe.transformer.modules() if hasattr(m, "processor")}
        assert backends == {AttentionBackendName._NATIVE_MATH}
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_an_unknown_backend_names_those_there_are(flux_folder):
    with pytest.raises(ConfigError, match=r"no backend is called 'flsh'; known: .*flash, .*native, .*xformers"):
        load_pipeline(PolicySpec(str(flux_folder), attention="flsh"), CPU)


def test_a_backend_that_is_not_installed(flux_folder, sd15_folder):
    if torch.cuda.is_available():
        pytest.skip("xformers may work here")
    for folder in (flux_folder, sd15_folder):
        with pytest.raises(EnvironmentProblem, match=r"backend 'xformers' cannot be used here: .* 'native' always can"):
            load_pipeline(PolicySpec(str(folder), attention="xformers"), CPU)


def test_a_unet_has_fewer_backends(sd15_folder):
    with pytest.raises(ConfigError, match="UNet2DConditionModel can only use native or xformers, not 'flash'"):
        load_pipeline(PolicySpec(str(sd15_folder), attention="flash"), CPU)


def test_the_denoiser_and_what_runs_beside_it(flux, sd15):
    assert (denoiser_name(flux), denoiser_name(sd15)) == ("transformer", "unet")
    assert (loop_networks(flux), loop_networks(sd15)) == (("transformer",), ("unet",))
    with pytest.raises(PipelineError, match="no component called transformer or unet; it has prior"):
        denoiser_name(SimpleNamespace(components={"prior": nn.Linear(1, 1)}))


@pytest.mark.parametrize(
    ("cls", "sibling"), [(PNDMScheduler, DDIMScheduler), (HeunDiscreteScheduler, EulerDiscreteScheduler)]
)
def test_samplers_that_visit_a_time_twice_have_a_sibling_at_the_same_times(cls, sibling):
    base = cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")
    made = trained_scheduler(base)
    assert type(made) is sibling
    assert made.config.prediction_type == "v_prediction"
    assert not made.config.get("clip_sample")
    torch.testing.assert_close(made.alphas_cumprod, base.alphas_cumprod)
    if cls is PNDMScheduler:  # its warm-up visits times between
        base.register_to_config(skip_prk_steps=True)
    for scheduler in (base, made):
        scheduler.set_timesteps(5)
    assert made.timesteps.tolist() == sorted(set(base.timesteps.tolist()), reverse=True)


def test_a_flow_that_visits_its_times_twice_trains_as_euler():
    assert type(trained_scheduler(FlowMatchHeunDiscreteScheduler(shift=3.0))) is FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize(
    "cls", [FlowMatchEulerDiscreteScheduler, DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler]
)
def test_samplers_that_visit_a_time_once_train_as_themselves(cls):
    base = cls()
    assert trained_scheduler(base) is base


def test_a_hub_id_out_of_reach_is_told_without_the_words_of_a_trace(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody/no-such-pipeline")
    assert "the hub did not give it" in message
    assert "stack" not in message
    assert ".." not in message


def test_a_folder_can_be_loaded_as_another_class(flux_folder):
    pipe = load_pipeline(PolicySpec(str(flux_folder), pipeline_class="FluxImg2ImgPipeline"), CPU)
    assert type(pipe).__name__ == "FluxImg2ImgPipeline"
    with pytest.raises(ConfigError, match=r"pipeline_class.*'FluxImg2ImagePipeline'; did you mean FluxImg2ImgPipeline"):
        load_pipeline(PolicySpec(str(flux_folder), pipeline_class="FluxImg2ImagePipeline"), CPU)
