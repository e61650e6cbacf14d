"""What the log says after an evaluation."""

import re

from mmengine.runner import LogProcessor as MMEngineLogProcessor

from ..registry import LOG_PROCESSORS

OF_A_CLASS = re.compile(r'  \w+\.[^:]+: \S+(?=  |$)')  # as `IoU.traffic light: 12.3`


@LOG_PROCESSORS.register_module()
class LogProcessor(MMEngineLogProcessor):
    """mmengine's, with one line of summary scores after an evaluation: those of 150 classes are in the metric's table.

    The scalars that are recorded, for TensorBoard and for curves, are all there.
    """

    def get_log_after_epoch(self, *args, **kwargs) -> tuple[dict, str]:
        tag, line = super().get_log_after_epoch(*args, **kwargs)
        return tag, OF_A_CLASS.sub('', line)
