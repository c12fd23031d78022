"""Addresses of workers, as they are given to `--rpc`."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from edgecs.core.reading import plain
from edgecs.errors import ConfigError

PORT = 50052
"""The port of llama.cpp's rpc-server, and the default of `edgecs worker`."""
MOST = 16  # GGML_RPC_MAX_SERVERS
_LONGEST = 253  # characters of a host name
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_DIGITS = re.compile(r"[0-9]{1,5}")


class Address(NamedTuple):
    """Where a worker listens. host: a name or an IP address, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is given on the command line."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_addresses(text: str) -> tuple[Address, ...]:
    """The addresses in a comma-separated list; empty: none. Raises ConfigError.

    >>> parse_addresses("10.0.0.2:50052, [::1]:7000")
    (Address(host='10.0.0.2', port=50052), Address(host='::1', port=7000))
    """
    if not text.strip():
        return ()
    found = tuple(_parse(part.strip()) for part in text.split(","))
    for address in found:
        if found.count(address) > 1:
            raise ConfigError(
                f"the worker {address} is given twice: a worker serves one connection, "
                "so give each once"
            )
    if len(found) > MOST:
        raise ConfigError(
            f"{len(found)} workers are given, and llama.cpp takes {MOST}: leave some "
            "out"
        )
    return found


def _parse(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not host or "]" in port:
        raise _invalid(text, "has no port" if text else "is empty")
    if not _DIGITS.fullmatch(port) or not 0 < int(port) < 1 << 16:
        raise _invalid(text, "has no port between 1 and 65535")
    if host.startswith("[") and host.endswith("]"):
        if not _is_ipv6(host[1:-1]):
            raise _invalid(text, "has no IPv6 address between its brackets")
        return Address(host[1:-1], int(port))
    if len(host) > _LONGEST or not _NAME.fullmatch(host):
        raise _invalid(text, "does not begin with the name or address of a host")
    return Address(host, int(port))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _invalid(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"the worker {plain(text)!r:.80} {why}: give HOST:PORT, such as "
        f"127.0.0.1:{PORT}"
    )
