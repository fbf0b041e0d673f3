"""Two hosts on one machine: network namespaces, joined by a cable of the kernel, that share no address and no loopback.

Making them needs the right to administer networks (CAP_NET_ADMIN) and iproute2; where either is missing, ``absence``
says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

# The first two of 198.18/15, which RFC 2544 sets aside for tests between devices: no network has them.
ADDRESSES = [str(IPv4Address((198 << 24 | 18 << 16) + place)) for place in (1, 2)]
CABLE = "m2cable"
# What stands here is bound over /etc for commands of a namespace.
NAMES = Path("/etc/netns")


@dataclass(frozen=True, slots=True)
class Host:
    """One of the two: a name of its own and an address that the other reaches by the cable."""

    name: str
    address: str

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a command here; collectives of gloo take the cable, whatever the machine's name resolves to."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "GLOO_SOCKET_IFNAME": CABLE, **environment},
        )  # fmt: skip

    def received_bytes(self) -> int:
        """Bytes that have come in by the cable."""
        return int(_said("ip", "netns", "exec", self.name, "cat", f"/sys/class/net/{CABLE}/statistics/rx_bytes"))


def absence() -> str:
    """Why two hosts cannot be made here, or nothing."""
    if shutil.which("ip") is None:
        return "two hosts need iproute2; install the package"
    try:
        with two_hosts():
            return ""
    except subprocess.CalledProcessError as error:
        return f"two hosts need the right to make network namespaces (CAP_NET_ADMIN): {str(error.stderr).strip()}"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make both and the cable; they are gone afterwards, with whatever still ran on them.

    Raises subprocess.CalledProcessError where the right is missing.
    """
    hosts = [Host(f"m2-{os.getpid()}-{place}", address) for place, address in enumerate(ADDRESSES)]
    made = []
    try:
        for host in hosts:
            _said("ip", "netns", "add", host.name)
            made.append(host)
            _write_names(host, hosts)
        one, other = hosts
        _said("ip", "-n", one.name, "link", "add", CABLE, "type", "veth", "peer", CABLE, "netns", other.name)
        for host in hosts:
            _said("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", CABLE)
            for interface in (CABLE, "lo"):
                _said("ip", "-n", host.name, "link", "set", interface, "up")
        yield one, other
    finally:
        for host in made:
            for process in _said("ip", "netns", "pids", host.name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            _said("ip", "netns", "delete", host.name)
            shutil.rmtree(NAMES / host.name, ignore_errors=True)


def _write_names(host: Host, hosts: Sequence[Host]) -> None:
    """Names of both without a name server: torch looks its own up, and whoever connects, and waits for an answer."""
    folder = NAMES / host.name
    folder.mkdir(parents=True)
    lines = ["127.0.0.1 localhost", f"{host.address} {platform.node()}", *(f"{h.address} {h.name}" for h in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "resolv.conf").write_text("")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
