"""What checkpoints/ raises."""


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message says which, why, and what to do."""
