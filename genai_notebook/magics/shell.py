"""What the magics know about the IPython session they are loaded into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genai_notebook.display import views
from genai_notebook.display.live import Live, NotebookLive, TerminalLive, TerminalText, show
from genai_notebook.display.views import Bundle


class Interrupted(KeyboardInterrupt):
    """The user's interrupt, shown as one line. Still a KeyboardInterrupt, so that Run All stops."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Shell:
    """One IPython session: where outputs go, and the conversation of this notebook.

    Attributes:
        ip: the InteractiveShell.
        messages: the conversation so far, as OpenAI messages without the system message.
        system: the conversation's system message, or None.
    """

    def __init__(self, ip: Any) -> None:
        self.ip = ip
        self.messages: list[dict[str, str]] = []
        self.system: str | None = None

    @property
    def in_notebook(self) -> bool:
        """Whether outputs go to a Jupyter frontend (else to a terminal)."""
        return getattr(self.ip, "kernel", None) is not None

    def emit(self, bundle: Bundle, metadata: dict[str, Any] | None = None) -> None:
        """Show a result."""
        show(bundle, metadata)

    def live(self, bundle: Bundle) -> Live:
        """An output that changes; for states that replace each other."""
        return NotebookLive(bundle) if self.in_notebook else TerminalLive(bundle)

    def live_text(self, bundle: Bundle) -> Live:
        """An output that changes; for a text that grows."""
        return NotebookLive(bundle) if self.in_notebook else TerminalText()

    @contextmanager
    def working(self, title: str) -> Iterator[Live]:
        """A live progress output that says so when the work inside fails or is interrupted."""
        live = self.live(views.progress(title, None, ""))
        try:
            yield live
        except KeyboardInterrupt as error:
            live.finish(views.note(f"{title}: interrupted."))
            if isinstance(error, Interrupted):
                raise
            raise Interrupted(f"Interrupted: {title[:1].lower()}{title[1:]}.") from None
        except BaseException:
            live.finish(views.note(f"{title}: failed."))
            raise

    def store(self, name: str | None, value: Any) -> None:
        """Put a result into the user's variable `name`, if one was asked for."""
        if name:
            self.ip.push({name: value})
