"""Putting a feature cache into networks for one pipeline call, and taking it out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.models.cache_utils import CacheMixin

from alignment.errors import PipelineError, PipelineRefused
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.pipeline_call import calling_pipeline, cause


@contextlib.contextmanager
def cached(pipe: Any, networks: Mapping[str, Any], cache: FeatureCache | None, rounds: int) -> Iterator[None]:
    """Let networks use a cache within the block, which is one pipeline call; nothing is left of it afterwards.

    Args:
        pipe: The pipeline.
        networks: Its denoisers by name.
        cache: The cache; None for none.
        rounds: Denoising steps of the call.

    Raises:
        PipelineError: If one of the networks cannot have it.
    """
    if cache is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, network in networks.items():
            _enable(pipe, name, network, cache.settings(rounds, lambda: pipe.current_timestep))
            stack.callback(network.disable_cache)
        yield


def _enable(pipe: Any, name: str, network: Any, settings: Any) -> None:
    kind = f"the {name} ({type(network).__name__}) of {type(pipe).__name__}"
    if not isinstance(network, CacheMixin):
        raise PipelineError(f"{kind} has no feature caches in diffusers")
    before = _hooks(network)
    try:
        with calling_pipeline(pipe):
            network.enable_cache(settings)
    except PipelineRefused as error:
        raise PipelineError(f"{kind} does not take this cache: {cause(error)}") from error
    if _hooks(network) == before:
        network.disable_cache()
        raise PipelineError(f"this cache finds no layer that it knows in {kind}")


def _hooks(network: Any) -> int:
    """Return how many hooks of diffusers the layers of a network have."""
    registries = [vars(module)["_diffusers_hook"] for module in network.modules() if "_diffusers_hook" in vars(module)]
    return sum(len(registry.hooks) for registry in registries)
