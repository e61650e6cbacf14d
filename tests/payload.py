"""What a malicious file holds, for the tests that nothing runs it."""

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

WITH_SWITCH = {
    'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'
}  # by which torch.load runs what a file holds, unless told not to


class Payload:
    """Leaves a file `marker` when it is unpickled by a reader that runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def by_torch(path: Path, marker: Path) -> Path:
    """torch's zip file."""
    torch.save(dict(state_dict={}, payload=Payload(marker)), path)
    return path


def by_old_torch(path: Path, marker: Path) -> Path:
    """torch's format before 1.6: pickles one after another."""
    torch.save(dict(state_dict={}, payload=Payload(marker)), path, _use_new_zipfile_serialization=False)
    return path


def by_pickle(path: Path, marker: Path) -> Path:
    """A plain pickle, as mmengine's .pkl and Paddle's .pdparams are."""
    path.write_bytes(pickle.dumps(dict(state_dict={}, payload=Payload(marker))))
    return path


def by_numpy(path: Path, marker: Path) -> Path:
    """An array of objects, which NumPy pickles."""
    array = np.empty(1, dtype=object)
    array[0] = Payload(marker)
    with open(path, 'wb') as file:
        np.savez(file, **{'cls': array})
    return path


def by_tar(path: Path, marker: Path) -> Path:
    """torch's format of 2016: a tar of pickles."""
    inside = by_pickle(path.with_name(f'{path.name}.pickle'), marker)
    with tarfile.open(path, 'w') as tar:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            tar.add(inside, name)
    return path


def by_script(path: Path, marker: Path) -> Path:
    """What looks like a TorchScript program, which torch.load hands to torch.jit, around a pickle."""
    with zipfile.ZipFile(by_torch(path, marker), 'a') as archive:
        archive.writestr(f'{path.stem}/constants.pkl', pickle.dumps(Payload(marker)))
    return path


FORMS = (by_torch, by_old_torch, by_pickle, by_numpy, by_tar, by_script)
SUFFIXES = ('.pth', '.pt', '.pkl', '.bin', '.pdparams', '.npz', '.safetensors', '')
