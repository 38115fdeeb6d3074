"""Atoll: many small LoRA specialists on one base model, tuned, evaluated and served together."""

__version__ = "0.1.0"
