"""An address to listen on, for what is served over HTTP."""

from __future__ import annotations

import ipaddress
import socket

from alignment.errors import EnvironmentProblem


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return the socket that listens, before anything heavy is loaded.

    Raises:
        EnvironmentProblem: If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise EnvironmentProblem(
            f"cannot listen on {host} port {port}: {error}; choose others with --host and --port"
        ) from error
