"""How llama.cpp lays a model out in memory: its shape, KV cache and compute buffers, and where each of them goes."""
