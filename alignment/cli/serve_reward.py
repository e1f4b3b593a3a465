"""`visalign serve-reward`: a reward model behind HTTP, one environment each; see docs/reward_server.md."""

from __future__ import annotations

import functools
import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment.config import build
from alignment.config.device import parse_device
from alignment.errors import ConfigError, EnvironmentProblem, ProcessLost
from alignment.listening import bind, is_loopback
from alignment.reports.terminal import show
from reward_models.base import Loaded, RewardError, RewardModel, load_reward
from reward_models.loading.extras import extra
from reward_models.loading.fingerprint import fingerprint
from reward_models.serving.connections import Connections, server_of
from reward_models.serving.server import Settings, application
from reward_models.serving.service import Service
from reward_models.serving.token import TOKEN, token_of
from reward_models.serving.wire import Limits

DESCRIPTORS = 64
"""What the process needs beside connections: libraries, weights, devices."""


@dataclass(frozen=True)
class Serving:
    """How a reward is served.

    Attributes:
        host: Address to listen on; one that others can reach needs a token.
        port: Port; 0 takes a free one.
        token_file: File with the token; None takes it from VISALIGN_REWARD_TOKEN, where that is set.
        device: "auto", "cpu", "cuda" or "cuda:N".
        rows: Most samples scored in one call.
        queue: Requests that may wait.
        patience: Seconds for a question to arrive, and to be answered.
        timeout: Seconds that one call of the scorer may take, before the server ends.
        connections: Connections at once, those of clients without the token included.
        limits: Of one question.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token_file: str | None = None
    device: str = "auto"
    rows: int = 16
    queue: int = 256
    patience: float = 120.0
    timeout: float = 600.0
    connections: int = 256
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        numbers = {name: vars(self)[name] for name in ("rows", "queue", "patience", "timeout", "connections")}
        numbers |= {f"max-{name}": most for name, most in vars(self.limits).items()}
        for name, number in numbers.items():
            if not 0 < number < math.inf:
                raise ConfigError(f"--{name} has to be more than 0 and finite, got {number}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port is from 0 to 65535, got {self.port}")


def main(name: str, overrides: Sequence[str], serving: Serving) -> int:
    """Load a reward, ask it for its known answers, and serve it until the process is asked to leave.

    Args:
        name: A type of reward, 'package.module:Class', or a YAML file that describes one.
        overrides: `key=value` words laid over it.
        serving: How.

    Raises:
        ConfigError: If there is no such reward, or it may not be served like this.
        EnvironmentProblem: If the address cannot be had.
        ProcessLost: If a call of the scorer does not end.
        RewardError: If the reward cannot be loaded, does not give its known answers, or breaks down for good.
    """
    for package in ("uvicorn", "fastapi"):
        extra("serve-reward", package, "serve")
    model = build.of_kind(RewardModel, name, overrides)
    token = read_token(serving)
    connections = Connections(serving.connections, whole=2 * serving.patience + Connections.whole)
    make_room(connections.descriptors + DESCRIPTORS)
    with bind(serving.host, serving.port) as listener:
        loaded = load_on(model, serving.device)
        answers = loaded.examine()
        settings = Settings(
            fingerprint(loaded), token, serving.limits, patience=serving.patience, timeout=serving.timeout
        )
        service = Service(loaded, rows=serving.rows, queue=serving.queue, pixels=serving.limits.total)
        server = server_of(application(service, settings), connections)
        service.when_broken = functools.partial(setattr, server, "should_exit", True)
        host, port = listener.getsockname()[:2]
        show(
            f"{loaded.model} {settings.fingerprint} at http://{f'[{host}]' if ':' in host else host}:{port}, "
            f"{len(answers)} known answers given, {'with' if token else 'without'} a token"
        )
        server.run(sockets=[listener])
    if service.stuck_at:
        raise ProcessLost(
            f"{loaded.model} had not ended one call after --timeout {serving.timeout:g} seconds, and the server has "
            f"ended; it was at {service.stuck_at}. Start it anew, with a longer --timeout if a call may take that long"
        )
    if service.broke_down:
        raise RewardError(f"{loaded.model} ended the thread that scores; the traceback above says how")
    return 0


def read_token(serving: Serving) -> str | None:
    """Return the token that clients need.

    Raises:
        ConfigError: If the address can be reached from elsewhere and there is no token.
    """
    token = token_of(serving.token_file)
    if token is None and not is_loopback(serving.host):
        raise ConfigError(
            f"--host {serving.host} can be reached from other machines, and without a token whoever reaches it may use "
            f"it; give --token-file FILE or {TOKEN}, or listen on 127.0.0.1"
        )
    return token


def make_room(descriptors: int) -> None:
    """Have the system allow this process so many file descriptors.

    Raises:
        EnvironmentProblem: If it does not.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= descriptors:
        return
    if most != resource.RLIM_INFINITY and most < descriptors:
        raise EnvironmentProblem(
            f"--connections needs {descriptors} file descriptors in all, and this process may have {most}; lower it, "
            f"or raise the limit (ulimit -n {descriptors})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, most))


def load_on(model: RewardModel, device: str) -> Loaded:
    """Return the reward on a device.

    Raises:
        ConfigError: If there is no such device.
    """
    return load_reward(model, device=parse_device(device))
