"""The table of routes: OpenAPI path templates below Jupyter's base URL, and who answers them.

`openapi.yaml` describes the same table; a test holds the two together.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from genai_notebook.server import engines, events, images, models, proxy, servers, system
from genai_notebook.server.base import GenaiHandler

#: How a template's parameters look in a URL; what is not listed is one path segment.
_PARAMETERS = {"rest": r".+"}


class Route(NamedTuple):
    """`template` as in OpenAPI; `pattern` for tornado; `arguments` fixed by the route, in front of those of the URL."""

    template: str
    pattern: str
    handler: type[GenaiHandler]


def _route(template: str, handler: type[GenaiHandler], *, given: str = "") -> Route:
    """`given`: a leading part of the template that is an argument by itself, such as ``llama`` or ``use``."""
    pattern = re.sub(r"\{(\w+)\}", lambda match: f"({_PARAMETERS.get(match[1], '[^/]+')})", template)
    if given:
        pattern = pattern.replace(f"/{given}", f"/({given})", 1)
    return Route(template, pattern, handler)


def _server_routes(prefix: str, kind: str) -> list[Route]:
    return [
        _route(prefix, servers.InfoHandler, given=kind),
        _route(f"{prefix}/health", servers.HealthHandler, given=kind),
        _route(f"{prefix}/start", servers.StartHandler, given=kind),
        _route(f"{prefix}/stop", servers.StopHandler, given=kind),
        _route(f"{prefix}/restart", servers.RestartHandler, given=kind),
        _route(f"{prefix}/logs", servers.LogsHandler, given=kind),
    ]


ROUTES: tuple[Route, ...] = (
    Route("/genai/", r"/genai/?", system.RootHandler),
    _route("/genai/system", system.SystemHandler),
    _route("/genai/system/memory", system.MemoryHandler),
    _route("/genai/system/use", system.UseHandler),
    _route("/genai/system/check", system.CheckHandler),
    _route("/genai/system/config", system.ConfigHandler),
    _route("/genai/system/estimate", system.EstimateHandler),
    _route("/genai/models", models.ModelsHandler),
    _route("/genai/models/register", models.RegisterHandler, given="register"),
    _route("/genai/models/check-model", models.CheckModelHandler, given="check-model"),
    _route("/genai/models/{id}", models.ModelHandler),
    _route("/genai/models/{id}/verify", models.VerifyHandler),
    _route("/genai/models/{id}/metadata", models.MetadataHandler),
    _route("/genai/search", models.SearchHandler),
    _route("/genai/downloads", models.DownloadsHandler),
    _route("/genai/downloads/{job}", models.DownloadHandler),
    *_server_routes("/genai/llama", "llama"),
    _route("/genai/llama/v1/{rest}", proxy.ProxyHandler, given="llama"),
    *_server_routes("/genai/llamas/{name}", "llamas"),
    _route("/genai/llamas/{name}/v1/{rest}", proxy.ProxyHandler, given="llamas"),
    *_server_routes("/genai/diffusion", "diffusion"),
    _route("/genai/v1/images/generations", images.GenerationsHandler),
    _route("/genai/v1/images/generations/{id}", images.GenerationHandler),
    _route("/genai/health", images.ImageHealthHandler),
    _route("/genai/gallery", images.GalleryHandler),
    _route("/genai/orchestrator", servers.OrchestratorHandler),
    _route("/genai/orchestrator/saved-state", servers.SavedStateHandler),
    _route("/genai/engines", engines.EnginesHandler),
    _route("/genai/engines/use", engines.EngineActionHandler, given="use"),
    _route("/genai/engines/test", engines.EngineActionHandler, given="test"),
    _route("/genai/engines/install", engines.EngineActionHandler, given="install"),
    _route("/genai/engines/remove", engines.EngineActionHandler, given="remove"),
    _route("/genai/events", events.EventsHandler),
)

#: Everything else below genai/.
UNKNOWN = Route("", r"/genai/.*", system.UnknownRouteHandler)
