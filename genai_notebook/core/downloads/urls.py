"""Which URLs we fetch from, and where a redirect may lead."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from genai_notebook.errors import DownloadError, InvalidRequestError

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_PORTS = {"http": 80, "https": 443}
#: Where intranets are. Loopback and link-local addresses, those of metadata services among them, are not.
_INTRANET = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]
#: Metadata services that hide among them.
_METADATA = {ipaddress.ip_address("100.100.100.200"), ipaddress.ip_address("fd00:ec2::254")}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_url(url: str, field: str = "url") -> str:
    """`url`, if it is an http or https URL with a host.

    Raises:
        InvalidRequestError: anything else; `details["field"]` is `field`.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on a port that is none
        fine = parts.scheme in _PORTS and bool(parts.hostname) and not _UNSAFE.search(url)
    except ValueError:
        fine = False
    if not fine:
        raise InvalidRequestError(
            f"{field}: {url!r} is not an http or https address.",
            {"field": field},
            hint="For a file on this machine use register_model(path=…).",
        )
    return url


def without_credentials(url: str) -> str:
    """The URL without user name and password, as it may rest on disk and stand in messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def port_of(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 80)


def follow(typed: str, current: str, location: str) -> str:
    """The address a redirect from `current` leads to; `typed` is what the user asked for. May look up names.

    Raises:
        DownloadError: it leaves http(s), falls back from https, or leads into a private network from outside of it.
    """
    details, shown = {"reason": "redirect"}, without_credentials(typed)
    try:
        target = check_url(urljoin(current, location))
    except (InvalidRequestError, ValueError):
        raise DownloadError(
            f"{shown} redirects to {location[:200]!r}, which is not followed.",
            details,
            hint="Only http and https addresses are fetched: give the address of the file itself.",
        ) from None
    if urlsplit(current).scheme == "https" and urlsplit(target).scheme == "http":
        raise DownloadError(
            f"{shown} redirects from https to plain http ({without_credentials(target)[:200]}), which is not followed.",
            details,
            hint="Anybody on the way could change the file. If that is acceptable, give the http address itself.",
        )
    host, start = urlsplit(target).hostname or "", urlsplit(typed).hostname or ""
    if host in (start, urlsplit(current).hostname):
        return target
    inside = [address for address in _addresses(host) if not _is_public(address)]
    if inside and not (all(map(_is_intranet, inside)) and _is_in_intranet(start)):
        raise DownloadError(
            f"{shown} redirects to {host}, an address inside a private network, which is not followed.",
            details,
            hint="If that is meant, give that address itself.",
        )
    return target


def same_host(one: str, other: str) -> bool:
    """Whether credentials for `one` may go to `other`: same scheme, host and port."""
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, port_of(first)) == (second.scheme, second.hostname, port_of(second))


def _addresses(host: str) -> list[str]:
    """What a name stands for; nothing, if it does not resolve."""
    try:
        return list({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except (OSError, UnicodeError):
        return []


def _is_in_intranet(host: str) -> bool:
    addresses = _addresses(host)
    return bool(addresses) and all(map(_is_intranet, addresses))


def _is_public(text: str) -> bool:
    return _parsed(text).is_global


def _is_intranet(text: str) -> bool:
    address = _parsed(text)
    return address not in _METADATA and any(address in network for network in _INTRANET)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address; where IPv6 only wraps one of IPv4, that one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
