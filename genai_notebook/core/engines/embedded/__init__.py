"""Engines that come as Python wheels: programs with the flags of `llama-server` and `sd-server`.

They are started as child processes (`python -m …`) and never imported by the rest of the package.
"""
