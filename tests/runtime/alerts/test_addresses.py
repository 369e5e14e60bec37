"""Which addresses a webhook may connect to."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicort.runtime.alerts import addresses

# IANA's special-purpose registries, the parts that are not globally reachable, and multicast
NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/127", "100::/64", "2001:db8::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
]
# what an address of IPv4 is written as in IPv6: mapped, 6to4, NAT64
FORMS = ("{}", "::ffff:{}", "2002:{hex}::1", "64:ff9b::{}")


def inside(network: ipaddress.IPv4Network | ipaddress.IPv6Network):
    size = network.num_addresses - 1
    return st.integers(0, size).map(lambda number: network[number])


@given(st.sampled_from(NOT_PUBLIC).flatmap(inside), st.sampled_from(FORMS))
def test_no_form_of_an_address_that_is_not_public_is_taken_for_one(address, form):
    text = str(address)
    if address.version == 4:
        high, low = divmod(int(address), 1 << 16)
        text = form.format(text, hex=f"{high:x}:{low:x}")
    assert addresses.is_private(addresses.literal_address(text))


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "64:ff9b::1.1.1.1"]
)
def test_public_ones_are_not_private(text):
    assert not addresses.is_private(addresses.literal_address(text))


def found(monkeypatch, *texts):
    def look_up(host, port, type):
        return [(socket.AF_INET, type, 6, "", (text, port)) for text in texts]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_only_public_addresses_of_a_name_are_connected_to(monkeypatch):
    found(monkeypatch, "10.0.0.1", "1.1.1.1", "::1", "8.8.8.8", "1.1.1.1")
    assert addresses.look_up("hook", 80, allow_private=False) == ["1.1.1.1", "8.8.8.8"]
    everything = ["10.0.0.1", "1.1.1.1", "::1", "8.8.8.8"]
    assert addresses.look_up("hook", 80, allow_private=True) == everything


def test_a_name_without_public_addresses_is_refused(monkeypatch):
    found(monkeypatch, "10.0.0.1", "fe80::1%eth0")
    with pytest.raises(addresses.PrivateAddress, match="hook has the private address 10"):
        addresses.look_up("hook", 80, allow_private=False)
