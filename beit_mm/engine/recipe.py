"""What a config does, told apart from where: one digest for all seeds of a recipe, on any machine."""

import hashlib
import json

from mmengine.config import Config

PLACES = {  # keys that say where things lie and how they run, not what is done
    'cache', 'checkpoint', 'data_root', 'env_cfg', 'experiment_name', 'launcher', 'load_from', 'log_level',
    'log_processor', 'model_wrapper_cfg', 'num_workers', 'persistent_workers', 'pin_memory', 'pretrained',
    'randomness', 'resume', 'strategy', 'token_cache', 'tokenizer_checkpoint', 'vis_backends', 'visualizer', 'work_dir',
}  # fmt: skip


SAFETY_HOOKS = [  # of every run: they keep it from harm, and are no part of what it does
    dict(type='beit_mm.PlainCheckpointHook'),
    dict(type='beit_mm.CountedRandomnessHook'),
    dict(type='beit_mm.FitWeightsHook'),
    dict(type='beit_mm.ProgressHook'),
    dict(type='beit_mm.UnreadableImagesHook'),
    dict(type='beit_mm.PreflightHook'),
    dict(type='beit_mm.TokenCacheHook'),
    dict(type='beit_mm.FiniteStepsHook'),
    dict(type='beit_mm.ChangedSettingsHook'),
    dict(type='beit_mm.StopHook'),
]


def recipe_of(config: Config) -> str:
    """sha256 of a config without the keys of PLACES and without SAFETY_HOOKS; ours of a name is as mmengine's."""

    def kept(value, key: str = ''):
        if isinstance(value, dict):
            return {str(k): kept(value[k], k) for k in sorted(value, key=str) if k not in PLACES}
        if isinstance(value, list | tuple):
            return [kept(one) for one in value if one not in SAFETY_HOOKS]
        return str(value).removeprefix('beit_mm.') if key == 'type' else str(value)

    return hashlib.sha256(json.dumps(kept(config.to_dict())).encode()).hexdigest()
