"""Checkpoints: found, read without being run, complete, and recognised."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.config import registry
from reward_models.base import RewardError, RewardModel
from reward_models.loading.weights import Provenance, fill, find_file, find_folder, read_state

CPU = torch.device("cpu")
FILES = {
    "hpsv2": "weights", "imagereward": "weights", "aesthetic": "head", "optical_flow": "weights", "hpsv3": "weights",
}  # fmt: skip
"""Reward models whose checkpoint is one file, and the field that names it."""


class Exploit:
    """What a malicious pickle does when it is loaded: here it leaves a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def with_file(tiny_rewards, name, file):
    return replace(tiny_rewards(name), **{FILES[name]: str(file)})


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_malicious_pickle_is_refused_and_never_runs(tiny_rewards, tmp_path, name, form):
    proof, file = tmp_path / "it_ran", tmp_path / "weights.pt"
    state = {"state_dict": {"a": torch.zeros(1)}, "optimizer": Exploit(proof)}
    if form == "bare":
        file.write_bytes(pickle.dumps(state["optimizer"]))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    holds = "something else than tensors" if form == "bare" else "posix.system"
    with pytest.raises(RewardError, match=f"is refused: it holds {holds}"):
        with_file(tiny_rewards, name, file).load(device=CPU)
    assert not proof.exists()
    torch.load(file, weights_only=False) if form != "bare" else pickle.loads(file.read_bytes())
    assert proof.exists(), "the file was harmless, so this test shows nothing"


@pytest.mark.parametrize("name", ["clip", "pickscore", "aesthetic", "geneval"])
def test_a_malicious_folder_is_refused_and_never_runs(tiny_rewards, tmp_path, name):
    field = {"clip": "weights", "pickscore": "weights", "aesthetic": "backbone", "geneval": "detector"}[name]
    model = tiny_rewards(name)
    folder, proof = tmp_path / "model", tmp_path / "it_ran"
    shutil.copytree(Path(vars(model)[field]), folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"a": Exploit(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match="cannot be loaded"):
        replace(model, **{field: str(folder)}).load(device=CPU)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not a checkpoint", bytes(200)], ids=["empty", "zip", "text", "zeros"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content, suffix):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(RewardError, match=r"is refused|cannot be read"):
        read_state("a reward", file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"<!doctype html><html>", r"21 bytes that begin with b'<!doctype html><' are not a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begin with b'version https://' are no"),
        (b"hello" * 100, r"500 bytes that begin with b'hellohello"),
        (pickle.dumps({"a": 1}), "holds something else than tensors"),
    ],
    ids=["empty", "page", "pointer", "text", "pickle"],
)
def test_what_came_in_place_of_a_checkpoint_can_be_told(tmp_path, content, says):
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(RewardError, match=says):
        read_state("a reward", file)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("kept", [0.3, 0.98])
def test_a_truncated_checkpoint_is_refused(tiny_rewards, tmp_path, name, kept):
    whole = Path(vars(tiny_rewards(name))[FILES[name]])
    file = tmp_path / whole.name
    file.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    with pytest.raises(RewardError, match=r"is refused|cannot be read"):
        with_file(tiny_rewards, name, file).load(device=CPU)


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in sorted(FILES) for other in ("imagereward", "aesthetic") if name != other],
)
def test_a_checkpoint_of_another_model_is_refused(tiny_rewards, name, other):
    file = vars(tiny_rewards(other))[FILES[other]]
    with pytest.raises(RewardError, match=r"another architecture"):
        with_file(tiny_rewards, name, file).load(device=CPU)


@pytest.mark.parametrize("name", ["imagereward", "hpsv3"])
def test_weights_that_are_not_finite_are_refused(tiny_rewards, tmp_path, name):
    whole = Path(vars(tiny_rewards(name))[FILES[name]])
    file = tmp_path / whole.name
    state = read_state(name, whole)
    key = next(
        key for key, value in state.items() if value.ndim == 2 and value.is_floating_point() and "head" not in key
    )
    state[key] = state[key].clone().fill_(float("nan"))
    if file.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    with pytest.raises(RewardError, match="values that are not finite"):
        with_file(tiny_rewards, name, file).load(device=CPU)


@pytest.mark.parametrize("held", [3, [torch.zeros(1)], {}, {"state_dict": {"a": 3}}], ids=str)
def test_a_file_without_named_tensors_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "weights.pt")
    with pytest.raises(RewardError, match="holds no weights"):
        read_state("a reward", tmp_path / "weights.pt")


def test_wrappers_of_checkpoints_are_taken_off(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2)}}, tmp_path / "weights.pt")
    assert torch.equal(read_state("a reward", tmp_path / "weights.pt")["a"], torch.ones(2))


def test_weights_of_another_shape_are_named():
    with pytest.raises(RewardError, match="of another shape: weight"):
        fill("a reward", torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)})


@pytest.mark.parametrize("source", ["nothing.pt", "owner/name", "/nowhere/at/all.pt", "."])
def test_a_file_that_is_nowhere_is_refused(source):
    with pytest.raises(RewardError, match=r"is not a file on this machine"):
        find_file("a reward", source)


def test_the_hub_is_asked_for_what_is_not_here_and_its_silence_is_explained():
    with pytest.raises(RewardError, match="the hub did not give it"):
        find_file("a reward", "owner/name/folder/weights.pt")
    with pytest.raises(RewardError, match="the hub did not give it"):
        find_folder("a reward", "owner/name")
    with pytest.raises(RewardError, match="is not a folder on this machine"):
        find_folder("a reward", "owner/name/more")


@pytest.mark.parametrize(
    "name",
    [
        "aesthetic", "clip", "consistency", "geneval", "hpsv2", "hpsv3", "imagereward", "optical_flow", "pickscore",
        "videoalign",
    ],
)  # fmt: skip
def test_official_checkpoints_are_asked_of_the_hub_by_name(name, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "/nonexistent")
    with pytest.raises(RewardError, match=r"hub did not give it|could not fetch"):
        registry.find(RewardModel, name)().load(device=CPU)


def test_the_digest_is_of_every_byte_and_of_the_preprocessing(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = Provenance((file,), "crop").sha256()
    assert first == Provenance((file,), "crop").sha256()
    assert first != Provenance((file,), "pad").sha256()
    file.write_bytes(b"two")
    assert first != Provenance((file,), "crop").sha256()


def test_state_dicts_in_either_format_are_read_alike(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    one, other = (read_state("a reward", tmp_path / name) for name in ("a.pt", "a.safetensors"))
    assert one.keys() == other.keys() == load_file(tmp_path / "a.safetensors").keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
