"""Everything that crosses a wire or rests on disk, as msgspec structs.

snake_case in Python, camelCase in JSON; `GGUFMetadata` keeps the snake_case of the GGUF format everywhere. What is
absent is None in Python and missing in JSON. Sizes are bytes, durations milliseconds, `…_at` epoch milliseconds, except
the two timestamps that the contract gives as ISO 8601 text (`started_at`, `downloaded_at`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

ServerStatus = Literal["stopped", "starting", "running", "stopping", "crashed"]
HealthStatus = Literal["ok", "loading", "error", "unknown"]
ModelType = Literal["llm", "diffusion"]
SourceType = Literal["huggingface", "url", "pypi", "local"]
GenerationStatus = Literal["pending", "in_progress", "complete", "error"]
ImageStage = Literal["loading", "diffusion", "decoding"]
EngineStage = Literal["queued", "downloading", "verifying", "unpacking", "testing", "done"]
MetadataStrategy = Literal["local-remote", "local-only", "remote-only", "remote-local"]
#: What a part of a split diffusion model is for.
Role = Literal["diffusion_model", "clip_l", "clip_g", "t5xxl", "llm", "llm_vision", "vae"]
#: Where a model would go on this machine: whole into VRAM, into RAM, or nowhere.
Placement = Literal["vram", "ram", "no"]
#: Types of the elements of a KV cache.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
#: The reference's samplers. Engines know more; those come with the engine's own list.
ImageSampler = Literal["euler_a", "euler", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "lcm"]

Port = Annotated[int, Meta(ge=1, le=65535)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
# stable-diffusion.cpp rounds other sizes up to a multiple of 64: nobody would get what was asked.
ImageSide = Annotated[int, Meta(ge=64, le=4096, multiple_of=64)]
# It travels in a header: printable ASCII without spaces.
ApiKey = Annotated[str, Meta(pattern=r"^[!-~]+\Z", max_length=1024)]
# A prompt travels in JSON and argv-free; 1 MiB is far past any text encoder's window.
Prompt = Annotated[str, Meta(max_length=1_048_576)]


class Wire(Struct, kw_only=True, rename="camel", omit_defaults=True, frozen=True):
    """Base of what crosses a wire. Only fields that may be None have defaults, so that nothing else is ever omitted."""


# ---- the machine ----------------------------------------------------------------------------------------------------


class CPUInfo(Wire, frozen=True):
    """`cores`: logical CPUs this process may use (affinity and cgroup quota counted)."""

    cores: int
    physical_cores: int
    model: str
    architecture: str


class MemoryInfo(Wire, frozen=True):
    """RAM in bytes, inside the container's limit and GENAI_NOTEBOOK_MEMORY_LIMIT."""

    total: int
    available: int
    used: int


class GPUInfo(Wire, frozen=True):
    """One GPU; `available` where its memory is known, so that models can be placed on it. Memory in bytes.

    `id` tells GPUs of one machine apart (a UUID, or the PCI address), `driver` is the driver's version (for AMD and
    Intel on Linux the kernel driver's name), `compute_capability` NVIDIA's, e.g. '9.0'. `unified`: its memory is a
    share of the machine's RAM.
    """

    available: bool
    type: str | None = None
    name: str | None = None
    vram: int | None = None
    vram_available: int | None = None
    cuda: bool | None = None
    metal: bool | None = None
    rocm: bool | None = None
    vulkan: bool | None = None
    id: str | None = None
    driver: str | None = None
    compute_capability: str | None = None
    unified: bool | None = None


class SystemRecommendations(Wire, frozen=True):
    max_model_size: str
    recommended_quantization: list[str]
    threads: int
    gpu_layers: int | None = None


class SystemCapabilities(Wire, frozen=True):
    """What this machine can hold. `gpu` is the first or best of `gpus`; `detected_at` in epoch milliseconds."""

    cpu: CPUInfo
    memory: MemoryInfo
    gpu: GPUInfo
    gpus: list[GPUInfo]
    platform: str
    recommendations: SystemRecommendations
    detected_at: int


class MemoryHolder(Wire, frozen=True):
    """Who holds memory: bytes of RAM, and of VRAM over all GPUs (None: not known).

    `kind`: 'llm' and 'images' are our engines, 'owner' the process that runs them (a notebook server), 'kernel' the
    one that asked, 'others' everything else on the machine. `name` is for people: a model's id, or what it is.
    """

    kind: Literal["llm", "images", "owner", "kernel", "others"]
    name: str
    ram: int
    vram: int | None = None
    pid: int | None = None


class MemoryUse(Wire, frozen=True):
    """The machine's memory right now, and who holds it. `measured_at` in epoch milliseconds."""

    memory: MemoryInfo
    gpus: list[GPUInfo]
    holders: list[MemoryHolder]
    measured_at: int


class RunCheck(Wire, frozen=True):
    possible: bool
    reason: str | None = None
    suggestion: str | None = None


class MemoryEstimate(Wire, frozen=True):
    """Bytes. `exact` is False where no GGUF metadata was at hand and the file's size × 1.2 stood in."""

    weights: int
    kv_cache: int
    compute: int
    ram: int
    vram: int
    exact: bool


# ---- models ---------------------------------------------------------------------------------------------------------


class ModelSource(Wire, frozen=True):
    type: SourceType
    url: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    package: str | None = None


class WeightBytes(Wire, frozen=True):
    """Where the bytes of a GGUF file's tensors are, as far as engines place them apart.

    `layers` and `experts` have one number a block: all of its tensors but the experts', and those of its experts (which
    can stay in RAM while the rest is on a GPU). `output` is 0 where the output layer is the token embedding; `other` is
    what belongs to no block.
    """

    layers: list[int]
    experts: list[int]
    token_embedding: int
    output: int
    other: int


class GGUFMetadata(Struct, kw_only=True, omit_defaults=True, frozen=True):
    """The header of a GGUF file. Names as in the format; `raw` holds scalars only, never token lists.

    A per-layer array (`attention_head_count_kv` in some models) is a list of the same field.
    """

    version: int | None = None
    tensor_count: int | None = None
    kv_count: int | None = None
    architecture: str | None = None
    general_name: str | None = None
    file_type: int | None = None
    block_count: int | None = None
    context_length: int | None = None
    attention_head_count: int | list[int] | None = None
    attention_head_count_kv: int | list[int] | None = None
    attention_key_length: int | None = None
    attention_value_length: int | None = None
    attention_sliding_window: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | list[int] | None = None
    vocab_size: int | None = None
    expert_count: int | None = None
    expert_used_count: int | None = None
    rope_dimension_count: int | None = None
    rope_freq_base: float | None = None
    attention_layer_norm_rms_epsilon: float | None = None
    chat_template: str | None = None
    header_size: int | None = None
    weights: WeightBytes | None = None
    raw: dict[str, Any] | None = None


class ModelInfo(Wire, frozen=True):
    """A model in the store. `size` in bytes over all its files, paths absolute.

    `path` is the file an engine is given: the only one, the first shard, or the diffusion model of a split one.
    `checksum` is ``sha256:<hex>``: of the file, or, where there are several, of their listing as sha256sum prints it
    (one line of digest, two spaces and name a file, sorted by name).
    """

    id: str
    name: str
    type: ModelType
    size: int
    path: str
    downloaded_at: str
    source: ModelSource
    checksum: str | None = None
    supports_reasoning: bool | None = None
    gguf_metadata: GGUFMetadata | None = None
    components: dict[str, str] | None = None
    shards: list[str] | None = None


class ModelFile(Wire, frozen=True):
    """One file of a model.

    In a `model.json`, `path` is a bare name for a file in the model's own folder (we fetched it, and it goes with the
    model), absolute for one that lies elsewhere (it is never touched). `sha256` is bare hex; None: not taken yet.
    """

    path: str
    size: int
    source: ModelSource
    sha256: str | None = None
    role: Role | None = None


class ModelRecord(Wire, frozen=True):
    """A `model.json`. The first of `files` is the one an engine is given; a ModelInfo is worked out from them."""

    id: str
    name: str
    type: ModelType
    downloaded_at: str
    files: Annotated[list[ModelFile], Meta(min_length=1)]
    supports_reasoning: bool | None = None
    gguf_metadata: GGUFMetadata | None = None


class BrokenModel(Wire, frozen=True):
    """A model whose `model.json` cannot be used, and why."""

    id: str
    reason: str


class Inventory(Wire, frozen=True):
    """All that is in a store, sorted by id."""

    models: list[ModelInfo]
    broken: list[BrokenModel]


class FoundFile(Wire, frozen=True):
    """A model file in a repository, sharded ones as one. `size` in bytes over all shards; `fits`: see `Placement`."""

    file: str
    size: int
    fits: Placement
    quantization: str | None = None
    shards: int | None = None


class FoundRepo(Wire, frozen=True):
    """A repository that a search found. `gated`: its owner must grant access first.

    `choice` is the file that is fetched when none is named: the best quantisation that fits this machine, if any does.
    """

    repo: str
    downloads: int
    likes: int
    gated: bool
    files: list[FoundFile]
    choice: str | None = None
    updated_at: str | None = None


class PartConfig(Wire, frozen=True, forbid_unknown_fields=True):
    """Where one part of a split model comes from; what it leaves open is the whole model's. `path`: a local file."""

    source: SourceType | None = None
    url: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    package: str | None = None
    path: str | None = None
    checksum: str | None = None


class DownloadConfig(Wire, frozen=True, forbid_unknown_fields=True):
    """What `download_model` takes, beside the callback.

    `components` makes a split diffusion model: role → where that part comes from, as a PartConfig or in short:
    ``hf:OWNER/REPO[@REVISION]/FILE``, ``https://…``, ``pypi:PACKAGE``, an absolute path, or a bare file name in `repo`.
    """

    source: SourceType
    url: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    package: str | None = None
    name: Annotated[str, Meta(max_length=300)] | None = None
    type: ModelType = "llm"
    checksum: str | None = None
    components: dict[Role, PartConfig | str] | None = None


class DownloadJob(Wire, frozen=True):
    """One download. `downloaded`, `total` in bytes (total None while unknown), `rate` in bytes per second."""

    id: str
    model_name: str
    status: Literal["queued", "running", "verifying", "complete", "error", "cancelled"]
    downloaded: int
    rate: float
    total: int | None = None
    error: str | None = None


# ---- servers --------------------------------------------------------------------------------------------------------


class ServerInfo(Wire, frozen=True):
    """A snapshot. `pid` is the engine's own, `owner` is 'jupyter-server' or 'kernel', `url` where its API answers."""

    status: ServerStatus
    health: HealthStatus
    owner: str
    pid: int | None = None
    port: int | None = None
    model_id: str | None = None
    started_at: str | None = None
    url: str | None = None
    api_key: str | None = None
    context_size: int | None = None
    engine: str | None = None
    error: str | None = None


class DiffusionServerInfo(ServerInfo, frozen=True, kw_only=True):
    """`pid`: the resident engine's, `port`: the stand-alone listener's (None without one), `url`: the image routes."""

    busy: bool


class LlamaServerConfig(Wire, frozen=True, forbid_unknown_fields=True):
    """What `llama_server.start` takes. None means: worked out from the machine and the model."""

    model_id: str
    port: Port | Literal["auto"] = 8080
    threads: Threads | None = None
    context_size: Annotated[int, Meta(ge=1, le=2**24)] | None = None
    gpu_layers: Annotated[int, Meta(ge=0, le=9999)] | None = None
    parallel_requests: Annotated[int, Meta(ge=1, le=256)] = 4
    flash_attention: bool | Literal["on", "off", "auto"] = "auto"
    force_validation: bool = False
    api_key: ApiKey | Literal[False] | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    extra_args: list[str] = []


class DiffusionServerConfig(Wire, frozen=True, forbid_unknown_fields=True):
    """What `diffusion_server.start` takes. `vram_budget` in MB; `gpu_layers` may only be 0 (CPU) or None."""

    model_id: str
    port: Port | Literal["auto"] | None = None
    threads: Threads | None = None
    gpu_layers: int | None = None
    vram_budget: Annotated[int, Meta(ge=1)] | None = None
    force_validation: bool = False
    api_key: ApiKey | Literal[False] | None = None
    extra_args: list[str] = []


# ---- images ---------------------------------------------------------------------------------------------------------


class ImageGenerationConfig(Struct, kw_only=True, rename="camel", frozen=True, forbid_unknown_fields=True):
    """One request for images.

    `seed` None or negative: drawn at random, and reported in the result. `count` images take seed, seed + 1, ….
    The defaults are passed to the engine explicitly, so that they do not drift with it.
    """

    prompt: Prompt
    negative_prompt: Prompt | None = None
    width: ImageSide = 512
    height: ImageSide = 512
    steps: Annotated[int, Meta(ge=1, le=1000)] = 20
    cfg_scale: Annotated[float, Meta(ge=0, le=100)] = 7.5
    seed: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    sampler: ImageSampler = "euler_a"
    count: Annotated[int, Meta(ge=1, le=5)] = 1


class ImageGenerationProgress(Wire, frozen=True):
    """`percentage` is of the whole request; it never falls and is 100 only at the end."""

    current_step: int
    total_steps: int
    stage: ImageStage
    percentage: float | None = None
    current_image: int | None = None
    total_images: int | None = None


class ImageGenerationResult(Wire, frozen=True):
    """One picture. Shows itself as a PNG in a notebook. `time_taken` in milliseconds."""

    image: bytes
    format: Literal["png"]
    time_taken: int
    seed: int
    width: int
    height: int
    id: str

    def __repr__(self) -> str:
        return (
            f"ImageGenerationResult({self.width}×{self.height} png, seed={self.seed}, "
            f"{len(self.image)} bytes, {self.time_taken} ms)"
        )

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        metadata = {"width": self.width, "height": self.height, "genai_notebook": {"seed": self.seed, "id": self.id}}
        return self.image, metadata


class ImageBatchResult(Wire, frozen=True):
    """What `generate_image(count > 1)` returns: iterable, indexable, shows itself as a row of pictures."""

    images: list[ImageGenerationResult]
    time_taken: int
    id: str

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageGenerationResult]:
        return iter(self.images)

    def __getitem__(self, index: int) -> ImageGenerationResult:
        return self.images[index]

    def __repr__(self) -> str:
        return f"ImageBatchResult({self.images!r})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<figure style="margin:0"><img alt="image with seed {image.seed}" width="{min(image.width, 256)}" '
            f'src="data:image/png;base64,{base64.b64encode(image.image).decode()}">'
            f"<figcaption>seed {image.seed}</figcaption></figure>"
            for image in self.images
        )
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>'


class GeneratedImage(Wire, frozen=True):
    """One picture inside a `GenerationState`: as in the reference, base64 on the wire."""

    image: bytes
    seed: int
    width: int
    height: int


class GenerationOutput(Wire, frozen=True):
    images: list[GeneratedImage]
    format: Literal["png"]
    time_taken: int


class GenerationFailure(Wire, frozen=True):
    """What the reference reports, and what our own clients need to raise the same error as a local caller gets."""

    message: str
    code: str
    details: dict[str, Any] | None = None
    hint: str | None = None


class GenerationState(Wire, frozen=True):
    """One asynchronous generation, as the registry keeps it and the polling route reports it."""

    id: str
    status: GenerationStatus
    created_at: int
    updated_at: int
    config: ImageGenerationConfig | None = None
    progress: ImageGenerationProgress | None = None
    result: GenerationOutput | None = None
    error: GenerationFailure | None = None


class SavedLLMState(Wire, frozen=True):
    """The LLM that stepped aside for an image. `saved_at` in epoch milliseconds; `error` says why a reload failed."""

    config: dict[str, Any]
    was_running: bool
    saved_at: int
    error: str | None = None


# ---- engines and the rendezvous on disk -----------------------------------------------------------------------------


class EngineCandidate(Wire, frozen=True):
    """One engine. `variant`: where it is from ('explicit', 'embedded', 'path'), or what a release's build computes on
    ('cuda', 'rocm', 'vulkan', 'metal', 'cpu').

    `state`: 'works' (it has computed with a model), 'usable' (it is here), 'available' (`install` fetches it),
    'missing', 'unsupported' (not for this machine), 'failed'; `reason` says why. `gpu`: whether its last test used one.
    `log`: the last lines of a test that failed.
    """

    name: str
    kind: Literal["llama", "diffusion"]
    variant: str
    state: Literal["works", "usable", "available", "missing", "unsupported", "failed"]
    version: str | None = None
    path: str | None = None
    reason: str | None = None
    gpu: bool | None = None
    in_use: bool | None = None
    log: list[str] | None = None


class EngineProgress(Wire, frozen=True):
    """How far an engine is on its way; `done` and `total` in bytes, where there are any ('unpacking' counts what comes
    out). 'queued': another process installs it; 'done': its tests are over.
    """

    kind: Literal["llama", "diffusion"]
    engine: str
    stage: EngineStage
    done: int | None = None
    total: int | None = None


class EngineRecord(Wire, frozen=True):
    """One running engine as its file under `run/` describes it: how others find it, and how an orphan is recognised."""

    name: str
    pid: int
    pid_created: float
    owner_pid: int
    owner_created: float
    owner: str
    engine: str
    started_at: str
    port: int | None = None
    model_id: str | None = None
    api_key: str | None = field(default=None)
