"""The doors from outside: flags that OpenMMLab users know, and mistakes that end in a few named lines."""

import re

import pytest
from processes import ROOT, call

CLASSIFY = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'


def assert_mistake(returned, *parts):
    code, out, err = returned
    assert code == 1, out + err
    assert 'Traceback' not in out + err
    assert len(err.strip().splitlines()) <= 15, err
    for part in parts:
        assert part in err, err


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (['optim_wraper.optimizer.lr=1'], ['optim_wraper', 'did you mean `optim_wrapper`']),
        (['model.backbone.drop_path=0.2'], ['drop_path', 'did you mean `model.backbone.drop_path_rate`']),
        (['model.backbone.type=beit_mm.BEiTVit'], ['model.backbone.type', "did you mean 'beit_mm.BEiTViT'"]),
        (['model.backbone.arch=bsae'], ['bsae', "did you mean 'base'"]),
        (['lr'], ['lr', 'key=value']),
    ],
)
def test_wrong_overrides(tmp_path, options, parts):
    assert_mistake(call('tools/train.py', CLASSIFY, '--work-dir', tmp_path, '--cfg-options', *options), *parts)


def test_missing_config(tmp_path):
    wrong = CLASSIFY.replace('_ft_', '_fit_')
    assert_mistake(call('tools/train.py', wrong, '--work-dir', tmp_path), wrong, 'no such config', CLASSIFY)


def test_unwritable_work_dir(tmp_path):
    blocker = tmp_path / 'file'
    blocker.write_text('')
    assert_mistake(call('tools/train.py', CLASSIFY, '--work-dir', blocker / 'w'), str(blocker), '--work-dir')


def test_missing_checkpoint(tmp_path):
    assert_mistake(call('tools/test.py', CLASSIFY, tmp_path / 'no.pth', '--work-dir', tmp_path), 'no.pth', 'no such')


def test_missing_and_unreadable_images(tmp_path):
    config = tmp_path / 'folder.py'
    config.write_text(
        f"""_base_ = ['{ROOT / CLASSIFY}']
train_dataloader = dict(batch_size=2, dataset=dict(_delete_=True, type='CustomDataset', data_root='{tmp_path}',
    data_prefix='images', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
"""
    )
    assert_mistake(call('tools/train.py', config, '--work-dir', tmp_path / 'w'), str(tmp_path))
    for name in ('a', 'b'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        (tmp_path / 'images' / name / '1.png').write_bytes(b'not an image')
    assert_mistake(call('tools/train.py', config, '--work-dir', tmp_path / 'w'), '1.png')


def test_train_test_and_leaderboard(tmp_path):
    short = [
        'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=4',
        'default_hooks.checkpoint.interval=2', 'val_dataloader.dataset.length=6', 'test_dataloader.dataset.length=6',
    ]  # fmt: skip
    work = tmp_path / 'w'
    code, out, err = call('tools/train.py', CLASSIFY, '--work-dir', work, '--seed', 3, '--cfg-options', *short)
    assert code == 0, err
    assert 'Hooks will be executed' not in out  # plain lines on the terminal,
    assert 'Hooks will be executed' in next(work.glob('*/*.log')).read_text()  # everything in the file
    assert list(work.glob('*/vis_data/events.out.tfevents*'))
    results = tmp_path / 'results'
    code, out, err = call(
        'tools/test.py', CLASSIFY, work / 'iter_2.pth', '--work-dir', work, '--record', results, '--cfg-options', *short
    )
    assert code == 0, err
    top1 = float(re.search(r'accuracy/top1\s+([\d.]+)', out)[1])
    code, out, err = call('tools/leaderboard.py', results, '--out', tmp_path / 'board')
    assert code == 0, err
    assert 'embedded' in out.lower()
    assert f'{top1:.1f}' in out
    assert (tmp_path / 'board' / 'leaderboard.html').is_file()


def test_doctor_and_print_config():
    code, out, _ = call('tools/doctor.py')
    assert code == 0
    assert 'mmcv_without_compiled_ops' in out
    code, out, _ = call('tools/print_config.py', CLASSIFY, '--diff', CLASSIFY, '--cfg-options', 'train_cfg.max_iters=7')
    assert code == 0
    assert out.startswith(f'--- {CLASSIFY}\n+++ {CLASSIFY}\n@@ ')
    assert [line for line in out.splitlines() if 'max_iters=7' in line and line.startswith('+')]
