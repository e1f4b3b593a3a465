"""Copies of the record for W&B, trackio and TensorBoard. None is used unless `output.report_to` names it.

A tracker sees metrics, pictures and the resolved configuration; never the environment, the command line, the code or
the console. W&B works without a network under `WANDB_MODE=offline`, and `wandb sync` sends the run later; its own
variables `WANDB_PROJECT`, `WANDB_ENTITY` and `WANDB_RUN_GROUP` set where the run is filed. trackio keeps its data in
`~/.cache/huggingface/trackio`, or in `TRACKIO_DIR`.
"""

from __future__ import annotations

import html
import importlib
import io
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from PIL import Image

from alignment.data.frame_rate import EXPORTED
from alignment.errors import ConfigError, EnvironmentProblem
from alignment.reports.pictures import encode_clip, frames
from alignment.reports.run_folder import cannot_write
from reward_models.base import Media

_WITHOUT = "WANDB_MODE=offline works without an account and a network; or take 'wandb' out of output.report_to"


class Tracker(Protocol):
    """Somewhere a run can be watched."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show finite numbers at a step; steps never go back."""
        ...

    def media(self, step: int, name: str, media: Media, captions: Sequence[str]) -> None:
        """Show pictures as pictures and clips as clips, a caption each."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class Wandb:
    """Weights & Biases; a resumed run goes on under the id kept in the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, object], *, project: str) -> None:
        self._wandb = _package("wandb", "wandb")
        # Left on, these would send the console, the git remote, uncommitted code and the names of the machine.
        settings = self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        try:
            self._run = self._wandb.init(
                # Read here: W&B lets an argument win over its variables, and reads them once for the whole process.
                project=os.environ.get("WANDB_PROJECT") or project,
                entity=os.environ.get("WANDB_ENTITY"),
                group=os.environ.get("WANDB_RUN_GROUP"),
                name=folder.name,
                id=_run_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=settings,
            )
        except self._wandb.Error as error:
            raise EnvironmentProblem(f"output.report_to: wandb cannot start a run: {error}. {_WITHOUT}") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show numbers at a step."""
        self._run.log(dict(metrics), step=step)

    def media(self, step: int, name: str, media: Media, captions: Sequence[str]) -> None:
        """Show pictures or clips at a step."""
        shown = []
        with tempfile.TemporaryDirectory() as scratch:
            for row, caption in enumerate(captions):
                clip = frames(media.pixels[row])
                if len(clip) == 1:
                    shown.append(self._wandb.Image(clip[0], caption=caption))
                else:
                    path = _clip_file(Path(scratch), row, clip, media.fps)
                    shown.append(self._wandb.Video(str(path), caption=caption, format="mp4"))
            self._run.log({name: shown}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Trackio:
    """trackio, a local dashboard: `trackio show`."""

    def __init__(self, folder: Path, config: Mapping[str, object], *, project: str) -> None:
        self._trackio = _package("trackio", "trackio")
        # The name is the identity here, and two folders may share theirs.
        name = f"{folder.name}-{_run_id(folder)[:6]}"
        self._run = self._trackio.init(
            project=project,
            name=name,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show numbers at a step."""
        self._run.log(dict(metrics), step=step)

    def media(self, step: int, name: str, media: Media, captions: Sequence[str]) -> None:
        """Show pictures or clips at a step."""
        with tempfile.TemporaryDirectory() as scratch:
            shown = {}
            for row, caption in enumerate(captions):
                clip = frames(media.pixels[row])
                if len(clip) == 1:
                    picture = self._trackio.Image(clip[0], caption=caption)
                else:
                    picture = self._trackio.Video(_clip_file(Path(scratch), row, clip, media.fps), caption=caption)
                shown[f"{name}/{row:02d}"] = picture
            self._run.log(shown, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._trackio.finish()


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder; clips are shown as animated GIFs, which is all it can play."""

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        _package("tensorboard", "tensorboard")
        board = importlib.import_module("torch.utils.tensorboard")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        try:
            self._writer = board.SummaryWriter(log_dir=str(folder / "tensorboard"))
        except OSError as error:
            raise EnvironmentProblem(cannot_write(folder / "tensorboard", error)) from error
        self._writer.add_text("config", f"<pre>{html.escape(str(dict(config)))}</pre>", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show numbers at a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def media(self, step: int, name: str, media: Media, captions: Sequence[str]) -> None:
        """Show pictures or clips at a step."""
        for row in range(len(captions)):
            clip = frames(media.pixels[row])
            width, height = clip[0].size
            content = _animated(clip, media.fps)
            picture = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            value = self._summary.Value(tag=f"{name}/{row:02d}", image=picture)
            self._writer.file_writer.add_summary(self._summary(value=[value]), step)
        listed = "".join(f"<li>{html.escape(caption)}</li>" for caption in captions)
        self._writer.add_text(f"{name}/captions", f"<ol start='0'>{listed}</ol>", step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, object], *, project: str = "visalign"
) -> list[Tracker]:
    """Start the trackers a config asks for.

    Args:
        names: "wandb", "trackio", "tensorboard".
        folder: The run's folder; its name is the run's.
        config: The resolved configuration.
        project: What W&B and trackio file the run under; for W&B `WANDB_PROJECT` goes before it.

    Raises:
        ConfigError: If there is no such tracker.
        EnvironmentProblem: If its package is not installed.
    """
    return [_open(name, folder, config, project) for name in names]


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that could not be started, before anything is loaded.

    Raises:
        EnvironmentProblem: If a package is not installed, or W&B has no key to send with.
    """
    for name in names:
        package: Any = _package(name, name)
        online = name == "wandb" and package.setup().settings.mode not in ("offline", "disabled")
        if online and not package.login(prompt=False):
            raise EnvironmentProblem(
                f"output.report_to: wandb has no API key here: run `wandb login`, or set WANDB_API_KEY. {_WITHOUT}"
            )


def _open(name: str, folder: Path, config: Mapping[str, object], project: str) -> Tracker:
    match name:
        case "wandb":
            return Wandb(folder, config, project=project)
        case "trackio":
            return Trackio(folder, config, project=project)
        case "tensorboard":
            return TensorBoard(folder, config)
        case _:
            raise ConfigError(f"output.report_to: no tracker {name!r}; choose among wandb, trackio, tensorboard")


def _package(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"output.report_to asks for {module!r}, but its package is not installed (missing: {error.name}); "
            f"run `pip install {distribution}`, or take {module!r} out of output.report_to"
        ) from error


def _run_id(folder: Path) -> str:
    """Return the id kept in the run's folder, so that a resumed run goes on in place of beginning another."""
    path = folder / "tracker-id"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise EnvironmentProblem(cannot_write(path, error)) from error


def _clip_file(folder: Path, row: int, clip: list[Image.Image], fps: float | None) -> Path:
    path = folder / f"{row:02d}.mp4"
    path.write_bytes(encode_clip(clip, fps or EXPORTED))
    return path


def _animated(clip: list[Image.Image], fps: float | None) -> bytes:
    buffer = io.BytesIO()
    if len(clip) == 1:
        clip[0].save(buffer, format="PNG")
    else:
        milliseconds = round(1000 / (fps or EXPORTED))
        clip[0].save(buffer, format="GIF", save_all=True, append_images=clip[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()
