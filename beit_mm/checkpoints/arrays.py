"""NumPy arrays out of pickles, without NumPy's own way of making them: that believes what a file says about memory.

A forged dtype (object flags taken away by its `__setstate__`) makes `ndarray.__setstate__` read pointers from the
file. Here a dtype is a name that is looked at, and an array is numbers of such a dtype.
"""

import pickle
import re

import numpy as np

PLAIN = re.compile(r'[biufc]\d{1,2}')  # booleans, integers, floats, complex: nothing that points anywhere
ORDERS = ('<', '>', '|', '=')


class Kind:
    """What stands for `numpy.dtype` while a file is read."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f'global numpy.dtype of {name!r} is no plain number')
        self.name, self.order = name, '|'

    def __setstate__(self, state) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ORDERS or any(state[2:5]):
            raise pickle.UnpicklingError('global numpy.dtype with a state of its own')
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order.replace('|', '=') + self.name)


def _numbers(kind, data, count: int | None = None) -> np.ndarray:
    """`data`, bytes or text as Python 2 wrote it, as numbers of a kind; one dimension."""
    data = data.encode('latin1') if isinstance(data, str) else data
    if not isinstance(kind, Kind) or not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError('global numpy.ndarray that does not hold plain numbers')
    found = np.frombuffer(bytes(data), kind.dtype)
    if count is not None and len(found) != count:
        raise pickle.UnpicklingError(f'an array of {count} numbers comes with {len(found)}')
    return found


class Array(np.ndarray):
    """What stands for `numpy.ndarray` while a file is read; afterwards it is one."""

    def __new__(cls, *_):
        raise pickle.UnpicklingError('global numpy.ndarray called')

    def __setstate__(self, state) -> None:
        _, shape, kind, fortran, data = state
        flat = _numbers(kind, data, int(np.prod(shape, dtype=np.int64)))
        super().__setstate__((1, tuple(shape), flat.dtype, bool(fortran), flat.tobytes()))


def reconstruct(owner: type, shape, code) -> Array:
    """For numpy.core.multiarray._reconstruct: an empty array, which its state fills."""
    if owner is not Array:
        raise pickle.UnpicklingError('global numpy._reconstruct of something else than an array')
    return np.ndarray.__new__(Array, (0,), 'b')


def scalar(kind: Kind, data) -> np.generic:
    """For numpy.core.multiarray.scalar."""
    return _numbers(kind, data, 1)[0]


def from_buffer(data, kind: Kind, shape, order: str) -> np.ndarray:
    """For numpy.core.numeric._frombuffer (pickle protocol 5)."""
    return _numbers(kind, data).reshape(shape, order='F' if order == 'F' else 'C')


STAND_INS = {  # name in a file: what it means here
    'numpy.ndarray': Array,
    'numpy.dtype': Kind,
    **{
        f'numpy.{core}.{name}': made
        for core in ('core', '_core')
        for name, made in (
            ('multiarray._reconstruct', reconstruct),
            ('multiarray.scalar', scalar),
            ('numeric._frombuffer', from_buffer),
        )
    },
}


class ArraysOnly(pickle._Unpickler):
    """Unpickles containers, numbers, bytes and arrays of numbers, and refuses every other name.

    The one in Python: the one in C makes a table as long as a file says (LONG_BINPUT), 34 GB for six bytes.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        """Python's own takes as much memory as a file says before it reads."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str):
        if (module, name) == ('_codecs', 'encode'):
            return super().find_class(module, name)
        if f'{module}.{name}' not in STAND_INS:
            raise pickle.UnpicklingError(f'{module}.{name} is not an array')
        return STAND_INS[f'{module}.{name}']
