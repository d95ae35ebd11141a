"""Decide which IP addresses are public.

`ipaddress.is_global` depends on Python's patch level (3.11.7 calls fec0::1, 3fff::1, 192.0.0.9 and 64:ff9b::7f00:1
global), so the rule is written out here. An IPv4 address must be global by `is_global` and in none of the ranges below.
An IPv6 address must be in 2000::/3, the only range assigned to hosts, and in none of the ranges below, or represent a
public IPv4 address.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_V4_SPECIAL = (
    (IPv4Network("192.0.0.0/24"), "IETF protocol"),
    (IPv4Network("192.88.99.0/24"), "6to4 relay"),
)
_V6_SPECIAL = (
    (IPv6Network("2001::/23"), "IETF protocol, Teredo"),
    (IPv6Network("2001:db8::/32"), "documentation"),
    (IPv6Network("3fff::/20"), "documentation"),
)
_V6_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


@lru_cache(maxsize=4096)
def non_public_kind(text: str) -> str | None:
    """Return why an address is not public (`loopback`, `link-local`, ...), or None if it is.

    IPv4-mapped and NAT64 addresses are judged as the IPv4 address that they represent; 6to4 addresses must also contain
    a public one. IPv4-compatible, Teredo and scoped (fe80::1%eth0) addresses are never public.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return "no address"
    if isinstance(address, IPv4Address):
        return _kind4(address)
    return "scoped" if address.scope_id is not None else _kind6(address)


def _kind4(address: IPv4Address) -> str | None:
    special = next((name for network, name in _V4_SPECIAL if address in network), None)
    return special or _class(address) or (None if address.is_global else "not global")


def _kind6(address: IPv6Address) -> str | None:
    inner = _embedded_ipv4(address)
    if inner is not None:
        return _kind4(inner)
    if address not in _V6_UNICAST:
        return _class(address) or "not global unicast"
    special = next((name for network, name in _V6_SPECIAL if address in network), None)
    return special or (_kind4(address.sixtofour) if address.sixtofour is not None else None)


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped


def _class(address: IPv4Address | IPv6Address) -> str | None:
    kinds = ("unspecified", "loopback", "link_local", "multicast", "reserved", "private")
    return next((kind.replace("_", "-") for kind in kinds if getattr(address, f"is_{kind}")), None)
