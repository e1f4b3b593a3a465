"""A checkpoint is whole or not there, and what is damaged is never picked up."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file

from alignment.checkpoints import checkpoint as module
from alignment.checkpoints.checkpoint import Checkpoints
from alignment.checkpoints.manifest import NAME, SCHEMA, _seal, read_manifest, verify
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem

ROOT = Path(__file__).parents[3]
FLIPS = 200


def weights(number: float, dtype: type = np.float32) -> Callable[[Path], None]:
    """Return a writer of a small checkpoint: weights, a picture card and a state."""

    def write(folder: Path) -> None:
        values = np.arange(64, dtype=dtype) + dtype(number)
        save_file({"w": values, "steps": np.arange(3)}, folder / "weights.safetensors")
        (folder / "README.md").write_text(f"card {number}")
        (folder / "state").mkdir()
        save_file({"m": values}, folder / "state" / "optimizer.safetensors")

    return write


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, weights(step))
    return checkpoints


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path, keep: int) -> None:
    steps = [5, 10, 15, 20]
    checkpoints = Checkpoints(tmp_path, keep)
    for done, step in enumerate(steps, start=1):
        assert checkpoints.save(step, weights(step)) == tmp_path / f"checkpoint-{step}"
        expected = {f"checkpoint-{kept}" for kept in steps[max(done - keep, 0) : done]}
        assert names(tmp_path) == {*expected, "latest"}
        assert (tmp_path / "latest").read_text() == f"checkpoint-{step}\n"
        assert checkpoints.find() == tmp_path / f"checkpoint-{step}"


def test_going_back_in_time_keeps_what_was_saved_last(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 50, 100, keep=2)
    checkpoints.save(60, weights(60))
    assert names(tmp_path) == {"checkpoint-60", "checkpoint-100", "latest"}
    assert checkpoints.find().name == "checkpoint-60"
    checkpoints.save(70, weights(70))
    assert names(tmp_path) == {"checkpoint-60", "checkpoint-70", "latest"}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, keep=1)
    checkpoints.save(5, weights(6))
    assert names(tmp_path) == {"checkpoint-5", "latest"}
    assert (checkpoints.find() / "README.md").read_text() == "card 6"


def test_order_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)
    events: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_fsync, real_rename, real_replace = os.open, os.fsync, os.rename, os.replace

    def opening(path: Path, *arguments: object, **options: object) -> int:
        descriptor = real_open(path, *arguments, **options)
        opened[descriptor] = os.path.basename(path).split(".tmp-")[0]
        return descriptor

    def moving(real: Callable) -> Callable:
        def move(source: Path, target: Path) -> None:
            events.append(f"to {Path(target).name.split('.tmp-')[0]}{'.tmp' if '.tmp-' in Path(target).name else ''}")
            real(source, target)

        return move

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append(opened[descriptor]), real_fsync(descriptor)))
    monkeypatch.setattr(os, "rename", moving(real_rename))
    monkeypatch.setattr(os, "replace", moving(real_replace))
    Checkpoints(tmp_path, keep=1).save(2, weights(2))

    run = tmp_path.name
    contents = {"weights.safetensors", "README.md", "state", "optimizer.safetensors", "checkpoint-2"}
    files, rest = events[: len(contents)], events[len(contents) :]
    assert set(files) == contents  # every file and folder reaches the disk before the manifest is written
    assert rest == [NAME, "checkpoint-2", "to checkpoint-2", run, "latest", "to latest", run, "to checkpoint-1.tmp"]


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    victim = tmp_path / "checkpoint-2"
    files = sorted(path for path in victim.rglob("*") if path.is_file())
    generator = random.Random(0)
    damages: list[tuple[Path, bytes]] = []
    for _ in range(FLIPS):
        path = generator.choice(files)
        content = bytearray(path.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        damages.append((path, bytes(content)))
    for path in files:
        content = path.read_bytes()
        damages += [(path, content[:length]) for length in {0, 4, 8, 100, len(content) // 2, len(content) - 1}]

    for path, content in damages:
        intact = path.read_bytes()
        if content == intact:  # a file shorter than the cut
            continue
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            verify(victim)
        path.write_bytes(intact)
    verify(victim)
    (victim / "README.md").unlink()
    with pytest.warns(UserWarning, match="Falling back"):
        assert checkpoints.find("latest") == tmp_path / "checkpoint-1"


def swap_files(victim: Path) -> None:
    one, other = victim / "weights.safetensors", victim / "state" / "optimizer.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swap_folders(victim: Path) -> None:
    shutil.rmtree(victim)
    shutil.copytree(victim.with_name("checkpoint-1"), victim)


def future_schema(victim: Path) -> None:
    record = json.loads((victim / NAME).read_text())
    (victim / NAME).write_text(json.dumps({**record, "schema": SCHEMA + 1, "sharding": "new"}))


def sealed_again(victim: Path, change: Callable[[dict], object]) -> None:
    record = json.loads((victim / NAME).read_text())
    del record["self"]
    change(record)
    (victim / NAME).write_text(_seal(record))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "swapped files": (swap_files, "damaged"),
    "swapped folders": (swap_folders, "holds step 1"),
    "a file missing": (lambda victim: (victim / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "manifest missing": (lambda victim: (victim / NAME).unlink(), f"not a finished checkpoint: it has no {NAME}"),
    "manifest is not JSON": (lambda victim: (victim / NAME).write_text("{"), "cannot be read as JSON"),
    "manifest is not text": (lambda victim: (victim / NAME).write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    "manifest is a list": (lambda victim: (victim / NAME).write_text("[]"), "not the record of a checkpoint"),
    "manifest of the future": (future_schema, "newer version; upgrade visalign"),
    "manifest lacks a key": (
        lambda victim: sealed_again(victim, lambda r: r.pop("weights")),
        "lacks the key 'weights'",
    ),
    "manifest lacks sizes": (
        lambda victim: sealed_again(victim, lambda r: r["files"]["README.md"].pop("size")),
        "lacks the key 'size'",
    ),
    "manifest lists no files": (
        lambda victim: sealed_again(victim, lambda r: r.update(files=3)),
        "not a list of files",
    ),
    "manifest without a number": (
        lambda victim: sealed_again(victim, lambda r: r.update(step="2")),
        "are not whole numbers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_latest_falls_back(tmp_path: Path, damage: str) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    victim = tmp_path / "checkpoint-2"
    harm, message = DAMAGE[damage]
    harm(victim)
    for which in (victim, str(victim), "checkpoint-2"):
        with pytest.raises(CheckpointError, match=message) as raised:
            checkpoints.find(which)
        assert "checkpoint-1 is intact" in str(raised.value)
    with pytest.warns(UserWarning, match=message):
        assert checkpoints.find("latest") == tmp_path / "checkpoint-1"
    checkpoints.save(3, weights(3))
    assert checkpoints.find(tmp_path / "checkpoint-3") == tmp_path / "checkpoint-3"


def test_what_a_later_version_adds_to_a_manifest_is_passed_over(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    before = verify(tmp_path / "checkpoint-1")
    sealed_again(tmp_path / "checkpoint-1", lambda r: (r.update(later=1), r["files"]["README.md"].update(mode="0644")))
    assert checkpoints.find() == tmp_path / "checkpoint-1"
    assert verify(tmp_path / "checkpoint-1") == before


def test_an_old_checkpoint_that_cannot_be_deleted_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, told = saved(tmp_path, 1, keep=1), r"checkpoint-\S+ is not needed any more and could not be deleted"

    def broken(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as disk:
        disk.setattr(module.shutil, "rmtree", broken)
        with pytest.warns(UserWarning, match=told):
            assert checkpoints.save(2, weights(2)) == tmp_path / "checkpoint-2"
        assert checkpoints.find() == tmp_path / "checkpoint-2"
        with pytest.warns(UserWarning, match=told):  # what could not be deleted is not in the next one's way
            assert checkpoints.save(3, weights(3)) == tmp_path / "checkpoint-3"
    checkpoints.save(4, weights(4))
    assert names(tmp_path) == {"checkpoint-4", "latest"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = Checkpoints(tmp_path / "run", keep=1).save(1, weights(1))
    finally:
        os.umask(before)
    found = {file.name: file.stat().st_mode & 0o777 for file in path.rglob("*") if file.is_file()}
    assert found == dict.fromkeys(["weights.safetensors", "README.md", "optimizer.safetensors", NAME], mode)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint; start afresh"):
        Checkpoints(tmp_path / "absent", keep=1).find()
    checkpoints = saved(tmp_path, 7)
    for which, says in {"checkpoint-8": "there is: checkpoint-7", "": "--resume is empty; give latest, or"}.items():
        with pytest.raises(CheckpointError, match=says):
            checkpoints.find(which)
    (tmp_path / "checkpoint-7" / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"no intact checkpoint: .*README.md is missing"):
        checkpoints.find()


def test_unfinished_folders_are_ignored_then_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-9.tmp-0a1b2c3d")
    (tmp_path / "latest.tmp-0a1b2c3d").write_text("checkpoint-9")
    (tmp_path / "samples").mkdir()
    assert checkpoints.find().name == "checkpoint-1"
    checkpoints.save(2, weights(2))
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "latest", "samples"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "no .safetensors file"),
        (lambda folder: save_file({}, folder / "w.safetensors"), "holds no tensor"),
        (lambda folder: (folder / "w.safetensors").write_bytes(b"12345678{}"), "not a safetensors file"),
        (weights(float("nan")), "is not finite"),
        (weights(float("inf"), np.float16), "is not finite"),
        (weights(float("-inf"), np.float64), "is not finite"),
    ],
)
def test_what_is_not_worth_keeping_is_not_kept(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(2, write)
    assert names(tmp_path) == {"checkpoint-1", "latest"}
    assert checkpoints.find().name == "checkpoint-1"


def test_bfloat16_is_looked_into(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()

    def write(folder: Path, value: int) -> None:
        body = np.array([0x3F80, value], dtype="<u2").tobytes()  # 1 and `value`
        (folder / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, lambda folder: write(folder, 0x7F7F))  # the largest number
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoints.save(2, lambda folder: write(folder, 0x7F80))  # infinity


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)

    def interrupted(folder: Path) -> None:
        weights(2)(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, interrupted)
    assert names(tmp_path) == {"checkpoint-1", "latest"}


def test_weights_that_did_not_change_are_reported(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.warns(UserWarning, match="very weights of step 1"):
        checkpoints.save(2, weights(1))
    with pytest.raises(CheckpointError, match="nothing was learned"):
        verify(tmp_path / "checkpoint-2", previous=tmp_path / "checkpoint-1")
    checkpoints.save(3, weights(3))
    verify(tmp_path / "checkpoint-3", previous=tmp_path / "checkpoint-2")


def test_the_manifest_says_what_wrote_it(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1, config={"seed": 1}, world_size=2).save(4, weights(4))
    manifest = read_manifest(path)
    assert (manifest.step, manifest.world_size, manifest.schema) == (4, 2, SCHEMA)
    assert {"python", "torch", "diffusers", "safetensors"} <= manifest.versions.keys()
    assert set(manifest.files) == {"weights.safetensors", "README.md", "state/optimizer.safetensors"}
    content = (path / "README.md").read_bytes()
    record = manifest.files["README.md"]
    assert (record.size, record.xxh3) == (len(content), xxhash.xxh3_64_hexdigest(content))
    other = Checkpoints(tmp_path, keep=2, config={"seed": 2}).save(5, weights(5))
    assert read_manifest(other).config_hash != manifest.config_hash


def test_little_space_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    size = read_manifest(tmp_path / "checkpoint-1").size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=int(1.1 * size)))
    with pytest.warns(UserWarning, match="free some space or lower"):
        checkpoints.save(2, weights(2))


def test_keep_is_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output.keep is 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/run", "a part of this path is a file"),
        ("file", "there is a file of this name"),
        ("n" * 256, "choose a shorter `name`"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=message) as raised:
        Checkpoints(tmp_path / place, keep=1).prepare()
    assert "\n" not in str(raised.value)


def test_a_read_only_folder_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # A superuser may write anywhere but into the kernel's own file system.
    folder = tmp_path if os.geteuid() else Path("/proc/self/fd")
    with pytest.raises(EnvironmentProblem, match="cannot write into"):
        Checkpoints(folder, keep=1).prepare()
    tmp_path.chmod(0o700)


def test_a_second_process_is_kept_out_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.prepare()
    hold = (
        "import sys, os, signal; from pathlib import Path; from alignment.checkpoints.checkpoint import Checkpoints\n"
        "try: Checkpoints(Path(sys.argv[1]), 1).prepare()\n"
        "except Exception as error: print(error, flush=True)\n"
        "sys.stdin.readline()\n"
        "c = Checkpoints(Path(sys.argv[1]), 1); c.prepare()\n"
        "print('held', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert f"in use by process {os.getpid()} on " in other.stdout.readline()
        checkpoints.close()
        assert other.communicate("now\n")[0] == "held\n"
    assert other.returncode == -signal.SIGKILL  # with the lock in its hand
    checkpoints.prepare()
    checkpoints.close()
