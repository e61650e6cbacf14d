"""benchmark/suite.py and grid.py: what a suite says, what of it is refused, and the suites of the paper."""

import re
from pathlib import Path

import pytest
from tiny_suite import tiny_suite

from beit_mm.benchmark import suite as suites
from beit_mm.benchmark.estimate import batch_note
from beit_mm.benchmark.jobs import describe, run_suite
from beit_mm.benchmark.suite import merged, missing, plan, read_suite, weights_of
from beit_mm.engine.configs import ConfigError

TOKENIZER = 'configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'
PRETRAIN = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
PIXELS = 'configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py'
CLASSIFY = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
KNN = 'configs/classification/beit-mini-p8_knn_1xb64-0e_embedded-64.py'


TABLE = f'recipes = {{"r": dict(config={CLASSIFY!r})}}\n'


def written(folder: Path, text: str) -> Path:
    path = folder / 'suite.py'
    path.write_text(f"title = note = 'x'\nroot = {str(folder / 'root')!r}\n{text}")
    return path


def stage(name='a', config=CLASSIFY, **fields) -> dict:
    return dict(name=name, config=config, **fields)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('stage = []', r"'stage' unknown; did you mean 'stages'\?"),
        ('stages = []', 'nothing to run'),
        (f'stages = [{stage(strat="b")}]', r"stage a: 'strat' unknown; did you mean 'start'\?"),
        (f'stages = [{stage()}, {stage()}]', 'stage a: another stage has this name'),
        (f'stages = [{stage()}, {stage("b")}]', 'stage b: would be the same run as a'),
        (f'stages = [{stage()}, {stage("b", options={"protocol": "other"})}]', 'stage b: would be the same run as a'),
        (f'stages = [{stage()}, {stage("b", start="aa")}]', r"starts from 'aa', .* did you mean 'a'\?"),
        (f'stages = [{stage("a", start="b")}, {stage("b", start="a")}]', 'it comes later'),
        (f'stages = [{stage(start="a")}]', "stage a: start='a' is the stage itself: name one before it"),
        (f'stages = [{stage(name=3)}]', 'stage 3: name=3 must be text'),
        (f'stages = [{stage(options=["x"])}]', r"stage a: options=\['x'\] must be a dict, as"),
        (f'stages = [{stage(fast={3: 1})}]', r'stage a: fast=\{3: 1\} must be a dict, as'),
        (f'stages = [{stage(config=["x.py"])}]', r"stage a: config=\['x.py'\] must be text"),
        (f'stages = [{stage(checkpoint=3)}]', 'stage a: checkpoint=3 must be text or None'),
        (f'stages = [{stage(tta="no")}]', "stage a: tta='no' must be True or False"),
        ('stages = [3]', r'stages=\[3\] must be a list of dicts'),
        ('backbones = ["x"]', r"backbones=\['x'\] must be a dict, as"),
        ('recipes = ["x"]', r"recipes=\['x'\] must be a dict, as"),
        (f'recipes = {{"ft": {CLASSIFY!r}}}\nbackbones = {{"a": None}}', "recipe ft: '.*py' must be a dict, as dict"),
        ('recipes = {"r": dict(config=3)}\nbackbones = {"a": None}', 'recipe r: config=3 must be a config, or'),
        (f'{TABLE}backbones = {{"a": dict(chain=[3])}}', r'backbone a: chain=\[3\] must be a list of configs, or'),
        (f'{TABLE}backbones = {{"a": []}}', r'backbone a: chain=\[\] must be a list of configs'),
        (f'{TABLE}backbones = {{"a": 3}}', 'backbone a: 3 is no checkpoint, list of configs, dict or None'),
        (f'{TABLE}backbones = {{"a": [dict(config=3)]}}', 'backbone a: chain: config=3 must be text'),
        (f'{TABLE}backbones = {{"a": None}}\ntasks = "classification"', "tasks='.*' must be a list of texts"),
        (
            f'{TABLE}backbones = {{"a": None}}\ntasks = ["clasification"]',
            "tasks: no recipe is of 'clasification'; they are of classification$",
        ),
        (
            f'recipes = {{"knn": dict(config={KNN!r}, evaluate=True)}}\nbackbones = {{"a": "w.pth", "s": None}}',
            r'backbone s: has no weights that recipe knn \(evaluate=True\) could test: give it a checkpoint',
        ),
        (f'stages = [{stage(start="b", load_from="c.pth")}]', 'has start and load_from'),
        (f'stages = [{stage(config="configs/classification/beit-mini.py")}]', 'no such config. The nearest names'),
        (f'stages = [{stage(options={"train_cfg.max_itres": 2})}]', 'did you mean `train_cfg.max_iters`'),
        (f'stages = [{stage(kind="cls")}]', "kind='cls' is none of tokenizer, pretrain"),
        (f'stages = [{stage("a/b")}]', 'its name is that of a folder'),
        (f'stages = [{stage(gpus=0)}]', 'gpus=0 must be 1 or more'),
        (f'stages = [{stage(amp="fp32")}]', "amp='fp32' is neither"),
        (f'stages = [{stage(tta=True)}]', 'has no tta_model'),
        (f'stages = [{stage(config=KNN, load_from="a.pth")}]', 'trains nothing; write checkpoint='),
        (f'stages = [{stage(checkpoint="c.pth")}, {stage("b", start="a")}]', "starts from 'a', which is only tested"),
        (f'stages = [{stage()}]\nseeds = 0', 'seeds=0: write how many'),
        ('backbones = {"a": None}', 'one of them is missing'),
        ('recipes = {"r": {}}\nbackbones = {"a": None}', 'recipe r: has no config'),
        (f'recipes = {{"r": dict(config={{"b": {CLASSIFY!r}}})}}\nbackbones = {{"a": None}}', 'unknown backbones: b'),
        (f'recipes = {{"r": dict(config={CLASSIFY!r})}}\nbackbones = {{"a": dict(chekpoint=1)}}', "mean 'checkpoint'"),
        (
            f'recipes = {{"r": dict(config={CLASSIFY!r})}}\nbackbones = {{"a": None}}\ntasks = ["segmentation"]',
            "no recipe is of 'segmentation'",
        ),
        ('1 / 0', 'cannot be read: ZeroDivisionError'),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        plan(written(tmp_path, text))


@pytest.mark.parametrize('seeds', [range(0), range(-2), [-3], [0, 2**32]])
def test_impossible_seeds_are_refused(tmp_path, seeds):
    with pytest.raises(ConfigError, match=r'seeds: (none|-3|0, 4294967296); at least one is needed \(--seeds 1'):
        plan(tiny_suite(tmp_path), seeds)


@pytest.mark.parametrize('jobs', [0, -1])
def test_impossible_numbers_are_refused(tmp_path, jobs):
    with pytest.raises(ConfigError, match=f'--jobs {jobs}: how many stages run at a time, 1 or more'):
        run_suite(tiny_suite(tmp_path), root=tmp_path / 'r', jobs=jobs)
    with pytest.raises(ConfigError, match=f'--tflops {jobs}: .* more than 0'):
        describe(tiny_suite(tmp_path), root=tmp_path / 'r', costs=True, tflops=jobs)


def test_a_stage_that_only_a_fast_check_reads_is_a_parent(tmp_path):
    more = "stages[3]['fast'] = {'load_from': '{tokenizer}'}"
    assert [stage.parents for stage in plan(tiny_suite(tmp_path, more=more))][3] == ()
    stages = plan(tiny_suite(tmp_path, more=more), fast=True, root=tmp_path / 'r')
    assert stages[3].parents == (stages[0],)


def test_a_missing_suite_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r'the config of one training, no suite: python tools/train\.py '):
        read_suite(CLASSIFY)
    with pytest.raises(ConfigError, match=r'no such suite. The nearest names are: .*configs/suites/miniature\.py'):
        read_suite('configs/suites/minature.py')


def test_stages_and_seeds(tmp_path):
    more = f"stages.append(dict(name='theirs', config={CLASSIFY!r}, checkpoint='their.pth'))\nseeds = [3, 5]"
    stages = plan(tiny_suite(tmp_path, more=more), root=tmp_path / 'r')
    names = ['tokenizer', 'pretrain', 'classify', 'classify-scratch']
    assert [(s.seed, s.name) for s in stages] == [
        *((3, n) for n in names), (0, 'theirs'), *((5, n) for n in names),
    ]  # fmt: skip
    pretrain, classify = stages[1], stages[2]
    assert classify.options['load_from'] == '{pretrain}'
    assert (classify.parents, pretrain.parents) == ((pretrain,), (stages[0],))
    assert classify.resolved({'pretrain': 'p.pth'})[0]['load_from'] == 'p.pth'
    assert classify.work_dir == tmp_path / 'r' / 'seed3' / 'classify'
    assert classify.kind == 'classification'
    assert [s.seed for s in plan(tiny_suite(tmp_path), range(2)) if s.name == 'classify'] == [0, 1]


def test_a_table_shares_what_rows_have_in_common(tmp_path):
    path = written(
        tmp_path,
        f"""
_tokens = dict(name='tokens', config={TOKENIZER!r})
backbones = {{
    'BEiT': [_tokens, {PRETRAIN!r}],
    'all tokens': [_tokens, dict(name='all', config={PRETRAIN!r}, options={{'model.predict': 'all'}})],
    'pixels': [{PIXELS!r}],
    'theirs': dict(checkpoint='their.pth', options={{'model.backbone.drop_path_rate': 0.2}}),
    'from scratch': None,
}}
recipes = {{
    'ft': dict(config={CLASSIFY!r}, options={{'protocol': 'after {{backbone}}'}}),
    'seg': dict(config={{'BEiT': {SEGMENT!r}}}, gpus=2),
    'knn': dict(config={{'BEiT': {KNN!r}, 'theirs': {KNN!r}}}, evaluate=True),
}}
""",
    )
    stages = {stage.name: stage for stage in plan(path)}
    stem = Path(PRETRAIN).stem
    assert list(stages) == [
        'tokens', stem, 'ft-BEiT', 'seg-BEiT', 'knn-BEiT', 'all', 'ft-all-tokens', Path(PIXELS).stem, 'ft-pixels',
        'ft-theirs', 'knn-theirs', 'ft-from-scratch',
    ]  # fmt: skip
    assert stages[stem].options == {'model.target.checkpoint': '{tokens}'}
    assert stages['all'].parents == (stages['tokens'],)
    assert stages['ft-BEiT'].options == {'load_from': f'{{{stem}}}', 'protocol': 'after BEiT'}
    assert stages['seg-BEiT'].gpus == 2
    assert stages['ft-theirs'].options['model.backbone.drop_path_rate'] == 0.2
    assert weights_of(stages['ft-theirs']) == ['their.pth']
    assert stages['ft-from-scratch'].options == {'load_from': None, 'protocol': 'after from scratch'}
    assert (stages['knn-BEiT'].checkpoint, stages['knn-theirs'].checkpoint) == (f'{{{stem}}}', 'their.pth')
    absent = missing(stages.values())
    assert {file: [s.name for s in users] for file, (_, users) in absent.items()} == {
        'their.pth': ['ft-theirs', 'knn-theirs']
    }
    path.write_text(path.read_text() + "tasks = ['segmentation']\nbackbones = {'BEiT': backbones['BEiT']}\n")
    path.write_text(path.read_text() + "recipes['knn']['config'] = {'BEiT': recipes['knn']['config']['BEiT']}\n")
    assert [stage.name for stage in plan(path)] == ['tokens', stem, 'seg-BEiT']


def test_missing_files_come_with_a_way_out(tmp_path):
    folder = 'work_dirs/beit-base-p16_dalle_16xb128-800e_in1k-224'
    config = 'configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py'
    absent = missing(plan(written(tmp_path, f'stages = [{stage("a", config)}]')))
    way, users = absent[f'{folder}/epoch_800.pth']
    assert way == f'It is what this leaves: python tools/train.py configs/pretrain/{Path(folder).name}.py'
    assert [user.name for user in users] == ['a']
    assert 'dataset.data_root' in absent['data/imagenet'][0]


# {suite: (its stages, those of kind pretrain, {stage: what it starts from})}
PAPER = {
    'table1': (10, 2, {'ft384-B800': 'ft-B800', 'ft-B800': 'pretrain-B800', 'ft384-L800': 'ft-L800'}),
    'table3': (7, 1, {'setr-B800': 'pretrain-B800', 'setr-ft-B800': 'ft-B800'}),
    'table4': (21, 7, {'ft-random': 'pretrain-random', 'setr-random': 'pretrain-random', 'setr-B300': 'pretrain-B300'}),
    'table5': (9, 3, {'ft-ls-B300': 'pretrain-ls-B300', 'upernet-ls-B300': 'pretrain-ls-B300'}),
    'table7': (8, 2, {'upernet640-plus-L': 'ft22k-plus-L', 'upernet640-plus-L-multi-scale': 'upernet640-plus-L'}),
    'table9': (6, 2, {'probe-B800': 'pretrain-B800', 'probe-every-block-B800': 'pretrain-B800'}),
    'table11': (8, 1, {'cifar100-B800': 'pretrain-B800', 'cifar100-ft-B800': 'ft-B800'}),
}  # fmt: skip
_digests: dict[str, tuple[str, str]] = {}


def test_every_suite_is_known():
    shipped = {path.stem for path in Path('configs/suites').glob('table*.py')}
    assert shipped == set(PAPER)


@pytest.mark.parametrize('name', PAPER)
def test_suites_of_the_paper(name):
    """They load, chain, see as many images a step as their recipes, and mean the same by the same name."""
    stages = plan(f'configs/suites/{name}.py')
    count, pretrained, starts = PAPER[name]
    assert len(stages) == count
    assert sum(stage.kind == 'pretrain' for stage in stages) == pretrained
    known = {stage.name: stage for stage in stages}
    for child, parent in starts.items():
        assert known[child].parents == (known[parent],)
    for stage in stages:
        assert batch_note(stage) == ''
        text = suites.digest(stage)
        where, before = _digests.setdefault(stage.name, (name, text))
        assert before == text, f'{stage.name} of {name} is not that of {where}, and both are below one root'
        assert not [file for file in weights_of(stage) if file.startswith('work_dirs')]
        for parent in stage.parents:  # every chain goes on from weights of the same architecture
            old, new = (merged(s).model.get('backbone', {}).get('arch') for s in (parent, stage))
            assert old == new
    note = ' '.join(Path(f'configs/suites/{name}.py').read_text().split('"""')[1].split())
    for said in (
        f'Table {re.search(r"[0-9]+", name)[0]} of the paper',
        f'configs/suites/{name}.py --dry-run',
        'Bring:',
    ):
        assert said in note


def test_a_row_from_scratch_is_called_so():
    stages = {stage.name: stage for stage in plan('configs/suites/table11.py')}
    assert merged(stages['cifar100-scratch']).protocol == 'from scratch'
    assert merged(stages['cifar100-scratch']).load_from is None
    assert merged(stages['cifar100-dino-B']).protocol == 'fine-tune after DINO'
    assert merged(stages['cifar100-ft-B800']).protocol == 'intermediate fine-tune'


@pytest.mark.parametrize('name', ['miniature', 'miniature_tables', 'ade_layout'])
def test_suites_of_ours(name):
    assert len(plan(f'configs/suites/{name}.py')) >= 6
