"""Which addresses of the network a webhook may connect to.

A name is looked up once for each try. Only the addresses that were found and allowed are connected
to, so that an answer of the name server that changes in between (DNS rebinding) leads nowhere.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# prefix that translates IPv4 addresses in the last 32 bits (RFC 6052)
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddress(Exception):
    """A host has no public address."""


def literal_address(host: str) -> Address | None:
    """The address that a host name is; None if it has to be looked up."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_private(address: Address) -> bool:
    """Whether it is not public: private, loopback, link-local, shared, reserved, multicast, or an
    IPv6 address that stands for such an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(inner)
        if address.teredo is not None or address.is_site_local:
            return True
    return not address.is_global or address.is_multicast


def look_up(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The addresses of a host that may be connected to, in the order to try them.

    Raises OSError if the name is unknown, and PrivateAddress if none of them is allowed.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if allow_private:
        return addresses
    allowed = [text for text in addresses if _is_public(text)]
    if not allowed:
        raise PrivateAddress(
            f"{host} has the private address {addresses[0]}: set allow_private: true to allow it"
        )
    return allowed


def _is_public(text: str) -> bool:
    address = literal_address(text)
    return address is not None and not is_private(address)
