"""Whether a pipeline can have a feature cache: it is called once with it, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from alignment.errors import ConfigError, PipelineError, PipelineRefused
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.pipeline_call import cause
from alignment.policy.policy import ONE_ROW, Policy
from samplers import Conductor

LACKS = {"No cache context": "it does not tell its network which of its calls it makes (cache_context)"}
"""What diffusers says where a pipeline lacks something, and what that is."""


def check_caches(policy: Policy, caches: Mapping[str, FeatureCache | None], prompt: str) -> None:
    """Refuse caches that the policy's pipeline cannot have.

    Args:
        policy: The policy, prepared.
        caches: Caches by the key that asks for each.
        prompt: One of those it was prepared for.

    Raises:
        ConfigError: Naming the key.
    """
    for key, cache in caches.items():
        if cache is None:
            continue
        if policy.weights.layout.in_step:
            raise ConfigError(
                f"{key}: each process would leave other layers out, by its own samples, and processes that share a "
                "network call its layers together; leave it out, or spread no network (parallel.shard and context 1)"
            )
        try:
            with policy.caching(cache):
                policy.call(Conductor(), (prompt,), ONE_ROW, pixels=False)
        except PipelineRefused as error:
            said = cause(error)
            lacking = next((told for begins, told in LACKS.items() if said.startswith(begins)), said)
            name = type(policy.pipe).__name__
            raise ConfigError(f"{key}: {name} cannot be called with this cache: {lacking}; leave it out") from error
        except PipelineError as error:
            raise ConfigError(f"{key}: {error}; leave it out, or take another") from error
