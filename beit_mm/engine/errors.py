"""What engine/ raises for a user's mistake."""


class ConfigError(ValueError):
    """A mistake in a config or an override; the message says which and what to write instead."""
