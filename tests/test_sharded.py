"""checkpoints/sharded.py: what several ranks write is what one would have, read whole or in parts by any number."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from ranks import forked
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from beit_mm.checkpoints import chunks
from beit_mm.checkpoints.load import CheckpointError, read, sha256
from beit_mm.checkpoints.sharded import check_digests, files_of, like_parameters, on_all_ranks, read_shards
from beit_mm.checkpoints.sharded import write_sharded as write

PLACES = {  # of what is sharded; the rest is whole on all ranks
    'patch.weight': Shard(0), 'patch.bias': Shard(0), 'one': Shard(0), 'columns': Shard(1), 'table': Replicate(),
    'half': Shard(0), 'mask': Shard(0), 'ids': Shard(0), 'nothing': Shard(0), 'scale': Replicate(), 'wide': Shard(0),
}  # fmt: skip


def training(step: int = 3) -> dict:
    """A training checkpoint as one process has it: sizes that 2, 3 and 4 ranks do not divide, all types."""
    g = torch.Generator().manual_seed(step)
    weights = {
        'patch.weight': torch.randn(7, 3, generator=g), 'patch.bias': torch.randn(7, generator=g),
        'one': torch.randn(1, 5, generator=g), 'columns': torch.randn(2, 9, generator=g),
        'table': torch.randn(4, 2, generator=g), 'half': torch.randn(5, 2, generator=g).bfloat16(),
        'mask': torch.tensor([True, False, True]), 'ids': torch.arange(6) + 2**40, 'nothing': torch.zeros(0, 4),
        'scale': torch.tensor(0.5), 'wide': torch.randn(4, 3, generator=g).double(),
        'norm.num_batches_tracked': torch.tensor(step), 'buffer': torch.randn(3, generator=g),
    }  # fmt: skip
    state = {
        i: dict(step=torch.tensor(float(step)), exp_avg=weights[name] * 2, exp_avg_sq=weights[name] ** 2)
        for i, name in enumerate(('patch.weight', 'patch.bias', 'columns'))
    }
    return dict(
        meta=dict(iter=step, epoch=1, seed=0, beit_mm=dict(run='a', stages=[])),
        state_dict=weights,
        ema_state_dict={'steps': torch.tensor(step), **{f'module.{k}': v.clone() for k, v in weights.items()}},
        optimizer=dict(state=state, param_groups=[dict(lr=0.1, betas=(0.9, 0.99), params=[0, 1, 2])]),
        param_schedulers=[dict(_global_step=step)],
        message_hub=dict(log_scalars=dict(loss=dict(values=torch.arange(3.0), counts=torch.ones(3)))),
    )


def sharded(value, mesh, name: str = ''):
    """The same with DTensors, as ranks have it."""
    if isinstance(value, dict):
        return {
            key: _state(one, mesh) if key == 'state' else sharded(one, mesh, str(key)) for key, one in value.items()
        }
    if isinstance(value, torch.Tensor) and (place := PLACES.get(name.removeprefix('module.'))):
        return distribute_tensor(value, mesh, [place])
    return value


def _state(state: dict, mesh) -> dict:
    return {
        i: {key: distribute_tensor(one, mesh, [Shard(0)]) if one.ndim else one for key, one in own.items()}
        for i, own in state.items()
    }


def written_by(count: int, folder: Path, step: int = 3, mark: str = 'aa') -> Path:
    folder.mkdir(exist_ok=True)

    def do(rank: int) -> None:
        write(sharded(training(step), init_device_mesh('cpu', (count,))), folder, mark)

    assert forked(count, do) == [None] * count
    return folder


@pytest.fixture(scope='module', params=[1, 2, 4])
def folder(request, tmp_path_factory) -> Path:
    """Written by 1, 2 and 4 ranks."""
    return written_by(request.param, tmp_path_factory.mktemp('written') / 'iter_3.dcp')


@pytest.fixture
def of_two(tmp_path_factory, tmp_path) -> Path:
    """A copy of one that two ranks have written, to be damaged."""
    made = tmp_path_factory.getbasetemp() / 'two.dcp'
    if not made.exists():
        written_by(2, made)
    return Path(shutil.copytree(made, tmp_path / 'iter_3.dcp'))


def same(one, other) -> bool:
    """In every bit and type."""
    if isinstance(one, torch.Tensor):
        bits = one.dtype is other.dtype and type(one) is type(other) and one.shape == other.shape
        return (
            bits and torch.equal(one.to_local(), other.to_local())
            if isinstance(one, DTensor)
            else bits and (torch.equal(one, other))
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_read_whole_it_is_what_one_process_has(folder):
    content = read(folder)
    assert same(content, training())
    assert not same(content, training(4))
    assert not any(name.endswith('.metadata') for name in os.listdir(folder))


def test_read_lazily_it_has_names_and_shapes(folder):
    content, expected = read(folder, lazy=True), training()
    for part in ('meta', 'message_hub', 'param_schedulers'):
        assert same(content[part], expected[part])
    found = {key: (value.shape, value.dtype, value.is_meta) for key, value in content['state_dict'].items()}
    assert found == {key: (value.shape, value.dtype, key in PLACES) for key, value in expected['state_dict'].items()}
    assert content['optimizer']['state'][2]['exp_avg'].is_meta
    assert content['optimizer']['state'][2]['step'] == 3


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_read_by_any_number_of_ranks(folder, count, monkeypatch):
    """As many bytes as the parts have, each once."""
    taken = []
    original = chunks.Reader._process_read_request

    def counted(self, file, request, planner) -> None:
        taken.append(request.lengths.numel() * planner.resolve_tensor(request).element_size())
        original(self, file, request, planner)

    monkeypatch.setattr(chunks.Reader, '_process_read_request', counted)

    def do(rank: int) -> tuple[bool, int, int]:
        expected = sharded(training(), init_device_mesh('cpu', (count,)))
        like = {key: value for key, value in expected.items() if key != 'optimizer'}
        parameters = [expected['state_dict'][name] for name in ('patch.weight', 'patch.bias', 'columns')]
        rows = {id(p): distribute_tensor(p.full_tensor(), p.device_mesh, [Shard(0)]) for p in parameters}
        parameters = [rows[id(p)] for p in parameters]
        like['optimizer'] = like_parameters(read(folder, lazy=True)['optimizer'], parameters)
        before = copy.deepcopy(like)
        taken.clear()
        content = read_shards(folder, like)
        parts = [value for value in _tensors(content) if isinstance(value, DTensor)]
        return same(content, expected), same(like, before), sum(taken), sum(p.to_local().nbytes for p in parts)

    for equal, untouched, read_bytes, part_bytes in forked(count, do):
        assert equal
        assert untouched
        assert read_bytes == part_bytes


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)


def test_what_several_ranks_have_is_written_once(tmp_path):
    """Two groups of two, as hybrid sharding has them: half of the tensors by either."""
    weights = {f'w{i}': torch.randn(6, 50) for i in range(20)}

    def do(rank: int) -> None:
        mesh = init_device_mesh('cpu', (2, 2))
        parts = {key: distribute_tensor(value, mesh, [Replicate(), Shard(0)]) for key, value in weights.items()}
        write(dict(state_dict=parts), tmp_path, 'a')
        assert same(read_shards(tmp_path, dict(state_dict=parts)), dict(state_dict=parts))

    torch.manual_seed(0)
    assert forked(4, do) == [None] * 4
    assert same(read(tmp_path), dict(state_dict=weights))
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob('shard-*'))]
    assert len(sizes) == 4
    assert sum(sizes) < 20 * 6 * 50 * 4 + 4 * 3000
    assert min(sizes) > 2000


def test_nothing_is_sharded(tmp_path):
    content = training()
    assert forked(2, lambda rank: write(content, tmp_path, 'a') and None) == [None] * 2
    assert sorted(os.listdir(tmp_path)) == ['files.json', 'rest-a.pth']
    assert same(read(tmp_path), content)


def test_ranks_that_differ_are_refused(tmp_path):
    def do(rank: int) -> None:
        weight = distribute_tensor(torch.ones(4), init_device_mesh('cpu', (2,)), [Shard(0)])
        write({'a': weight, 'b': weight} if rank else {'a': weight}, tmp_path, 'x')

    assert [str(error) for error in forked(2, do)] == ['the ranks have different tensors to save'] * 2


def test_another_shape_is_refused(of_two):
    def do(rank: int) -> None:
        weight = distribute_tensor(torch.zeros(8, 3), init_device_mesh('cpu', (1,)), [Shard(0)])
        read_shards(of_two, dict(state_dict={'patch.weight': weight}))

    (error,) = forked(1, do)
    assert str(error) == f'{of_two}: state_dict.patch.weight is (7, 3), and (8, 3) is asked for'


def test_fsdp_with_its_optimizer(tmp_path):
    """Two ranks train and write, three go on: every tensor is the one that two would have had."""

    def built(count: int):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 5))
        fully_shard(model, mesh=init_device_mesh('cpu', (count,)))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer) -> None:
        optimizer.zero_grad()
        model(torch.arange(6.0).reshape(2, 3)).square().mean().backward()
        optimizer.step()

    def gathered(value):
        if isinstance(value, dict):
            return {key: gathered(one) for key, one in value.items()}
        return value.full_tensor() if isinstance(value, DTensor) else value

    def first(rank: int) -> dict:
        model, optimizer = built(2)
        step(model, optimizer)
        content = dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict())
        (tmp_path / 'w').mkdir(exist_ok=True)
        on_all_ranks(lambda: None)
        write(content, tmp_path / 'w', 'x')
        return gathered(content)

    def second(rank: int) -> dict:
        model, optimizer = built(3)
        saved = read(tmp_path / 'w', lazy=True)['optimizer']
        like = dict(state_dict=model.state_dict(), optimizer=like_parameters(saved, list(model.parameters())))
        content = read_shards(tmp_path / 'w', like)
        model.load_state_dict(content['state_dict'])
        optimizer.load_state_dict(content['optimizer'])
        return gathered(dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict()))

    before, _ = forked(2, first)
    assert same(read(tmp_path / 'w'), before)
    for after in forked(3, second):
        assert same(after, before)


# Damage


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def names(folder: Path) -> list[str]:
    """The shards of two ranks, and the rest."""
    return [
        'shard-00001-aa.safetensors', 'shard-00002-aa.safetensors',
        'rest-aa.pth'
    ]  # fmt: skip


def test_what_lies_there(of_two):
    files = files_of(of_two)
    assert sorted(files) == sorted(names(of_two)) == sorted(set(os.listdir(of_two)) - {'files.json'})
    for name, written in files.items():
        assert written == (sha256(of_two / name), (of_two / name).stat().st_size)
    (of_two / 'notes.txt').write_text('of somebody')
    (of_two / 'shard-00003-b.safetensors').write_bytes(b'of a writing that was killed')
    assert same(read(of_two), training())
    check_digests(of_two, [sha256(of_two)])


@pytest.mark.parametrize('name', names(Path()))
def test_every_bit_counts(of_two, name):
    path = of_two / name
    for at in range(0, path.stat().st_size, 97):
        _flip(path, at)
        with pytest.raises(CheckpointError) as error:
            check_digests(of_two)
        assert str(error.value) == f'{of_two}: damaged: {name} is not what was written (its sha256 differs)'
        _flip(path, at)
    check_digests(of_two)


def test_every_bit_of_the_listing_counts(of_two):
    path, digest = of_two / 'files.json', sha256(of_two)
    whole = files_of(of_two)
    for at in range(0, path.stat().st_size, 5):
        _flip(path, at)
        with pytest.raises(CheckpointError, match='it is not what was written'):
            check_digests(of_two, [digest])
        found = said = None
        try:  # of one that no manifest knows
            found = files_of(of_two)
        except CheckpointError as error:
            said = str(error)
        # a bit of a space is no harm
        assert found == whole or said == f'{of_two}: damaged: its files.json is not as it was written', at
        _flip(path, at)


@pytest.mark.parametrize('name', names(Path()))
def test_what_is_missing_cut_or_a_link_is_said(of_two, name):
    path = of_two / name
    size = path.stat().st_size
    os.truncate(path, size - 1)
    for look in (read, check_digests):
        with pytest.raises(CheckpointError) as error:
            look(of_two)
        assert str(error.value) == f'{of_two}: damaged: {name} has {size - 1:,} bytes, and {size:,} were written'
    path.unlink()
    with pytest.raises(CheckpointError) as error:
        read(of_two)
    assert str(error.value) == f'{of_two}: damaged: {name} is missing'
    path.symlink_to('/dev/zero')
    with pytest.raises(CheckpointError) as error:
        read(of_two)
    assert str(error.value) == f'{of_two}: {name} is a link or no file, and a checkpoint has only files'


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / 'iter_8.pth').touch()
    with pytest.raises(CheckpointError) as error:
        read(tmp_path)
    said = f'{tmp_path}: a folder without files.json: no checkpoint. It has iter_8.pth: give one of these'
    assert str(error.value) == said


# Forged: every digest is right


def relist(folder: Path, rename=lambda name: name) -> None:
    from beit_mm.checkpoints.sharded import _digest

    files = {
        rename(path.name): dict(sha256=sha256(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != 'files.json'
    }
    (folder / 'files.json').write_text(json.dumps(dict(files=files, sha256=_digest(files))))


def reshard(folder: Path, number: int, change) -> None:
    """A shard with `change(tensors, offsets)` done."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / names(folder)[number]
    with safe_open(path, framework='pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        offsets = json.loads(file.metadata()['DCP_SHARDING_INFO'])
    change(tensors, offsets)
    save_file(tensors, path, metadata=dict(DCP_SHARDING_INFO=json.dumps(offsets)))
    relist(folder)


KEY = 'state_dict.patch.weight'  # (7, 3): rows 0 to 3, and 4 to 6
FORGED = {
    'overlap': lambda t, o: o[KEY].update(saved_offsets=[3, 0]),
    'beyond the end': lambda t, o: o[KEY].update(saved_offsets=[5, 0]),
    'negative': lambda t, o: o[KEY].update(saved_offsets=[-1, 0]),
    'no number': lambda t, o: o[KEY].update(saved_offsets=[4.0, 0]),
    'nowhere': lambda t, o: o.pop(KEY),
    'other dimensions': lambda t, o: o[KEY].update(saved_offsets=[4]),
    'nothing said': lambda t, o: o.clear(),
    'gone': lambda t, o: t.pop(KEY),
    'too many': lambda t, o: (t.update(other=torch.zeros(1)), o.update(other=dict(saved_offsets=[0]))),
    'fewer rows': lambda t, o: t.update({KEY: torch.zeros(2, 3)}),
    'another type': lambda t, o: t.update({KEY: torch.zeros(3, 3, dtype=torch.float64)}),
    'a type of its own': lambda t, o: t.update({KEY: torch.zeros(3, 3, dtype=torch.float8_e5m2)}),
    'twice': lambda t, o: (t.update({KEY: torch.zeros(7, 3)}), o[KEY].update(saved_offsets=[0, 0])),
}


@pytest.mark.parametrize('change', FORGED)
def test_parts_that_make_up_no_tensor_are_refused(of_two, change):
    reshard(of_two, 1, FORGED[change])
    check_digests(of_two)
    with pytest.raises(CheckpointError) as error:
        read(of_two)
    assert str(error.value).startswith(f'{of_two}: ')
    assert 'cannot be read' not in str(error.value)


@pytest.mark.parametrize('shape', [(2**40, 3), (7, 4), (21,), (2**31, 2**31)])
def test_another_shape_than_its_parts_have_is_refused(of_two, shape):
    path = of_two / 'rest-aa.pth'
    content = torch.load(path, weights_only=True)
    with torch.device('meta'):
        content['state_dict']['patch.weight'] = torch.empty(1, 1).as_strided(shape, [0] * len(shape))
    torch.save(content, path)
    relist(of_two)
    with pytest.raises(CheckpointError) as error:
        read(of_two)
    assert str(error.value).startswith(f'{of_two}')


@pytest.mark.parametrize('name', ['../rest-aa.pth', '/etc/passwd', 'rest-aa.pth/../x', '.', '', 'files.json'])
def test_files_outside_are_refused(of_two, name):
    shutil.copy(of_two / 'rest-aa.pth', of_two.parent)
    relist(of_two, lambda own: name if own == 'rest-aa.pth' else own)
    with pytest.raises(CheckpointError) as error:
        read(of_two)
    assert str(error.value) == f'{of_two}: damaged: its files.json is not as it was written'


def test_it_runs_nothing(of_two, tmp_path):
    from payload import Payload

    torch.save(dict(training(), meta=Payload(tmp_path / 'ran')), of_two / 'rest-aa.pth')
    relist(of_two)
    with pytest.raises(CheckpointError, match='holds Python objects besides tensors'):
        read(of_two)
    assert not (tmp_path / 'ran').exists()


# Errors of a rank are errors of all


def test_what_one_raises_all_raise():
    def do(rank: int) -> None:
        def fails() -> None:
            if rank == 1:
                raise KeyError('x')

        on_all_ranks(fails)

    assert [str(error) for error in forked(3, do)] == ["on rank 1: KeyError: 'x'"] * 3


def test_what_cannot_be_saved(tmp_path):
    """Two tensors of one name; one without data."""

    def do(rank: int) -> list[str]:
        said = []
        weight = distribute_tensor(torch.ones(4), init_device_mesh('cpu', (2,)), [Shard(0)])
        for bad in ({'a.b': weight, 'a': {'b': weight}}, {'a': torch.empty(2, device='meta')}):
            try:
                write(bad, tmp_path, 'x')
            except CheckpointError as error:
                said.append(str(error))
        return said

    expected = ['a.b: two tensors would have this name', 'a: has no data']
    assert forked(2, do) == [expected] * 2
    assert list(tmp_path.iterdir()) == []


def test_machines_that_do_not_see_the_same_folder(tmp_path):
    """Each writes to a disk of its own."""

    def do(rank: int) -> None:
        (tmp_path / str(rank)).mkdir()
        write(sharded(training(), init_device_mesh('cpu', (2,))), tmp_path / str(rank), 'aa')

    said = (
        'on rank 0: shard-00002-aa.safetensors, which another rank has written, is not there: the '
        'ranks see different folders'
    )
    assert [str(error) for error in forked(2, do)] == [said] * 2
