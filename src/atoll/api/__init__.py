"""The Python API behind the names of `import atoll`: what the commands do, as objects for a notebook."""
