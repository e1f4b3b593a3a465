"""Align diffusion and flow generators with what people want."""

__version__ = "0.1.0"
