"""The names that configs can use: registries of the scope `beit_mm`, children of mmengine's roots."""

from mmengine import registry as root

MODELS = root.Registry('model', parent=root.MODELS, scope='beit_mm', locations=['beit_mm.models'])
DATASETS = root.Registry('dataset', parent=root.DATASETS, scope='beit_mm', locations=['beit_mm.data'])
TRANSFORMS = root.Registry('transform', parent=root.TRANSFORMS, scope='beit_mm', locations=['beit_mm.data'])
DATA_SAMPLERS = root.Registry('data sampler', parent=root.DATA_SAMPLERS, scope='beit_mm', locations=['beit_mm.data'])
METRICS = root.Registry('metric', parent=root.METRICS, scope='beit_mm', locations=['beit_mm.engine'])
HOOKS = root.Registry('hook', parent=root.HOOKS, scope='beit_mm', locations=['beit_mm.engine'])
MODEL_WRAPPERS = root.Registry(
    'model_wrapper', parent=root.MODEL_WRAPPERS, scope='beit_mm', locations=['beit_mm.engine']
)
LOG_PROCESSORS = root.Registry(
    'log processor', parent=root.LOG_PROCESSORS, scope='beit_mm', locations=['beit_mm.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    'optimizer wrapper constructor',
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='beit_mm',
    locations=['beit_mm.engine'],
)
OPTIM_WRAPPERS = root.Registry(
    'optim_wrapper', parent=root.OPTIM_WRAPPERS, scope='beit_mm', locations=['beit_mm.engine']
)
RUNNERS = root.Registry('runner', parent=root.RUNNERS, scope='beit_mm', locations=['beit_mm.engine'])
LOOPS = root.Registry('loop', parent=root.LOOPS, scope='beit_mm', locations=['beit_mm.engine'])
STRATEGIES = root.Registry('strategy', parent=root.STRATEGIES, scope='beit_mm', locations=['beit_mm.engine'])
