"""Base models: where they come from, how they are loaded, and the attention that they run with."""
