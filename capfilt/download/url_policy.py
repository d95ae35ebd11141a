"""Decide which URLs are requested: refuse URLs, hosts and addresses that an untrusted list may not name.

Every redirect is checked again. A URL is parsed once, by one strict expression, and the request is built from its
parts, so that no second parser can read it differently. A host is looked up once, and the connection goes to one of the
addresses that were checked, so that a resolver cannot give another address later.
"""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import quote

import idna

from capfilt.download.addresses import non_public_kind
from capfilt.download.reasons import FetchError, shown

MAX_URL = 8192
"""Characters."""
_MAX_HOST = 254
PORTS = (80, 443)
_DEFAULT = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>https?)://(?P<where>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?:#.*)?", re.I | re.S)
_WHERE = re.compile(r"(?P<host>\[[^\]\[]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{0,5}))?")
_BAD = re.compile("[\x00-\x20\x7f-\xa0\\\\\\s\ud800-\udfff]")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
"""Hosts that some resolvers read as an address: their last label is a number (WHATWG URL standard)."""
_KEPT = "".join(map(chr, range(0x21, 0x7F)))
_TEMPORARY = {getattr(socket, name) for name in ("EAI_AGAIN", "EAI_MEMORY", "EAI_SYSTEM") if hasattr(socket, name)}

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
"""`socket.getaddrinfo` or a replacement."""


@dataclass(frozen=True)
class Target:
    """The parts of a checked URL, all ASCII, safe to write into a request."""

    scheme: str
    host: str
    """Lower case, without a trailing dot; IPv6 in brackets, shortest form."""
    port: int
    path: str
    """With the query: what follows GET."""
    allowed: bool
    """True if `allow_hosts` names the host: then its address need not be public."""

    @property
    def origin(self) -> str:
        """scheme://host[:port]"""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """The Host header."""
        return self.host if self.port == _DEFAULT[self.scheme] else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return self.origin + self.path

    @property
    def bare(self) -> str:
        """The host without brackets, for TLS and for connecting."""
        return self.host.strip("[]")


class UrlPolicy:
    """The rules of one source.

    Args:
        allow: `host` or `host:port`, from `blocklist.allow_list`.
        block: hosts in ASCII, from `blocklist.read_hosts`.
        resolve: looks up a host name.
    """

    def __init__(self, allow: frozenset[str], block: frozenset[str], resolve: Resolver = socket.getaddrinfo) -> None:
        self._allow = allow
        self._block = block
        self._resolve = resolve

    def check(self, url: str) -> Target:
        """Parse and check a URL without a look-up. Raises FetchError: url_refused, blocked_host."""
        check_characters(url)
        parts = _URL.fullmatch(url)
        if parts is None:
            raise FetchError("url_refused", f"not http:// or https://: {shown(url)}")
        written, port, allowed = self._host_and_port(parts["scheme"].lower(), parts["where"])
        host = ascii_host(written)
        if self._block and any(name in self._block for name in _with_parents(host)):
            raise FetchError("blocked_host", f"{host} is on the block list")
        path = (parts["path"] or "/") + (parts["query"] or "")
        return Target(parts["scheme"].lower(), host, port, path if path.isascii() else quote(path, safe=_KEPT), allowed)

    def _host_and_port(self, scheme: str, where: str) -> tuple[str, int, bool]:
        """Return the host as written, the port, and True if allow_hosts names them."""
        if "@" in where:
            raise FetchError("url_refused", "a user name or password in the URL")
        parts = _WHERE.fullmatch(where)
        if parts is None or not parts["host"]:
            raise FetchError("url_refused", f"no host and port: {shown(where)}")
        port = int(parts["port"] or _DEFAULT[scheme])
        written = parts["host"].lower()
        allowed = written in self._allow or f"{written}:{port}" in self._allow
        if not allowed and port not in PORTS:
            raise FetchError("url_refused", f"port {port}; only 80 and 443 are asked")
        return parts["host"], port, allowed

    def addresses(self, target: Target) -> list[str]:
        """Look up the host's addresses, at least one. A look-up cannot be interrupted.

        Raises:
            FetchError: dns, dns_temporary, or address_refused if any of the addresses is not public.
        """
        literal = target.host.startswith("[") or _NUMERIC.fullmatch(target.host) is not None
        found = [target.bare] if literal else self._look_up(target)
        if not target.allowed:
            refused = sorted((address, kind) for address in found if (kind := non_public_kind(address)))
            if refused:
                raise FetchError("address_refused", f"{target.host} is at {refused[0][0]} ({refused[0][1]})")
        return found

    def _look_up(self, target: Target) -> list[str]:
        try:
            answers = self._resolve(target.host, target.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in _TEMPORARY:
                raise FetchError("dns_temporary", f"{target.host} could not be looked up for now") from error
            raise FetchError("dns", f"{target.host} is not known") from error
        except (OSError, UnicodeError) as error:
            raise FetchError("dns_temporary", f"{target.host} could not be looked up for now") from error
        found = list(dict.fromkeys(str(answer[4][0]) + ("%" if any(answer[4][3:]) else "") for answer in answers))
        if not found:
            raise FetchError("dns", f"{target.host} has no address")
        return found


def check_characters(url: str) -> None:
    """Raises FetchError url_refused: too long, or has white space, a control character, backslash or lone surrogate."""
    if len(url) > MAX_URL:
        raise FetchError("url_refused", f"a URL of {len(url)} characters; at most {MAX_URL}")
    bad = _BAD.search(url)
    if bad:
        raise FetchError("url_refused", f"the character {bad[0]!a} in a URL")


def ascii_host(written: str) -> str:
    """Return the host in lower-case ASCII without a trailing dot; IPv6 in brackets. Raises FetchError: url_refused."""
    if written.startswith("["):
        return _bracketed(written)
    if len(written) > _MAX_HOST:
        raise FetchError("url_refused", f"a host name of {len(written)} characters")
    host = (written if written.isascii() else _encoded(written)).lower()
    if _NUMERIC.fullmatch(host.removesuffix(".")):
        return _quad(written)
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise FetchError("url_refused", f"not a host name: {shown(written)}")
    return host


def _encoded(written: str) -> str:
    """Encode by IDNA 2008 after the mapping of UTS 46, as browsers do."""
    try:
        return idna.encode(written, uts46=True).decode("ascii")
    except UnicodeError as error:
        raise FetchError("url_refused", f"not a host name: {shown(written)}") from error


def _bracketed(written: str) -> str:
    try:
        address = IPv6Address(written[1:-1])
    except ValueError as error:
        raise FetchError("url_refused", f"not an IPv6 address: {shown(written)}") from error
    if address.scope_id is not None:
        raise FetchError("url_refused", f"an IPv6 address with a zone: {shown(written)}")
    return f"[{address.compressed}]"


def _quad(written: str) -> str:
    """Return four decimal numbers as written. Refuses short, octal, hexadecimal and single-number forms."""
    try:
        canonical = str(IPv4Address(written)) == written
    except ValueError:
        canonical = False
    if not canonical:
        raise FetchError("url_refused", f"an IPv4 address that is not four decimal numbers: {shown(written)}")
    return written


def _with_parents(host: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c; an address has no parents."""
    if host.startswith("[") or _NUMERIC.fullmatch(host):
        return [host]
    labels = host.split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]
