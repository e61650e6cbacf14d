"""MMEngine's Runner, where it loses something: the one that `tools/train.py` and `tools/test.py` run."""

from mmengine.runner import Runner as MMEngineRunner

from ..registry import RUNNERS


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner, whose runs go on exactly where they were (resume, samplers, seeds)."""
