"""The small Python face of the running LLM: `chat`, `achat`, and the stream under `%%genai_chat`.

Everything here speaks the OpenAI-compatible API of the LLM that runs, local or remote, over HTTP. Nothing is started by
itself: without a running LLM there is an error that says how to get one.

The module's name has an underscore because `genai_notebook.chat` is the function, which a submodule of that name would
hide.
"""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from genai_notebook.core.validation import from_keywords
from genai_notebook.core.waiting import within
from genai_notebook.errors import GenaiNotebookError, InvalidRequestError, NotYetError, ServerError

if TYPE_CHECKING:
    import httpx

__all__ = ["ChatAnswer", "ChatStream", "achat", "aembed", "chat", "embed"]

#: How long a request waits for an LLM that is starting, or that stepped aside for an image, in seconds.
RELOAD_WAIT = 120.0
_POLL = 0.2


class ChatAnswer(Struct, kw_only=True):
    """What the model said. `str()` of it is the text, and a notebook shows it as Markdown.

    Attributes:
        text: the answer.
        reasoning: the thoughts of a reasoning model, or None.
        model: the model's id, or None where the engine does not tell.
        finish_reason: 'stop', 'length' (max_tokens reached), …
        usage: token counts as the engine reports them (prompt_tokens, completion_tokens, total_tokens).
        timings: the engine's own measurements (predicted_per_second, prompt_ms, …).
    """

    text: str = ""
    reasoning: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


class ChatOptions(Struct, kw_only=True, frozen=True):
    """The keywords of `chat` and `achat`; see there. What is None is left to the engine."""

    system: str | None = None
    history: list[dict[str, str]] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    server: str | None = None
    timeout: Annotated[float, Meta(gt=0)] | None = None


def chat(prompt: str, **options: Any) -> Any:
    """Ask the running LLM and wait for the answer.

    Args:
        prompt: what to ask.
        options: all of them optional:
            system: instructions that stand before everything else.
            history: earlier messages, ``[{"role": "user"|"assistant", "content": "…"}, …]``.
            temperature: 0 always takes the likeliest word. Default: the engine's.
            max_tokens: the longest answer, in tokens. Default: until the model ends it.
            top_p, top_k, seed, stop: as in the OpenAI API.
            stream: give a `ChatStream` to iterate over instead of an answer.
            server: the name of a further LLM (see `get_llama_server`); None is the main one.
            timeout: seconds until giving up; None waits for ever (Interrupt ends it).

    Returns:
        A `ChatAnswer`, or a `ChatStream` when `stream` is true.

    Raises:
        ServerError: no LLM runs (code SERVER_NOT_RUNNING), or it failed.
        InvalidRequestError: an option is wrong, or the prompt does not fit the context.
    """
    parsed = _options(prompt, options)
    if parsed.stream:
        return ChatStream(prompt, parsed)
    from genai_notebook.client.bridge import run

    return run(ask(prompt, parsed))


async def achat(prompt: str, **options: Any) -> Any:
    """`chat` for async code.

    Await it for a `ChatAnswer`; with ``stream=True``, await it for an async iterator of text.
    """
    parsed = _options(prompt, options)
    if parsed.stream:
        return _stream_async(prompt, parsed)
    return await ask(prompt, parsed)


def embed(texts: Any, **options: Any) -> Any:
    """Vectors for texts. Not there yet in this version.

    Raises:
        NotYetError: always.
    """
    raise NotYetError("embed()")


async def aembed(texts: Any, **options: Any) -> Any:
    """`embed` for async code. Not there yet in this version.

    Raises:
        NotYetError: always.
    """
    raise NotYetError("aembed()")


async def ask(
    prompt: str, options: ChatOptions, on_piece: Callable[[str, ChatAnswer], None] | None = None
) -> ChatAnswer:
    """Send one request, collect the stream; `on_piece(text, answer so far)` is called for every piece that arrives.

    Cancelling the coroutine closes the connection, and with it ends the engine's work on the answer.
    """
    answer = ChatAnswer()
    work = _collect(prompt, options, answer, on_piece)
    try:
        await within(options.timeout, work)
    except asyncio.TimeoutError:
        raise ServerError(
            f"The LLM did not finish its answer within {options.timeout:g} seconds.",
            {"text": answer.text},
            code="TIMEOUT",
            hint="Give a longer timeout, or a smaller max_tokens.",
        ) from None
    return answer


class ChatStream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text. Afterwards `answer` holds usage and timings.

    Leaving the loop early, `close()` or an interrupt ends the request in the engine too.
    """

    def __init__(self, prompt: str, options: ChatOptions) -> None:
        from genai_notebook.client.bridge import background_loop

        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        self.answer: ChatAnswer | None = None
        self._future = asyncio.run_coroutine_threadsafe(self._produce(prompt, options), background_loop())

    async def _produce(self, prompt: str, options: ChatOptions) -> ChatAnswer:
        try:
            return await ask(prompt, options, lambda piece, _: self._pieces.put(piece))
        finally:
            self._pieces.put(None)

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        try:
            piece = self._wait()
        except BaseException:
            self.close()
            raise
        if piece is not None:
            return piece
        self._ended = True
        self.answer = self._future.result()
        raise StopIteration

    def _wait(self) -> str | None:
        while True:
            try:
                # In slices, so that an interrupt is noticed on every platform.
                return self._pieces.get(timeout=0.2)
            except queue.Empty:
                continue

    def close(self) -> None:
        """End the request. Harmless when it has ended already."""
        self._ended = True
        self._future.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_future"):
            self._future.cancel()


async def _stream_async(prompt: str, options: ChatOptions) -> AsyncIterator[str]:
    answer = ChatAnswer()
    async for piece in _pieces(prompt, options, answer):
        yield piece


def _options(prompt: Any, options: dict[str, Any]) -> ChatOptions:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequestError("prompt: must be a text that is not empty.", {"field": "prompt"})
    return from_keywords(ChatOptions, None, options)


# ---- the request ----------------------------------------------------------------------------------------------------


class Endpoint(Struct, frozen=True):
    """Where the LLM's OpenAI-compatible API answers."""

    url: str
    api_key: str | None
    model_id: str | None


async def find_endpoint(server: str | None = None) -> Endpoint:
    """The API of the running LLM; waits for one that is starting or being reloaded after an image.

    Raises:
        ServerError: none runs (code SERVER_NOT_RUNNING).
    """
    from genai_notebook.current import get_llama_server, llama_server, orchestrator

    manager = get_llama_server(server) if server else llama_server
    end = asyncio.get_running_loop().time() + RELOAD_WAIT
    while True:
        # In a thread: the first use of a handle finds the owner, which must not happen on the loop.
        info = await asyncio.to_thread(manager.get_info)
        if info.status == "running" and info.url:
            return Endpoint(info.url.rstrip("/").removesuffix("/v1"), info.api_key, info.model_id)
        saved = None if server else await asyncio.to_thread(orchestrator.get_saved_state)
        coming_back = saved is not None and saved.was_running and not saved.error
        if (info.status != "starting" and not coming_back) or asyncio.get_running_loop().time() > end:
            break
        await asyncio.sleep(_POLL)
    raise await _not_running(server, info.status, info.error)


async def _not_running(server: str | None, status: str, error: str | None) -> ServerError:
    from genai_notebook.current import model_manager

    which = f"The LLM {server!r}" if server else "The LLM"
    message = {
        "starting": f"{which} is still starting.",
        "crashed": f"{which} has crashed{': ' + error if error else '.'}",
    }.get(status, "No LLM is running.")
    try:
        models = await model_manager.list_models("llm")
    except GenaiNotebookError:
        models = []
    hint = (
        "%genai start starts one." if models else "%genai download starter fetches a small one, %genai start starts it."
    )
    if status == "crashed":
        hint = "%genai logs shows what happened; %genai start starts it again."
    return ServerError(message, {"status": status}, code="SERVER_NOT_RUNNING", hint=hint)


def _body(prompt: str, options: ChatOptions) -> dict[str, Any]:
    messages: list[dict[str, str]] = []
    if options.system:
        messages.append({"role": "system", "content": options.system})
    messages += options.history or []
    messages.append({"role": "user", "content": prompt})
    body: dict[str, Any] = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    for name in ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop"):
        if (value := getattr(options, name)) is not None:
            body[name] = value
    return body


async def _collect(
    prompt: str, options: ChatOptions, answer: ChatAnswer, on_piece: Callable[[str, ChatAnswer], None] | None
) -> None:
    async for piece in _pieces(prompt, options, answer):
        if on_piece:
            on_piece(piece, answer)


async def _pieces(prompt: str, options: ChatOptions, answer: ChatAnswer) -> AsyncIterator[str]:
    """The answer's text as it arrives. Fills `answer`; a piece may be empty when only thoughts came."""
    import httpx

    # An LLM that steps aside for an image may be gone between the question where it is and the request to it: then the
    # request waits for its return like any other. Twice would be another matter.
    for last in (False, True):
        endpoint = await find_endpoint(options.server)
        answer.model = endpoint.model_id
        answered = False
        try:
            async for event in _exchange(endpoint, _body(prompt, options)):
                answered = True
                piece = _take(event, answer)
                if piece is not None:
                    yield piece
            break
        except httpx.HTTPError as error:
            if answered or last:
                raise _connection_lost(error) from error
    if answer.finish_reason is None:
        raise _connection_lost(None)


async def _exchange(endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of one answer."""
    import httpx

    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    # No limit on reading: a long prompt on a slow machine is silent for minutes. No proxies: the server is ours.
    limits = httpx.Timeout(None, connect=10.0)
    async with (
        httpx.AsyncClient(trust_env=False, timeout=limits) as client,
        client.stream("POST", f"{endpoint.url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        if response.status_code != 200:
            raise _refused(response.status_code, await response.aread())
        async for event in _events(response):
            yield event


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, until ``[DONE]``."""
    async for line in response.aiter_lines():
        kind, _, data = line.partition(":")
        data = data.strip()
        if kind not in ("data", "error") or not data:
            continue
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise ServerError("The LLM's answer could not be read.", {"line": data[:200]}) from None
        if not isinstance(event, dict):
            raise ServerError("The LLM's answer could not be read.", {"line": data[:200]})
        yield {"error": event} if kind == "error" else event


def _take(event: dict[str, Any], answer: ChatAnswer) -> str | None:
    """Add one event to `answer`; returns the new text, '' for new thoughts, None for neither."""
    if event.get("error"):
        raise _refused(500, json.dumps(event).encode())
    answer.usage = event.get("usage") or answer.usage
    answer.timings = event.get("timings") or answer.timings
    choices = event.get("choices") or []
    if not choices:
        return None
    answer.finish_reason = choices[0].get("finish_reason") or answer.finish_reason
    delta = choices[0].get("delta") or {}
    thought, text = delta.get("reasoning_content"), delta.get("content")
    if thought:
        answer.reasoning = (answer.reasoning or "") + thought
    if text:
        answer.text += text
        return str(text)
    return "" if thought else None


def _refused(status: int, body: bytes) -> GenaiNotebookError:
    """The engine's (or our proxy's) error body as one of our errors."""
    try:
        error = json.loads(body)["error"]
        message, kind = str(error["message"]), str(error.get("type") or error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = body.decode(errors="replace")[:200] or f"status {status}", ""
    message = message.rstrip(".") + "."
    if "context" in kind or "context size" in message:
        hint = "Begin a new conversation (%%genai_chat --new), or start the model with a larger --context-size."
        return InvalidRequestError(
            f"The conversation does not fit the context: {message}", {"field": "prompt"}, hint=hint
        )
    if status == 400:
        return InvalidRequestError(f"The LLM refused the request: {message}", {"field": None})
    return ServerError(f"The LLM could not answer: {message}", {"status": status}, hint="%genai logs may say more.")


def _connection_lost(error: Exception | None) -> ServerError:
    return ServerError(
        "The connection to the LLM was lost before the answer was complete.",
        {"reason": f"{type(error).__name__}: {error}" if error else "the stream ended early"},
        hint="%genai status shows whether it still runs, %genai logs what happened.",
    )
