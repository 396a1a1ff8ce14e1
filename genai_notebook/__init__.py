"""A private language model and an image generator inside every notebook.

    %load_ext genai_notebook
    from genai_notebook import llama_server, diffusion_server, model_manager, run

Names are imported at their first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genai_notebook._version import __version__

if TYPE_CHECKING:
    from genai_notebook._chat import achat, aembed, chat, embed
    from genai_notebook.client.bridge import run
    from genai_notebook.core.engines.manager import BinaryManager
    from genai_notebook.core.models.manager import ModelManager
    from genai_notebook.core.schema import (
        CPUInfo,
        DiffusionServerConfig,
        DiffusionServerInfo,
        DownloadConfig,
        DownloadJob,
        EngineCandidate,
        EngineProgress,
        FoundFile,
        FoundRepo,
        GenerationState,
        GGUFMetadata,
        GPUInfo,
        ImageBatchResult,
        ImageGenerationConfig,
        ImageGenerationProgress,
        ImageGenerationResult,
        LlamaServerConfig,
        MemoryEstimate,
        MemoryHolder,
        MemoryInfo,
        MemoryUse,
        ModelInfo,
        ModelSource,
        PartConfig,
        RunCheck,
        SavedLLMState,
        ServerInfo,
        SystemCapabilities,
        SystemRecommendations,
    )
    from genai_notebook.core.servers.diffusion import DiffusionServerManager
    from genai_notebook.core.servers.generations import GenerationRegistry
    from genai_notebook.core.servers.llama import LlamaServerManager
    from genai_notebook.core.servers.manager import ServerManager
    from genai_notebook.core.servers.orchestrator import ResourceOrchestrator
    from genai_notebook.core.system.info import SystemInfo
    from genai_notebook.core.utilities import (
        REASONING_MODEL_PATTERNS,
        calculate_checksum,
        detect_reasoning_support,
        format_bytes,
        generate_id,
        get_arch_field,
        get_architecture,
        get_platform,
        get_platform_key,
    )
    from genai_notebook.current import (
        diffusion_server,
        engine_manager,
        get_llama_server,
        llama_server,
        model_manager,
        orchestrator,
        system_info,
    )
    from genai_notebook.errors import (
        BinaryError,
        ChecksumError,
        DownloadError,
        FileSystemError,
        GenaiNotebookError,
        InsufficientResourcesError,
        InvalidRequestError,
        ModelNotFoundError,
        NotYetError,
        PortInUseError,
        ServerError,
    )

__all__ = [
    "REASONING_MODEL_PATTERNS",
    "BinaryError",
    "BinaryManager",
    "CPUInfo",
    "ChecksumError",
    "DiffusionServerConfig",
    "DiffusionServerInfo",
    "DiffusionServerManager",
    "DownloadConfig",
    "DownloadError",
    "DownloadJob",
    "EngineCandidate",
    "EngineProgress",
    "FileSystemError",
    "FoundFile",
    "FoundRepo",
    "GGUFMetadata",
    "GPUInfo",
    "GenaiNotebookError",
    "GenerationRegistry",
    "GenerationState",
    "ImageBatchResult",
    "ImageGenerationConfig",
    "ImageGenerationProgress",
    "ImageGenerationResult",
    "InsufficientResourcesError",
    "InvalidRequestError",
    "LlamaServerConfig",
    "LlamaServerManager",
    "MemoryEstimate",
    "MemoryHolder",
    "MemoryInfo",
    "MemoryUse",
    "ModelInfo",
    "ModelManager",
    "ModelNotFoundError",
    "ModelSource",
    "NotYetError",
    "PartConfig",
    "PortInUseError",
    "ResourceOrchestrator",
    "RunCheck",
    "SavedLLMState",
    "ServerError",
    "ServerInfo",
    "ServerManager",
    "SystemCapabilities",
    "SystemInfo",
    "SystemRecommendations",
    "__version__",
    "achat",
    "aembed",
    "calculate_checksum",
    "chat",
    "detect_reasoning_support",
    "diffusion_server",
    "embed",
    "engine_manager",
    "format_bytes",
    "generate_id",
    "get_arch_field",
    "get_architecture",
    "get_llama_server",
    "get_platform",
    "get_platform_key",
    "llama_server",
    "model_manager",
    "orchestrator",
    "run",
    "system_info",
]

_MODULES = {
    "_chat": "achat aembed chat embed",
    "client.bridge": "run",
    "core.engines.manager": "BinaryManager",
    "core.models.manager": "ModelManager",
    "core.schema": """
        CPUInfo DiffusionServerConfig DiffusionServerInfo DownloadConfig DownloadJob EngineCandidate
        EngineProgress FoundFile FoundRepo GGUFMetadata GPUInfo GenerationState ImageBatchResult
        ImageGenerationConfig ImageGenerationProgress ImageGenerationResult LlamaServerConfig MemoryEstimate
        MemoryHolder MemoryInfo MemoryUse ModelInfo ModelSource PartConfig RunCheck SavedLLMState ServerInfo
        SystemCapabilities SystemRecommendations""",
    "core.servers.diffusion": "DiffusionServerManager",
    "core.servers.generations": "GenerationRegistry",
    "core.servers.llama": "LlamaServerManager",
    "core.servers.manager": "ServerManager",
    "core.servers.orchestrator": "ResourceOrchestrator",
    "core.system.info": "SystemInfo",
    "core.utilities": """
        REASONING_MODEL_PATTERNS calculate_checksum detect_reasoning_support format_bytes generate_id get_arch_field
        get_architecture get_platform get_platform_key""",
    "current": """
        diffusion_server engine_manager get_llama_server llama_server model_manager orchestrator system_info""",
    "errors": """
        BinaryError ChecksumError DownloadError FileSystemError GenaiNotebookError InsufficientResourcesError
        InvalidRequestError ModelNotFoundError NotYetError PortInUseError ServerError""",
}
_HOME_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext genai_notebook`"""
    from genai_notebook.magics import load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext genai_notebook`"""
    from genai_notebook.magics import unload

    unload(ipython)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Where jupyter-server finds the extension."""
    from genai_notebook.server.extension import GenaiNotebookApp

    return [{"module": "genai_notebook.server.extension", "app": GenaiNotebookApp}]
