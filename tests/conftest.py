"""One quiet, seeded, deterministic process for every test, and the pipelines that tests share."""

from __future__ import annotations

import os

# Before torch, diffusers and transformers are imported, for they read these once. `setdefault`, so that
# `TRITON_INTERPRET=0` can ask for compiled kernels on a machine with a GPU.
for variable, value in {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRITON_INTERPRET": "1",
}.items():
    os.environ.setdefault(variable, value)

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# What takes seconds to import is imported where it is used: a process that hands tests to others runs none itself, and
# those others start when this file is read.
if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline

    from tests.support.tiny_rewards import Shelf

# Neither an example nor making one may take too long: how long it takes is the machine's business. Fifty examples each:
# what they find they find over many runs, for each draws others.
settings.register_profile("unhurried", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether a test asks for something that is made once for its file."""
    made = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()  # pyright: ignore[reportPrivateUsage]
    return any(definitions[-1].scope == "module" for definitions in made)


def seconds_of(item: pytest.Item) -> int:
    """Return how long a test, with what it shares, takes on one core, where it says so."""
    mark = item.get_closest_marker("slow")
    return mark.args[0] if mark and mark.args else 0


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is run only where it is asked for, and skip what needs a GPU where there is none.

    Tests of a file that share a fixture stay in one process, or each process would make it for itself. The longest
    begin first, so that no process is left alone with one of them at the end.
    """
    items.sort(key=seconds_of, reverse=True)
    for item in items:
        if shares_a_fixture(item) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    for mark in ("oracle", "long"):
        if mark not in config.getoption("markexpr"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """Draw no progress bars, and spend no time on what tiny networks make long."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from tests.support import quick

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    quick.install()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Start every test from the same random state, with deterministic algorithms, on OMP_NUM_THREADS threads: one.

    Under deterministic algorithms torch fills fresh memory with NaN, which finds reads of what was never written.
    """
    import numpy as np
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.use_deterministic_algorithms(True)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the state that libraries read
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


# Building a tiny pipeline takes 20 ms, no longer than copying one, so every test has its own.


@pytest.fixture
def flux() -> FluxPipeline:
    """Return a tiny FLUX pipeline: flow matching, packed latents."""
    from tests.support.tiny import tiny_flux

    return tiny_flux()


@pytest.fixture
def sd15() -> StableDiffusionPipeline:
    """Return a tiny Stable Diffusion pipeline: noise prediction, a UNet, guidance."""
    from tests.support.tiny import tiny_sd15

    return tiny_sd15()


@pytest.fixture(params=["flux", "sd15"])
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    """Return a tiny pipeline of each family in turn."""
    from tests.support.tiny import tiny_flux, tiny_sd15

    return {"flux": tiny_flux, "sd15": tiny_sd15}[request.param]()


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved tiny FLUX pipeline; read it, and copy it before you change it."""
    from tests.support.tiny import tiny_flux

    folder = tmp_path_factory.mktemp("pipelines") / "flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved tiny Stable Diffusion pipeline; read it, and copy it before you change it."""
    from tests.support.tiny import tiny_sd15

    folder = tmp_path_factory.mktemp("pipelines") / "sd15"
    tiny_sd15().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved toy that learnt nothing yet; read it, and copy it before you change it."""
    from tests.support.toy import saved

    return saved(tmp_path_factory.mktemp("pipelines") / "toy", updates=0)


@pytest.fixture(scope="session")
def tiny_rewards(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Return tiny reward models by name, each written to disk once; read the files, and copy them before a change."""
    from tests.support.tiny_rewards import Shelf

    return Shelf(tmp_path_factory.mktemp("rewards"))
