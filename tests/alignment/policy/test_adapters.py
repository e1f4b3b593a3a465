"""Training that begins at an adapter: what it starts from, what it is compared with, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.checkpoints.adapter_files import trained_adapters, write_adapter
from alignment.cli import main as cli
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_CONFIG, PEFT_FILE, Place
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora
from alignment.policy.networks.tuning import add_lora
from alignment.policy.policy import Policy
from tests.pipelines.zoo import built
from tests.support import runs
from tests.support import trained as checkpoints
from tests.support.adapters import save
from tests.support.policies import DYNAMICS, build, learn, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, SD15_CALL, tiny_flux, tiny_sd15

CALLS = {"flux": FLUX_CALL, "sd15": SD15_CALL}
BEGIN = "policy.lora.start"
ODD = Lora(2, alpha=3)
"""An alpha that is not the rank."""


@pytest.fixture(params=["flux", "sd15"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, flux_folder: Path, sd15_folder: Path) -> Path:
    return {"flux": flux_folder, "sd15": sd15_folder}[family]


@pytest.fixture
def trained(family: str, folder: Path) -> Policy:
    """Return a policy whose adapters were trained already."""
    policy = build(folder, CALLS[family], lora=ODD)
    perturb(policy)
    return policy


@pytest.fixture
def started(family: str, folder: Path, trained: Policy, tmp_path: Path) -> Policy:
    """Return a policy that begins at the adapters of `trained`."""
    write_adapter(trained_adapters(trained.weights)[trained.component], tmp_path / LORA_FILE, trained.component)
    return build(folder, CALLS[family], lora=Lora(start=str(tmp_path)))


def stepped(policy: Policy, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights after one update with a fresh optimiser."""
    optimizer = torch.optim.AdamW(policy.trainable.values(), lr=1e-2)
    for name, gradient in gradients.items():
        policy.trainable[name].grad = gradient
    optimizer.step()
    return {name: p.detach() for name, p in policy.trainable.items()}


def test_training_goes_on_bit_by_bit(family: str, trained: Policy, started: Policy) -> None:
    made = plan(trained, DYNAMICS[family][0])
    (path, batch), (again, _) = transitions(trained, made), transitions(started, made)
    assert torch.equal(path.records[0].x_next, again.records[0].x_next)
    uninterrupted, resumed = (stepped(policy, learn(policy, batch)) for policy in (trained, started))
    assert list(uninterrupted) == list(resumed)
    assert all(torch.equal(weight, resumed[name]) for name, weight in uninterrupted.items())


@pytest.mark.parametrize("family", ["flux"], indirect=True)
def test_the_start_is_the_reference_and_the_first_ratio_is_one(family: str, started: Policy) -> None:
    started.weights.keep("reference")
    _, batch = transitions(started, plan(started, DYNAMICS[family][0]))
    live = replayed(started, batch)
    with started.using("reference"):
        reference = replayed(started, batch)
    for k, model_output in enumerate(live):
        assert torch.equal(model_output, batch.model_output[:, k])  # ratio 1
        assert torch.equal(model_output, reference[k])  # divergence 0
    perturb(started)
    with started.using("reference"):
        kept = replayed(started, batch)
    assert all(torch.equal(a, b) for a, b in zip(kept, reference, strict=True))
    assert (replayed(started, batch)[0] - kept[0]).abs().max() > 1e-3


# ---- names of others -------------------------------------------------------------------------------------------------


def adapter(tmp_path: Path) -> dict[str, Tensor]:
    """Write a tiny FLUX adapter in diffusers' layout and return its tensors."""
    save(tiny_flux(), tmp_path, Lora(2))
    return load_file(tmp_path / LORA_FILE)


def test_names_that_the_authors_gave_are_read_by_diffusers(tmp_path: Path) -> None:
    """FLUX's own double blocks hold query, key and value in one matrix, as kohya's tools write them."""
    rank, width = 2, 32
    down, up = torch.randn(rank, width), torch.randn(3 * width, rank)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    file = tmp_path / "style.safetensors"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}, file
    )
    pipe = tiny_flux()
    found = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    attention = "transformer_blocks.0.attn"
    assert sorted(found.modules) == [f"{attention}.to_{part}" for part in "kqv"]
    for k, part in enumerate("qkv"):
        assert torch.equal(found.weights[f"{attention}.to_{part}.lora_A.weight"], down)
        assert torch.equal(found.weights[f"{attention}.to_{part}.lora_B.weight"], up[k * width : (k + 1) * width])


def test_names_of_stable_diffusion_xl_tools_are_read_by_diffusers(tmp_path: Path) -> None:
    pipe = tiny_sd15()
    theirs = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    down, up, alpha = torch.randn(2, 16), torch.randn(16, 2), torch.tensor(3.0)
    made = {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up, f"{theirs}.alpha": alpha}
    save_file(made, tmp_path / "style.safetensors")
    found = read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))["unet"]
    ours = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(found.weights[f"{ours}.lora_A.weight"], down)
    assert torch.equal(found.weights[f"{ours}.lora_B.weight"], up)
    assert found.config.lora_alpha == 3


@pytest.mark.parametrize("extra", ["a text encoder", "another block", "a tensor"])
def test_what_diffusers_leaves_out_is_not(extra: str, tmp_path: Path) -> None:
    """FLUX.2's converter reads some modules only where it knows all names, and leaves out what it does not know."""
    pipe = built("flux2_klein").pipe
    shapes = {
        "lora_unet_double_stream_modulation_img_lin": pipe.transformer.double_stream_modulation_img.linear.weight.shape,
        "lora_unet_double_blocks_0_img_attn_proj": pipe.transformer.transformer_blocks[0].attn.to_out[0].weight.shape,
    }
    tensors = {
        f"{name}.{part}": torch.randn(size)
        for name, (rows, columns) in shapes.items()
        for part, size in (("lora_down.weight", (2, columns)), ("lora_up.weight", (rows, 2)), ("alpha", ()))
    }
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    found = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    assert sorted(found.modules) == ["double_stream_modulation_img.linear", "transformer_blocks.0.attn.to_out.0"]
    named = {"a text encoder": "lora_te1_layer", "another block": "lora_unet_double_blocks_9_img_attn_proj"}.get(extra)
    pair = {f"{named}.lora_down.weight": torch.ones(2, 32), f"{named}.lora_up.weight": torch.ones(32, 2)}
    save_file({**tensors, **(pair if named else {"garbage": torch.ones(2)})}, file)
    count, held = (len(pair), len(tensors) + len(pair)) if named else (1, len(tensors) + 1)
    with pytest.raises(ConfigError, match=rf"{count} of its {held} tensors are of no module .*: {named or 'garbage'}"):
        read_adapters(BEGIN, str(file), pipe, experts(pipe))


def test_magnitudes_that_diffusers_leaves_out_are_not(tmp_path: Path) -> None:
    pipe = tiny_sd15()
    theirs = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    made = {f"{theirs}.lora_down.weight": torch.randn(2, 16), f"{theirs}.lora_up.weight": torch.randn(16, 2)}
    save_file({**made, f"{theirs}.dora_scale": torch.ones(16, 1)}, tmp_path / "style.safetensors")
    with pytest.raises(ConfigError, match=rf"1 of its 3 tensors are of no module of the unet: {theirs}.dora_scale"):
        read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_family_or_rank_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    other = tiny_sd15()
    with pytest.raises(ConfigError, match="another base than this StableDiffusionPipeline"):
        read_adapters(BEGIN, str(tmp_path), other, experts(other))
    pipe = tiny_flux()
    found = read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))["transformer"]
    with pytest.raises(ConfigError, match=r"has rank 2, but policy.lora.rank is 16; leave policy.lora.rank out"):
        add_lora(pipe.transformer, Lora(16, start=str(tmp_path)), 0, found)


def test_a_start_brings_its_own_scale_and_targets() -> None:
    with pytest.raises(ConfigError, match=r"alpha: mine brings its own alpha; leave it out, or leave out start"):
        Lora(start="mine", alpha=2)
    with pytest.raises(ConfigError, match=r"targets: mine brings its own targets"):
        Lora(start="mine", targets=("to_q",))


def place(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_bytes(b"nothing")
    return tmp_path


def described(tmp_path: Path, text: str) -> Path:
    place(tmp_path, PEFT_FILE)
    (tmp_path / PEFT_CONFIG).write_text(text)
    return tmp_path


def linked(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").symlink_to("nothing")
    return tmp_path / "a.safetensors"


def piped(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda path: path / "missing" / "x", "there is no file or folder .*, and it is not a hub id"),
    "a pickle": (lambda path: place(path, "style.ckpt") / "style.ckpt", "style.ckpt is a pickle, which can run code"),
    "a folder of a pickle": (lambda path: place(path, "pytorch_lora_weights.bin"), "is a pickle, which can run code"),
    "several": (lambda path: place(path, "a.safetensors", "b.safetensors"), "several adapters; name one of them: a.s"),
    "an empty folder": (lambda path: path, "holds no .safetensors file"),
    "no safetensors": (lambda path: place(path, "a.safetensors"), "is not a whole safetensors file"),
    "another kind": (lambda path: described(path, '{"peft_type": "OFT"}'), "peft_type is OFT; LORA, LOHA and LOKR can"),
    "a file of a missing folder": (
        lambda path: Path("adapters/nope.safetensors"),
        "there is no file or folder adapters/",
    ),
    "a link to nothing": (lambda path: linked(path), "a.safetensors is a link to nothing, where nothing is"),
    "a pipe": (lambda path: piped(path), "a.safetensors is neither a file nor a folder"),
    "a name without end": (lambda path: path / ("x" * 300), "there is no file or folder"),
    "a config that is none": (lambda path: described(path, "[]"), "is not a JSON object"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_without_an_adapter_is_refused(name: str, tmp_path: Path) -> None:
    make, says = PLACES[name]
    pipe = tiny_flux()
    with pytest.raises(ConfigError, match=says):
        read_adapters(BEGIN, str(make(tmp_path)), pipe, experts(pipe))


def test_files_that_systems_hide_are_none_and_a_name_is_given(tmp_path: Path) -> None:
    place(tmp_path, "a.safetensors", "._a.safetensors")
    assert Place(BEGIN, str(tmp_path)).files("transformer", ("transformer",))["transformer"][0].name == "a.safetensors"
    with pytest.raises(ConfigError, match="start: the name is empty, expected a file, a folder or a hub id"):
        Place(BEGIN, "").check()


def test_the_hub_is_asked_and_its_answer_told() -> None:
    pipe = tiny_flux()
    with pytest.raises(
        ConfigError, match=r"start: somebody/style is not on this machine, and the hub did not give it: "
    ):
        read_adapters(BEGIN, "somebody/style", pipe, experts(pipe))


def cached(cache: Path, repository: str) -> Path:
    """Return the folder of a repository in a cache of the hub's, as if it had been fetched."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    folder = home / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_was_fetched_from_the_hub_is_used_where_it_is_out_of_reach(cache: Path, tmp_path: Path) -> None:
    pipe, wanted = tiny_flux(), adapter(tmp_path)
    folder = cached(cache, "somebody/style")
    (tmp_path / LORA_FILE).rename(folder / LORA_FILE)
    found = read_adapters(BEGIN, "somebody/style", pipe, experts(pipe))["transformer"]
    assert all(torch.equal(tensor, wanted[f"transformer.{name}"]) for name, tensor in found.weights.items())
    with pytest.raises(ConfigError, match=rf"somebody/style has no other.safetensors; it has {LORA_FILE}"):
        read_adapters(BEGIN, "somebody/style/other.safetensors", pipe, experts(pipe))
    folder = cached(cache, "somebody/peft") / "inside"
    folder.mkdir()
    name = "transformer_blocks.0.attn.to_q"
    matrices = {f"base_model.model.{name}.lora_{side}.weight": torch.ones(2, 32) for side in "A"}
    save_file({**matrices, f"base_model.model.{name}.lora_B.weight": torch.ones(32, 2)}, folder / PEFT_FILE)
    (folder / PEFT_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    for place in ("somebody/peft/inside/adapter_model.safetensors", "somebody/peft", str(folder / PEFT_FILE)):
        found = read_adapters(BEGIN, place, pipe, experts(pipe))["transformer"]
        assert found.config.lora_alpha == 6, place
    (folder / PEFT_CONFIG).unlink()
    with pytest.raises(ConfigError, match=rf"lacks its {PEFT_CONFIG}, which has its scale"):
        read_adapters(BEGIN, str(folder), pipe, experts(pipe))


def test_experts_have_a_file_each_on_the_hub_too(cache: Path) -> None:
    folder = cached(cache, "somebody/two")
    for name in (LORA_FILE, "pytorch_lora_weights_transformer_2.safetensors"):
        (folder / name).write_bytes(b"")
    found = Place(BEGIN, "somebody/two").files("transformer", ("transformer", "transformer_2"))
    assert {name: path.name for name, (path, _) in found.items()} == {
        "transformer": LORA_FILE,
        "transformer_2": "pytorch_lora_weights_transformer_2.safetensors",
    }


def test_a_run_refuses_it_in_one_line_and_leaves_nothing(
    flux_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs.prepared(tmp_path / "run", flux_folder)
    other = tmp_path / "other"
    save(tiny_sd15(), other, Lora(2))
    pickle = tmp_path / "style.pt"
    pickle.write_bytes(b"")
    for start, says in ((pickle, "is a pickle"), (other, "another base than this FluxPipeline")):
        assert runs.train(folder, "grpo", "policy.lora.rank=null", f"{BEGIN}={start}") == 2
        said = capsys.readouterr().err.strip()
        assert says in said
        assert said.startswith(f"visalign: {BEGIN}: ")
        assert len(said.splitlines()) == 1
    assert not (folder / "runs").exists()


def test_a_damaged_checkpoint_is_no_start(
    flux_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs.prepared(tmp_path / "run", flux_folder)
    checkpoint = checkpoints.trained(tmp_path, "flux", lora=True).checkpoint
    file = checkpoint / LORA_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for words in ((f"{BEGIN}={checkpoint}", "policy.lora.rank=null"), (f"policy.adapters=[{{path: {checkpoint}}}]",)):
        assert runs.train(folder, "grpo", *words) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert re.fullmatch(rf"visalign: {checkpoint}/{LORA_FILE} is damaged.*", said[-1]), said


def test_a_run_that_starts_at_an_adapter_is_measured_against_it(flux_folder: Path, tmp_path: Path) -> None:
    """The whole command: the first divergence is 0, and the checkpoint goes on from the start."""
    folder, start = runs.prepared(tmp_path / "run", flux_folder), tmp_path / "start"
    save(tiny_flux(), start, Lora(2))
    before = load_file(start / LORA_FILE)
    words = ("policy.lora.rank=null", f"{BEGIN}={start}", "steps=1", "batch.updates=1", "evaluation.prompts=null")
    assert cli.run(["train", str(folder / "grpo.yaml"), *words]) == 0
    first = json.loads((folder / "runs/run/metrics.jsonl").read_text().splitlines()[0])
    assert first["kl/reference"] == 0
    assert first["ratio/first_error_max"] <= 1e-6  # what another number of rows rounds otherwise
    after = load_file(folder / "runs/run/checkpoint-1" / LORA_FILE)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.allclose(before[name], after[name], atol=1e-2) for name in before)
