"""data/shard_writer.py: the same bytes whatever happens on the way; shards of others; readers of others read ours."""

import gzip
import hashlib
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image
from processes import call
from shards import contents, packed, write_images
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from beit_mm.data import shard_parts, shard_writer
from beit_mm.data.images import ImageList
from beit_mm.data.shard_index import ShardError, ShardIndex
from beit_mm.data.shard_scan import MOST_NAMES, scan
from beit_mm.data.shard_writer import index_shards, member_names
from beit_mm.data.shards import TarShards
from beit_mm.data.verify import verify
from beit_mm.engine.locking import acquire

IMAGES, PER_SHARD = 10, 4


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('source'), count=IMAGES)


@pytest.fixture(scope='module')
def reference(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('reference') / 's'
    assert packed(source, folder, PER_SHARD).startswith(f'{IMAGES} images in 3 shards below {folder}; ')
    return folder


def test_the_same_images_give_the_same_bytes(source, reference, tmp_path):
    packed(source, tmp_path / 'a', PER_SHARD, jobs=3)
    assert contents(tmp_path / 'a') == contents(reference)
    assert sorted(name for name in contents(reference) if not name.startswith('index/')) == [
        f't-{k:06d}.tar' for k in range(3)
    ]
    packed(source, tmp_path / 'b', PER_SHARD, seed=1)
    assert contents(tmp_path / 'b')['t-000000.tar'] != contents(reference)['t-000000.tar']
    again = packed(source, tmp_path / 'a', PER_SHARD)
    assert again == f'{tmp_path}/a: is complete; nothing was written'


def test_files_are_copied_as_they_are(source, reference):
    names = []
    for k in range(3):
        with tarfile.open(reference / f't-{k:06d}.tar') as tar:
            members = tar.getmembers()
            for image, cls in zip(members[::2], members[1::2]):
                names.append(image.name)
                assert cls.name == image.name.replace('.png', '.cls')
                assert (image.mtime, image.uid, image.gid, image.mode) == (0, 0, 0, 0o644)
                assert tar.extractfile(image).read() == (source / 'train' / image.name).read_bytes()
                assert tar.extractfile(cls).read() == str(int(image.name[1:9])).encode()
    assert len(set(names)) == IMAGES
    index = ShardIndex(reference / 'index')
    assert [shard.sha256 for shard in index.shards] == [
        hashlib.sha256((reference / f't-{k:06d}.tar').read_bytes()).hexdigest() for k in range(3)
    ]


def test_shards_are_of_the_size_that_was_asked_for(source, tmp_path):
    packed(source, tmp_path / 'a', per_shard=None, bytes=8000)
    sizes = [(tmp_path / 'a' / name).stat().st_size for name in sorted(os.listdir(tmp_path / 'a')) if '.tar' in name]
    assert len(sizes) == 3
    assert max(sizes) <= 8000 + 10240  # a tar is filled up to blocks of 10,240


def test_names_follow_webdatasets_rules():
    taken = set()
    assert member_names('n01/a.b.JPEG', taken) == ('n01/a_b.jpg', 'n01/a_b.cls')
    assert member_names('n01/a_b.png', taken) == ('n01/a_b~2.png', 'n01/a_b~2.cls')
    assert member_names('../x/y.jpeg', taken) == ('x/y.jpg', 'x/y.cls')
    assert member_names('/abs/ü.TIFF', taken) == ('abs/ü.tiff', 'abs/ü.cls')


def test_long_and_foreign_names(tmp_path):
    image = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(image, 'png')
    names = ['ö' * 60 + '.png', 'x' * 150 + '.png', 'y' * 90 + '/' + 'z' * 90 + '.png']
    for name in names:
        (tmp_path / 'src/train' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'src/train' / name).write_bytes(image.getvalue())
    packed(tmp_path / 'src', tmp_path / 's', with_label=False)
    data = TarShards(str(tmp_path / 's'), with_label=False, pipeline=[dict(type='beit_mm.LoadImage')])
    assert sorted(data[i]['img_path'].partition('/s/')[2].partition('/')[2] for i in range(3)) == sorted(names)


def killed_at(stage: int, source, folder) -> None:
    """write_shards in a session of its own, all of which is killed before the `stage`-th thing that is done."""
    os.setsid()
    count = multiprocessing.Value('i', 0)  # over all processes

    def counted(function):
        def call(*args, **kwargs):
            with count.get_lock():
                count.value += 1
                if count.value == stage:
                    os.killpg(0, signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    shard_writer._content = counted(shard_writer._content)
    shard_writer.save_part = counted(shard_parts.save_part)
    os.replace = counted(os.replace)
    os.fsync = counted(os.fsync)
    packed(source, folder, PER_SHARD)
    os._exit(7)  # there is no such stage


def check_killed(source, reference, folder, stage) -> bool:
    """Whether it was killed; then what is there is whole, is kept, and the same call makes the rest."""
    process = multiprocessing.get_context('fork').Process(target=killed_at, args=(stage, source, folder))
    process.start()
    process.join(60)
    if process.exitcode == 7:
        return False
    assert process.exitcode == -signal.SIGKILL
    whole = contents(reference)
    there = {name: content for name, content in contents(folder).items() if not name.endswith('.tmp')}
    assert all(content == whole[name] for name, content in there.items() if name.endswith(('.tar', '.npy')))
    with pytest.raises(ShardError):
        TarShards(str(folder)) if 'index/shards.json' not in there else TarShards('/nowhere')
    finished = {name for name in there if (folder / f'index/parts/{name}.npz').is_file()}
    before = {name: (folder / name).stat().st_ino for name in finished}
    packed(source, folder, PER_SHARD)
    assert contents(folder) == whole
    assert {name: (folder / name).stat().st_ino for name in finished} == before
    return True


@pytest.mark.parametrize('stage', [5, 16])
def test_killed(source, reference, tmp_path, stage):
    assert check_killed(source, reference, tmp_path / 's', stage)


@pytest.mark.slow
def test_killed_anywhere(source, reference, tmp_path):
    stages = itertools.takewhile(
        lambda stage: check_killed(source, reference, tmp_path / str(stage), stage), itertools.count(1, 2)
    )
    assert 2 * len(list(stages)) >= 10 + 3 * 5 + 6 * 2


def test_nothing_is_overwritten(source, tmp_path):
    folder = tmp_path / 's'
    folder.mkdir()
    (folder / 'mine.txt').write_text('x')
    with pytest.raises(ShardError, match=r's: is not empty \(mine\.txt\): give a new folder'):
        packed(source, folder)
    assert [path.name for path in folder.iterdir()] == ['mine.txt']  # a folder `index` would be a class of images
    (folder / 'mine.txt').rename(folder / 't-000000.tar')
    with pytest.raises(ShardError, match=r's: is not empty \(t-000000\.tar\): give a new folder'):
        packed(source, folder)
    assert (folder / 't-000000.tar').read_text() == 'x'
    packed(source, tmp_path / 'a')
    for change in (dict(per_shard=3), dict(seed=1), dict(order='list'), dict(with_label=False)):
        with pytest.raises(ShardError, match=r'a: holds shards of other images or settings'):
            packed(source, tmp_path / 'a', **change)
    assert verify(tmp_path / 'a', 'shards').problems == []


def test_two_writers(source, tmp_path):
    lock = acquire(tmp_path / 's/index/lock')
    lock.say(123)
    with pytest.raises(ShardError, match=r's: is being written by pid 123 on '):
        packed(source, tmp_path / 's')
    lock.release()


def test_files_that_change_or_cannot_be_read(tmp_path, monkeypatch):
    root = write_images(tmp_path / 'src', count=4, classes=2)
    bad = root / 'train/n00000001/im0001.png'
    bad.write_bytes(b'broken')
    with pytest.raises(ShardError, match=r'im0001\.png: not a readable image .* leave such images out: --check skip'):
        packed(root, tmp_path / 'stop', check='stop')
    packed(root, tmp_path / 'skip', check='skip')
    assert (tmp_path / 'skip/index/left_out.txt').read_text() == f'{bad}\tnot a readable image (of no known format)\n'
    assert len(TarShards(str(tmp_path / 'skip'))) == 3
    packed(root, tmp_path / 'no')
    assert len(TarShards(str(tmp_path / 'no'))) == 4
    read = shard_writer._content
    monkeypatch.setattr(shard_writer, '_content', lambda path, size: read(path, size - 1))
    with pytest.raises(ShardError, match=r'png: had \d+ bytes when the shards were planned, and now it has others'):
        packed(root, tmp_path / 'changed')


def foreign(folder, name, members):
    """A tar of (name, content) as somebody else writes it: GNU format, times, owners, folders."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, 'w', format=tarfile.GNU_FORMAT) as tar:
        directory = tarfile.TarInfo('./some')
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for member, content in members:
            header = tarfile.TarInfo(member)
            header.size, header.mtime, header.uname = len(content), 1.7e9, 'me'
            tar.addfile(header, io.BytesIO(content))
    return (folder / name).read_bytes()


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(file, 'png')
    return file.getvalue()


def values(folder, **options):
    """(first pixel, label) of all images."""
    data = TarShards(str(folder), pipeline=[dict(type='beit_mm.LoadImage')], **options)
    return [(int(data[i]['img'][0, 0, 0]), data[i].get('gt_label')) for i in range(len(data))]


def test_shards_of_webdataset(tmp_path):
    for k in range(2):
        members = []
        for i in range(3):
            members += [(f'{k}{i}.cls', b'%d\n' % (i + k)), (f'{k}{i}.json', b'{}'), (f'{k}{i}.png', png(10 * k + i))]
        members += [(f'{k}9.seg.png', png(99)), (f'{k}9.png', png(10 * k + 9)), (f'{k}9.cls', b'0')]
        foreign(tmp_path / 'w', f'a-{k}.tar', members)
    assert index_shards(tmp_path / 'w') == f'8 images in 2 shards below {tmp_path}/w; labels: of their .cls members'
    assert values(tmp_path / 'w') == [(0, 0), (1, 1), (2, 2), (9, 0), (10, 1), (11, 2), (12, 3), (19, 0)]
    assert verify(tmp_path / 'w', 'shards').problems == []
    with pytest.raises(ShardError, match=r'w/index: is there already; to make it anew, remove it'):
        index_shards(tmp_path / 'w')


def test_shards_of_folders_and_class_tars(tmp_path):
    foreign(tmp_path / 'f', 'x.tar', [('./dog/my.a.png', png(1)), ('./dog/my.b.png', png(2)), ('./ape/c.JPG', png(3))])
    assert index_shards(tmp_path / 'f').endswith('labels: their folders')
    assert values(tmp_path / 'f') == [(1, 1), (2, 1), (3, 0)]
    assert TarShards(str(tmp_path / 'f')).metainfo['classes'] == ('ape', 'dog')
    for name, value in (('n00000002', 2), ('n00000001', 1)):
        foreign(tmp_path / 'c', f'{name}.tar', [(f'{name}_{value}.JPEG', png(value))])
    assert index_shards(tmp_path / 'c').endswith('labels: their tars')
    assert values(tmp_path / 'c') == [(1, 0), (2, 1)]
    inner = [(f'{name}.tar', (tmp_path / 'c' / f'{name}.tar').read_bytes()) for name in ('n00000002', 'n00000001')]
    foreign(tmp_path / 'n', 'whole.tar', inner)
    assert index_shards(tmp_path / 'n').endswith('labels: their folders')
    assert values(tmp_path / 'n') == [(2, 1), (1, 0)]
    assert TarShards(str(tmp_path / 'n')).get_data_info(0)['img_path'].endswith('/n00000002.tar/n00000002_2.JPEG')
    assert verify(tmp_path / 'n', 'shards').problems == []
    foreign(tmp_path / 'u', 'u.tar', [('a.png', png(1))])
    assert index_shards(tmp_path / 'u').endswith('labels: none')


def test_tars_that_cannot_be_indexed(tmp_path):
    whole = foreign(tmp_path / 's', 'a.tar', [(f'{i}.png', png(i)) for i in range(4)])
    path = tmp_path / 's/a.tar'

    def refused(content, said):
        path.write_bytes(content)
        with pytest.raises(ShardError, match=said):
            scan(path)

    refused(gzip.compress(whole), r'a\.tar: is compressed; .*: gunzip it')
    refused(b'no tar at all' * 100, r'a\.tar: is no tar, or is damaged')
    refused(b'', r'a\.tar: is no tar, or is damaged')
    refused(whole[:1100], r'a\.tar: is no tar, or is damaged \(unexpected end of data\)')
    refused(whole[: 512 + 2 * 1024], r'a\.tar: is damaged or cut off: at 2560 it ends')
    refused(whole[:1536] + b'\xff' * 20 + whole[1556:], r'a\.tar: is damaged or cut off: at 1536 is no header')
    foreign(tmp_path / 's', 'a.tar', [('a.txt', b'x')])
    refused(path.read_bytes(), r'a\.tar: no image in it')
    foreign(tmp_path / 's', 'a.tar', [('a.png', png(1)), ('a.cls', b'-1')])
    refused(path.read_bytes(), r"a\.tar: a\.cls holds b'-1', and a label is a number from 0")
    header = tarfile.TarInfo('././@LongLink')
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, MOST_NAMES + 1
    refused(header.tobuf(tarfile.GNU_FORMAT) + bytes(2 * MOST_NAMES), r'a\.tar: at 0 is a name of 65537 bytes')
    foreign(tmp_path / 's', 'a.tar', [('a.png', png(1))])
    with pytest.raises(ShardError, match=r'a\.tar: an image has no \.cls, so that it has no label: --labels none'):
        index_shards(tmp_path / 's', labels='cls')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ShardError, match=r'empty: no \.tar in it'):
        index_shards(tmp_path / 'empty')


def test_links_and_paths_in_tars_lead_nowhere(tmp_path):
    """Nothing is unpacked: a member is bytes in the tar, whatever it is called."""
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo('link.png')
            link.type, link.linkname = kind, '/etc/passwd'
            tar.addfile(link)
        header = tarfile.TarInfo('../../../x/evil.png')
        header.size = len(png(5))
        tar.addfile(header, io.BytesIO(png(5)))
    index_shards(tmp_path)
    assert values(tmp_path) == [(5, 0)]


@pytest.mark.slow
def test_by_the_door(source, reference, tmp_path):
    args = ['--root', source, '--split', 'train', '--samples', PER_SHARD, '--name', 't']
    code, out, err = call('tools/prepare_data.py', 'shards', tmp_path / 's', *args)
    assert (code, err) == (0, '')
    assert out.startswith(f'10 images in 3 shards below {tmp_path}/s; ')
    assert contents(tmp_path / 's') == contents(reference)
    code, out, _ = call('tools/prepare_data.py', 'verify', tmp_path / 's', '--format', 'shards')
    assert (code, out.splitlines()[-1]) == (0, 'no problem found')
    (tmp_path / 's/t-000001.tar').unlink()
    code, out, _ = call('tools/prepare_data.py', 'verify', tmp_path / 's', '--format', 'shards')
    assert code == 1
    assert 'PROBLEM  t-000001.tar: is missing' in out
    shutil.rmtree(tmp_path / 's/index')
    code, out, _ = call('tools/prepare_data.py', 'shards', tmp_path / 's', '--index')
    assert (code, out) == (
        0,
        f'{out.split()[0]} images in 2 shards below {tmp_path}/s; labels: of their .cls members\n',
    )
    code, _, err = call('tools/prepare_data.py', 'shards', tmp_path / 'x')
    assert code == 1
    assert 'shards: say where the images are: --root, and --split' in err


def test_webdataset_and_timm_read_ours(source, reference):
    """The same bytes and labels through the readers of others, where they are installed."""
    files = ImageList(str(source), split='train')
    expected = {
        os.path.basename(i['img_path']): (open(i['img_path'], 'rb').read(), i['gt_label'])  # noqa: SIM115
        for i in map(files.get_data_info, range(IMAGES))
    }
    reader = ReaderImageInTar(str(reference))
    got = {reader.filename(i, basename=True): (reader[i][0].read(), reader[i][1]) for i in range(len(reader))}
    assert got == expected
    wds = pytest.importorskip('webdataset')
    urls = [str(reference / f't-{k:06d}.tar') for k in range(3)]
    got = {
        f'{os.path.basename(s["__key__"])}.png': (s['png'], int(s['cls']))
        for s in wds.WebDataset(urls, shardshuffle=False)
    }
    assert got == expected
