"""What a malicious checkpoint holds, for the tests that nothing runs it."""

import os


class Payload:
    """Leaves a file `marker` when it is unpickled by a reader that runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)
