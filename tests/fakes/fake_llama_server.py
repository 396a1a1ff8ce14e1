"""A fake llama-server: its flags, its health, props, completions and key, and nothing behind them.

Beside the words of `engine.py` the control file may hold:

    reply          what every chat answers (default: "Paris.")
    token_seconds  pause between two words of a streamed answer
    answer_seconds how long an answer that is not streamed takes; its slot is busy meanwhile
    most_context   a larger context than this does not fit: it ends as the real one does
    most_layers    so many layers fit into VRAM; with --fit on, or fewer, it loads
    model_error    why the model cannot be loaded: it ends as the real one does
    completion     what /completion does: "nothing" (no tokens), "hang", or {"signal": …} or {"exit": …} with `die_log`
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from engine import Engine, say

OPTIONS = """
    -m --model --host --port -t --threads -tb --threads-batch --threads-http -c --ctx-size -n --n-predict --predict
    -ngl --n-gpu-layers --gpu-layers -np --parallel -fa --flash-attn -fit --fit --fit-target --fit-ctx
    -cram --cache-ram -ctk --cache-type-k -ctv --cache-type-v -b --batch-size -ub --ubatch-size -a --alias --api-key
    --api-key-file
    --reasoning-format --reasoning-budget --chat-template --chat-template-file --pooling --timeout -to --log-file
    --log-colors -lv --verbosity --sleep-idle-seconds --seed -s --temp --top-k --top-p --min-p -mg --main-gpu -ts
    --tensor-split -sm --split-mode -dev --device --rpc --mmproj -mm --lora --grammar --cache-reuse --slot-save-path
    --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale -ot --override-tensor --path --api-prefix
"""
SWITCHES = """
    --kv-unified -kvu --no-kv-unified --jinja --no-jinja --no-webui --webui --metrics --slots --no-slots --props
    --mlock --no-mmap --mmap --embedding --embeddings --reranking --rerank --no-warmup --warmup --cont-batching -cb
    --no-cont-batching -nocb -v --verbose --log-disable --log-prefix --log-timestamps --no-host --swa-full
    --context-shift --no-context-shift --offline
"""
PUBLIC = ("/health", "/v1/health", "/models", "/v1/models")


class FakeLlamaServer(Engine):
    options = frozenset(OPTIONS.split())
    switches = frozenset(SWITCHES.split())
    answering = 0

    def version(self):
        return "version: 9860 (fa4e0000)\nbuilt with a fake compiler for tests"

    def address(self):
        self.check_model(self.flag("-m", "--model", default=""))
        return self.flag("--host", default="127.0.0.1"), int(self.flag("--port", default=8080))

    def load(self, host, port):
        if reason := self.control.get("model_error"):
            self.refuse_model(reason)
        most, context = self.control.get("most_context"), int(self.flag("-c", "--ctx-size", default=4096))
        layers, fitting = int(self.flag("-ngl", "--n-gpu-layers", default=-1)), self.control.get("most_layers")
        if most is not None and context > most:
            self.out_of_memory("CPU", context * 1000)
        if fitting is not None and layers > fitting and self.flag("-fit", "--fit") != "on":
            self.out_of_memory("CUDA0", layers * 1000)
        if fitting is not None:
            layers = min(layers, fitting) if layers >= 0 else fitting
            say(f"0.00.020.000 I load_tensors: offloaded {layers}/33 layers to GPU")
            say(f"0.00.020.001 I load_tensors:        CUDA0 model buffer size = {layers * 2.0:8.2f} MiB")
            say("0.00.020.002 I load_tensors:   CPU_Mapped model buffer size =     8.00 MiB")
        super().load(host, port)

    def refuse_model(self, reason):
        path = self.flag("-m", "--model")
        say(f"0.00.013.202 E llama_model_load: error loading model: {reason}")
        say("0.00.013.203 E llama_model_load_from_file_impl: failed to load model")
        say(f"0.00.013.204 E cmn  common_init_: failed to load model '{path}'")
        say(f"0.00.013.205 E srv    load_model: failed to load model, '{path}'")
        say("0.00.013.206 E srv  llama_server: exiting due to model loading error")
        self.control.note("exit", code=1)
        os._exit(1)

    def out_of_memory(self, device, size):
        say(f"0.00.020.000 E alloc_tensor_range: failed to allocate {device} buffer of size {size}")
        say("0.00.020.001 E srv    load_model: failed to create_context")
        self.control.note("exit", code=1)
        os._exit(1)

    def listening(self, host, port):
        say("0.00.031.589 I srv  llama_server: model loaded")
        say(f"0.00.033.838 I srv  llama_server: listening on http://{host}:{port}")

    def keys(self):
        keys = [key for key in (self.flag("--api-key"), os.environ.get("LLAMA_API_KEY")) if key]
        if path := self.flag("--api-key-file"):
            with open(path, encoding="utf-8") as file:
                keys += file.read().split()
        return keys

    def allowed(self, request, path):
        keys = self.keys()
        if path in PUBLIC or not keys:
            return True
        given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get("X-Api-Key", "")
        return given in keys

    def route(self, request, method, path):
        if not self.allowed(request, path):
            return failure(request, 401, "Invalid API Key", "authentication_error")
        if not self.loaded():
            return failure(request, 503, "Loading model", "unavailable_error")
        routes = {
            ("GET", "/health"): self.health,
            ("GET", "/v1/health"): self.health,
            ("GET", "/props"): self.props,
            ("GET", "/slots"): self.slots,
            ("GET", "/v1/models"): self.models,
            ("POST", "/v1/chat/completions"): self.chat,
            ("POST", "/completion"): self.completion,
            ("POST", "/v1/embeddings"): self.embeddings,
            ("POST", "/embeddings"): self.vectors,
        }
        handler = routes.get((method, path))
        if handler is None:
            return failure(request, 404, "File Not Found", "not_found_error")
        return handler(request)

    def slot_count(self):
        return int(self.flag("-np", "--parallel", default=1))

    def context(self):
        whole = int(self.flag("-c", "--ctx-size", default=4096))
        unified = self.flag("--kv-unified", "-kvu")
        return whole if unified else whole // self.slot_count()

    def health(self, request):
        request.answer(200, {"status": "ok"})

    def props(self, request):
        model = self.flag("-m", "--model")
        settings = {"n_ctx": self.context(), "params": {}}
        value = {"default_generation_settings": settings, "total_slots": self.slot_count(), "model_path": model}
        request.answer(200, {**value, "build_info": "b9860-fake", "chat_template": ""})

    def slots(self, request):
        busy = self.answering
        slots = [{"id": n, "n_ctx": self.context(), "is_processing": n < busy} for n in range(self.slot_count())]
        request.answer(200, slots)

    def models(self, request):
        name = self.flag("-a", "--alias") or self.flag("-m", "--model")
        request.answer(200, {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "llamacpp"}]})

    def embeddings(self, request):
        request.answer(200, {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]})

    def vectors(self, request):
        if not self.flag("--embedding", "--embeddings"):
            return failure(request, 501, "This server does not support embeddings.", "not_supported_error")
        return request.answer(200, [{"index": 0, "embedding": [[0.5, -0.5]]}])

    def completion(self, request):
        how = self.control.get("completion")
        while how == "hang":
            time.sleep(0.02)
        if how == "nothing":
            return request.answer(200, {"content": "", "tokens_predicted": 0, "stop": True})
        if how:
            self.die(how)
            time.sleep(60)  # not a word more
        return request.answer(200, {"content": " ok", "tokens_predicted": 4, "stop": True})

    def chat(self, request):
        body = request.json_body()
        if body is None or not isinstance(body.get("messages"), list):
            return failure(request, 400, "'messages' must be an array", "invalid_request_error")
        self.answering += 1
        self.control.note("chat", body=body)
        time.sleep(float(self.control.get("answer_seconds", 0)))
        try:
            return self.answer_chat(request, body)
        finally:
            self.answering -= 1

    def answer_chat(self, request, body):
        reply = self.control.get("reply", "Paris.")
        usage = {"prompt_tokens": 7, "completion_tokens": len(reply.split()), "total_tokens": 7 + len(reply.split())}
        base = {"id": "chatcmpl-fake", "created": int(time.time()), "model": body.get("model") or "fake"}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
            return request.answer(200, {**base, "object": "chat.completion", "choices": [choice], "usage": usage})
        self.stream(request, {**base, "object": "chat.completion.chunk"}, reply, usage)
        return None

    def stream(self, request, base, reply, usage):
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()

        def send(event):
            data = b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
            request.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            request.wfile.flush()

        def chunk(delta, finish=None):
            return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        try:
            send(chunk({"role": "assistant", "content": None}))
            for number, word in enumerate(reply.split(" ")):
                time.sleep(float(self.control.get("token_seconds", 0)))
                send(chunk({"content": f" {word}" if number else word}))
            send(chunk({}, "stop"))
            send({**base, "choices": [], "usage": usage})
            send(b"[DONE]")
            request.wfile.write(b"0\r\n\r\n")
            request.wfile.flush()
        except ConnectionError:
            self.control.note("stream-cut")
            request.close_connection = True


def failure(request, status, message, kind):
    request.answer(status, {"error": {"code": status, "message": message, "type": kind}})


if __name__ == "__main__":
    control, arguments = sys.argv[1], sys.argv[2:]
    FakeLlamaServer(control).main(arguments)
