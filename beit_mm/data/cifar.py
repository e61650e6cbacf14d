"""CIFAR from its Python pickles, read without running what is in them, downloaded when asked for."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, is_main_process

from ..checkpoints.arrays import ArraysOnly
from ..registry import DATASETS


def read_cifar_pickle(path: Path, md5: str | None, key: str) -> dict:
    """One of CIFAR's pickles, which must hold `key`. Raises an error naming the file when it is not as published."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: not found. Unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz into data_root, set '
            f'download=True, or write the embedded stand-in: python tools/prepare_data.py export DIR --format cifar'
        )
    content = path.read_bytes()
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise ValueError(f'{path}: md5 is {found}, expected {md5}; the file is damaged or another one')
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding='latin1').load()
    except Exception as error:  # damaged bytes make pickle raise IndexError, struct.error, KeyError, ...
        raise ValueError(f'{path}: not a CIFAR file ({error})') from error
    if not isinstance(batch, dict) or key not in batch:
        raise ValueError(f'{path}: not a CIFAR file (no key {key!r})')
    return batch


def download_archive(url: str, archive: Path, md5: str) -> None:
    """Fetch `url` to `archive`, unless it is there, and check it. Raises ConnectionError or ValueError, with a way out.

    An archive with another md5 stays where it is; nothing of it is unpacked.
    """
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(archive))  # writes under another name until it is complete
        except OSError as error:
            raise ConnectionError(
                f'{url}: not downloaded ({error}). Fetch it on a machine with a network and put it at {archive}'
            ) from error
    with open(archive, 'rb') as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise ValueError(f'{archive}: md5 is {found}, expected {md5}; remove it and download it again')


def unpack(archive: Path, folder: Path, names: list[str]) -> None:
    """Write the files `<folder's name>/<name>` of a .tar.gz into `folder`, and nothing else that is in it.

    Raises ValueError for a damaged archive and for one that has not all of them as plain files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, 'r:gz') as tar:
            for name in names:
                member = tar.getmember(f'{folder.name}/{name}')
                if not member.isfile():
                    raise KeyError(f'{member.name} is no plain file')
                (folder / f'{name}.part').write_bytes(tar.extractfile(member).read())
                (folder / f'{name}.part').replace(folder / name)
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f'{archive}: cannot be unpacked into {folder}: {error}') from error


class _CIFAR(BaseDataset):
    """CIFAR from its Python pickles: img (32, 32, 3) uint8 RGB and gt_label.

    md5s: {file name: md5}; the published ones by default. A mapping of your own serves files of the same
    format with other pixels; None there skips the check of that file.
    download: fetch the archive into data_root where files are missing. Without it no network is used.
    """

    URL: str
    ARCHIVE_MD5: str

    FOLDER: str
    FILES: dict[str, list[str]]
    MD5S: dict[str, str]
    LABELS: str
    META: tuple[str, str]  # file, key

    def __init__(
        self,
        data_root: str,
        pipeline: list,
        split: str = 'train',
        md5s: dict | None = None,
        download: bool = False,
        **kwargs,
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f'{type(self).__name__}: split={split!r} is neither train nor test')
        self.split = split
        self.md5s = self.MD5S if md5s is None else md5s
        folder = Path(data_root) / self.FOLDER
        meta_file, key = self.META
        if download:
            self.download(folder)
        classes = read_cifar_pickle(folder / meta_file, self.md5s.get(meta_file), key)[key]
        super().__init__(
            data_root=data_root,
            pipeline=pipeline,
            metainfo=dict(classes=tuple(classes)),
            serialize_data=False,
            **kwargs,
        )

    @classmethod
    def download(cls, folder: Path) -> None:
        """Download and unpack what is missing of `folder`; the first process does it and the others wait."""
        names = [*cls.FILES['train'], *cls.FILES['test'], cls.META[0]]
        if is_main_process() and not all((folder / name).is_file() for name in names):
            archive = folder.parent / cls.URL.rsplit('/', 1)[-1]
            download_archive(cls.URL, archive, cls.ARCHIVE_MD5)
            unpack(archive, folder, names)
        barrier()

    def load_data_list(self) -> list[dict]:
        samples = []
        for name in self.FILES[self.split]:
            path = Path(self.data_root) / self.FOLDER / name
            batch = read_cifar_pickle(path, self.md5s.get(name), 'data')
            images = np.asarray(batch['data'], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for i, (image, label) in enumerate(zip(images, batch[self.LABELS], strict=True)):
                samples.append(dict(img=image, gt_label=int(label), img_path=f'{path}#{i}'))
        return samples

    def get_data_info(self, idx: int) -> dict:
        info = super().get_data_info(idx)
        return dict(info, img=info['img'].copy(), img_shape=(32, 32), ori_shape=(32, 32))


@DATASETS.register_module()
class CIFAR10(_CIFAR):
    """CIFAR-10: data_root/cifar-10-batches-py/."""

    URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
    ARCHIVE_MD5 = 'c58f30108f718f92721af3b95e74349a'
    FOLDER = 'cifar-10-batches-py'
    FILES = dict(train=[f'data_batch_{i}' for i in range(1, 6)], test=['test_batch'])
    MD5S = {
        'data_batch_1': 'c99cafc152244af753f735de768cd75f',
        'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
        'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
        'data_batch_4': '634d18415352ddfa80567beed471001a',
        'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
        'test_batch': '40351d587109b95175f43aff81a1287e',
        'batches.meta': '5ff9c542aee3614f3951f8cda6e48888',
    }
    LABELS = 'labels'
    META = ('batches.meta', 'label_names')


@DATASETS.register_module()
class CIFAR100(_CIFAR):
    """CIFAR-100 with its 100 fine labels: data_root/cifar-100-python/."""

    URL = 'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz'
    ARCHIVE_MD5 = 'eb9058c3a382ffc7106e4002c42a8d85'
    FOLDER = 'cifar-100-python'
    FILES = dict(train=['train'], test=['test'])
    MD5S = {
        'train': '16019d7e3df5f24257cddd939b257f8d',
        'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc',
        'meta': '7973b15100ade9c7d40fb424638fde48',
    }
    LABELS = 'fine_labels'
    META = ('meta', 'fine_label_names')
