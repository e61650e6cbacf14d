"""Weight files: reading, writing, and fitting them to a model."""
