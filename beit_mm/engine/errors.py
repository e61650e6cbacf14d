"""What engine/ raises for a user's mistake."""


class ConfigError(ValueError):
    """A mistake in a config or an override; the message says which and what to write instead."""


class DivergenceError(ValueError):
    """A training that has come to an end by itself: losses, gradients or weights are not finite, again and again."""
