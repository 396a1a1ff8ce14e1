"""The header of a model that is not here: one small request instead of a download."""

from __future__ import annotations

from genai_notebook.core.downloads.fetch import read_head
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.gguf import GGUFError, NeedMoreError, parse_prefix
from genai_notebook.core.schema import GGUFMetadata
from genai_notebook.errors import DownloadError


def remote_metadata(url: str, headers: dict[str, str], work: Work) -> GGUFMetadata:
    """What the first bytes at `url` tell: nearly always those of one request of 64 KiB. Blocks.

    Raises:
        DownloadError: they could not be had, or are no GGUF header; `details["reason"]` is 'not-a-model' then.
    """

    def enough(data: bytes) -> bool:
        try:
            parse_prefix(data)
        except NeedMoreError:
            return False
        except GGUFError:
            return True
        return True

    head = read_head(url, headers, enough, work)
    try:
        return parse_prefix(head.data, head.size)
    except GGUFError as error:
        raise DownloadError(f"No header of a model at its source: {error}.", {"reason": "not-a-model"}) from None
