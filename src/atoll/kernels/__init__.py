"""Tensor functions with exact shapes: LoRA, attention, the KV cache. They know of tensors and nothing else."""
