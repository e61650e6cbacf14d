"""What a config does, told apart from where: one digest for all seeds of a recipe, on any machine."""

import hashlib
import json

from mmengine.config import Config

PLACES = {  # keys that say where things lie and how they run, not what is done
    'cache', 'checkpoint', 'data_root', 'env_cfg', 'experiment_name', 'launcher', 'load_from', 'log_level',
    'log_processor', 'model_wrapper_cfg', 'num_workers', 'persistent_workers', 'pin_memory', 'pretrained',
    'randomness', 'resume', 'token_cache', 'tokenizer_checkpoint', 'vis_backends', 'visualizer', 'work_dir',
}  # fmt: skip


def recipe_of(config: Config) -> str:
    """sha256 of a config without the keys of PLACES."""

    def kept(value):
        if isinstance(value, dict):
            return {str(key): kept(value[key]) for key in sorted(value, key=str) if key not in PLACES}
        return [kept(one) for one in value] if isinstance(value, list | tuple) else str(value)

    return hashlib.sha256(json.dumps(kept(config.to_dict())).encode()).hexdigest()
