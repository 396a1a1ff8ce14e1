"""Which URLs we fetch from, and where a redirect may lead."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urljoin, urlsplit, urlunsplit

from genai_notebook.errors import DownloadError, InvalidRequestError

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


def check_url(url: str, field: str = "url") -> str:
    """`url`, if it is an http or https URL with a host.

    Raises:
        InvalidRequestError: anything else; `details["field"]` is `field`.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on a port that is none
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not _UNSAFE.search(url)
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


def follow(typed: str, current: str, location: str) -> str:
    """The address a redirect from `current` leads to; `typed` is what the user asked for.

    Raises:
        DownloadError: it leaves http(s), falls back from https, or leads into a private network.
    """
    target = urljoin(current, location)
    try:
        check_url(target)
    except InvalidRequestError:
        raise DownloadError(f"The server redirects to {location[:200]!r}, which is not followed.") from None
    if urlsplit(current).scheme == "https" and urlsplit(target).scheme == "http":
        raise DownloadError(f"The server redirects from https to plain http ({target[:200]}), which is not followed.")
    hosts = {urlsplit(typed).hostname, urlsplit(current).hostname}
    host = urlsplit(target).hostname or ""
    if host not in hosts and _is_internal(host):
        raise DownloadError(
            f"The server redirects to {host}, an address inside a private network, which is not followed.",
            hint="If that is meant, give that address itself.",
        )
    return target


def same_host(one: str, other: str) -> bool:
    """Whether credentials for `one` may go to `other`: same scheme, host and port."""
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.netloc) == (second.scheme, second.netloc)


def _is_internal(host: str) -> bool:
    """Whether a name stands for an address that is not on the public internet. A name that does not resolve is not."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(not _is_public(str(address)) for address in found)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_global
    return address.is_global
