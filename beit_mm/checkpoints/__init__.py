"""Weight files: reading, writing, converting between projects, and fitting to a model."""

from .convert import convert_state_dict

__all__ = ['convert_state_dict']
