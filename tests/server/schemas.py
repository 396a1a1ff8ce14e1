"""The `components/schemas` of openapi.yaml, from the structs. `python -m tests.server.schemas` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

import genai_notebook.server
from genai_notebook.core import schema
from genai_notebook.server.engines import EngineRequest
from genai_notebook.server.models import MetadataRequest, RegisterRequest
from genai_notebook.server.system import CheckRequest, ConfigRequest, EstimateRequest

OPENAPI = Path(genai_notebook.server.__file__).parent / "openapi.yaml"
MARK = "  schemas:\n"
STRUCTS = (
    *(schema.SystemCapabilities, schema.MemoryInfo, schema.MemoryUse, schema.RunCheck, schema.MemoryEstimate),
    *(schema.ModelInfo, schema.BrokenModel, schema.FoundRepo, schema.DownloadConfig, schema.DownloadJob),
    *(schema.ServerInfo, schema.DiffusionServerInfo, schema.LlamaServerConfig, schema.DiffusionServerConfig),
    *(schema.ImageGenerationConfig, schema.GenerationState, schema.SavedLLMState, schema.EngineCandidate),
    schema.EngineProgress,
    *(CheckRequest, ConfigRequest, EstimateRequest, RegisterRequest, MetadataRequest, EngineRequest),
)
ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "details": {"type": "object"},
        "hint": {"type": "string"},
    },
}

SERVER = {"type": "string", "description": "llama, diffusion, a further LLM's name, or engines"}
EVENTS: dict[str, Any] = {
    "BinaryLogEvent": {
        "type": "object",
        "required": ["server", "message", "level"],
        "properties": {
            "server": SERVER,
            "message": {"type": "string"},
            "level": {"enum": ["debug", "info", "warn", "error"]},
        },
    },
    "BinaryProgressEvent": {
        "allOf": [
            {"type": "object", "required": ["server"], "properties": {"server": SERVER}},
            {"$ref": "#/components/schemas/EngineProgress"},
        ]
    },
}


def schemas() -> dict[str, Any]:
    """Schemas by name, as OpenAPI wants them."""
    _, components = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    return {name: _terse(components[name]) for name in sorted(components)} | {"Error": ERROR} | EVENTS


def write() -> None:
    head, mark, _ = OPENAPI.read_text().partition(MARK)
    body = yaml.dump(schemas(), Dumper=_Plain, sort_keys=True, width=110, default_flow_style=None)
    OPENAPI.write_text(head + mark + "".join(f"    {line}\n" if line else "\n" for line in body.splitlines()))


class _Plain(yaml.SafeDumper):
    """Writes everything out, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _terse(value: Any) -> Any:
    """Without the docstrings, which speak of Python, and without null: what is absent is left out on the wire."""
    if isinstance(value, list):
        return [_terse(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {name: item for name, item in value.items() if not (name == "description" and isinstance(item, str))}
    if value.get("default", ...) is None and {"type": "null"} in value.get("anyOf", ()):
        del value["default"]
        kinds = [kind for kind in value.pop("anyOf") if kind != {"type": "null"}]
        value |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {name: _terse(item) for name, item in value.items() if name != "title"}


if __name__ == "__main__":
    write()
