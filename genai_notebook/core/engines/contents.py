"""What is in a release archive, by name: the rules of what may be there, and where its links lead.

Nothing here touches a disk, and the order in which the members come does not matter to it.
"""

from __future__ import annotations

import re
import unicodedata

_MOST_NAME, _MOST_PART, _MOST_DEPTH, _MOST_HOPS = 1000, 255, 32, 8
_WINDOWS_ONLY = re.compile(r'[\\<>:"|?*]')
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\s*(?:\..*)?", re.IGNORECASE)
#: Controls, formats such as right-to-left marks, halves of characters, separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class ArchiveError(Exception):
    """An archive is broken, or holds what does not belong there; the text names the member and the reason."""


class Contents:
    """The names in an archive, each sure to be harmless and to be there only once, and what they add up to."""

    def __init__(self, most_bytes: int, most_members: int) -> None:
        self.files: dict[str, int] = {}
        self.total = 0
        self._links: dict[str, tuple[str, bool]] = {}
        #: Whether the archive itself lists a folder, or only what is in it.
        self._folders: dict[str, bool] = {}
        self._new: list[str] = []
        self._spellings: dict[str, str] = {}
        self._most_bytes, self._most_members = most_bytes, most_members

    def add_file(self, given: str, size: int) -> str:
        """A file of `size` bytes; returns its name with single slashes and without dots.

        Raises:
            ArchiveError: its name or its size is not allowed; so with the other members.
        """
        name = self._add(given)
        self.files[name] = 0
        self.add_bytes(given, size)
        self.files[name] = size
        return name

    def add_bytes(self, given: str, size: int) -> None:
        """So many bytes more will be written."""
        if size < 0:
            raise refused(given, "has a negative size")
        self.total += size
        if self.total > self._most_bytes:
            raise refused(given, f"makes the archive unpack to more than {self._most_bytes} bytes")

    def add_folder(self, given: str) -> None:
        parts = parts_of(given)
        name = "/".join(parts)  # empty for "./", the archive's own root
        if self._folders.get(name):
            raise refused(given, "is there twice")
        self._enter(parts, given)
        self._folders[name] = True

    def add_link(self, given: str, target: str, *, symbolic: bool) -> None:
        """`target`: seen from the link's folder if it is `symbolic`, else from the archive's root."""
        self._links[self._add(given)] = target, symbolic

    def new_folders(self) -> list[str]:
        """Those that were not there at the last call, parents first."""
        new, self._new = self._new, []
        return new

    def links(self) -> dict[str, str]:
        """Each link, and the file it leads to in the end.

        Raises:
            ArchiveError: one does not lead to a file of this archive.
        """
        return {link: self._end_of(link) for link in self._links}

    def _add(self, given: str) -> str:
        parts = parts_of(given)
        name = "/".join(parts)
        if not name:
            raise refused(given, "has no name")
        self._enter(parts[:-1], given)
        if name in self._folders or name in self.files or name in self._links:
            raise refused(given, "is there twice")
        self._spell(name, given)
        return name

    def _enter(self, parts: list[str], given: str) -> None:
        """The folder of these parts, and those above it."""
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder in self.files or folder in self._links:
                raise refused(given, f"needs a folder where {shown(folder)} is a file or a link")
            if folder not in self._folders:
                self._spell(folder, given)
                self._folders[folder] = False
                self._new.append(folder)

    def _spell(self, name: str, given: str) -> None:
        """Two names that differ only in case or composition are one file on some disks, and two on others."""
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        other = self._spellings.setdefault(key, name)
        if other != name:
            raise refused(given, f"differs from {shown(other)} in case only")
        if len(self._spellings) > self._most_members:
            raise refused(given, f"is one more than the {self._most_members} members an archive may have")

    def _end_of(self, link: str) -> str:
        name = link
        for _ in range(_MOST_HOPS):
            name = self._aim(name)
            if name in self.files:
                return name
            if name not in self._links:
                raise refused(link, f"is a link to {shown(name)}, which is no file of this archive")
        raise refused(link, "is a link that leads in a circle, or over too many others")

    def _aim(self, link: str) -> str:
        """Where one link leads, whether or not something is there."""
        target, symbolic = self._links[link]
        if target.startswith("/") or len(target) > _MOST_NAME:
            raise refused(link, f"is a link to {shown(target)}, out of the archive")
        if not symbolic:
            return "/".join(part for part in target.split("/") if part not in ("", "."))
        parts = link.split("/")[:-1]
        for part in target.split("/"):
            if parts and "/".join(parts) not in self._folders:
                raise refused(link, f"is a link over {shown('/'.join(parts))}, which is no folder of this archive")
            if part == "..":
                if not parts:
                    raise refused(link, f"is a link to {shown(target)}, out of the archive")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts)


def parts_of(given: str) -> list[str]:
    """The parts of a member's name.

    Raises:
        ArchiveError: it means something else than a place below the folder, on this system or on another.
    """
    if len(given) > _MOST_NAME:
        raise refused(given, "has too long a name")
    if any(unicodedata.category(character) in _UNSEEN for character in given):
        raise refused(given, "has characters in its name that nobody sees")
    if given.startswith("/"):
        raise refused(given, "has an absolute name")
    if _WINDOWS_ONLY.search(given):
        raise refused(given, "has a character in its name that means something else on Windows")
    if len(given.encode()) > _MOST_NAME:
        raise refused(given, "has too long a name")
    parts = [part for part in given.split("/") if part not in ("", ".")]
    if len(parts) > _MOST_DEPTH:
        raise refused(given, "lies too deep in folders")
    for part in parts:
        if part == "..":
            raise refused(given, "leads out of the archive")
        if part.endswith((".", " ")) or _RESERVED.fullmatch(part):
            raise refused(given, "has a name that Windows gives another meaning")
        if len(part.encode()) > _MOST_PART:
            raise refused(given, "has too long a name")
    return parts


def shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:120]}…")


def refused(member: str, why: str) -> ArchiveError:
    return ArchiveError(f"the member {shown(member)} {why}")
