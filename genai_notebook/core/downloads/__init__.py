"""Bytes from a URL, verified, as jobs that can be watched and cancelled; used by models and engines."""
