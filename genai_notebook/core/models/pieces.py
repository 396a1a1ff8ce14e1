"""The files a model is made of: before they are here, and once they are."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from genai_notebook.core.models.files import Expect
from genai_notebook.core.schema import ModelSource, PartConfig, Role


class Piece(Struct, kw_only=True):
    """One file that is wanted, as its source describes it.

    `local`, `url` or `package` say where the bytes are; a file of the hub's cache has an address too, in case it is not
    what it should be. `size` and `sha256` (bare hex) are promises that must hold, where given. `source` goes into the
    model's record, with the revision pinned to a commit.
    """

    name: str
    source: ModelSource
    expect: Expect
    role: Role | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    package: PartConfig | None = None
    local: Path | None = None
    #: Whether the local file is to be used where it lies.
    in_place: bool = False
    size: int | None = None
    sha256: str | None = None

    @property
    def key(self) -> str:
        """The same for everybody who wants the same bytes, as far as can be told beforehand."""
        source = self.source
        if source.type == "local":
            return f"local:{self.local}"
        if source.type == "huggingface" and self.sha256:
            return f"sha256:{self.sha256}"
        places = (source.type, source.url, source.repo, source.package, source.file, source.revision)
        return "\n".join(str(place) for place in places)


class Delivered(Struct, kw_only=True):
    """One file that is here, whole and verified. `in_place`: it lies where we must not touch it."""

    path: Path
    size: int
    sha256: str | None
    source: ModelSource
    role: Role | None = None
    in_place: bool = False
