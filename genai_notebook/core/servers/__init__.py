"""Engines that serve: the LLM, the image generator, and who gives way to whom."""
