"""Tasks that kill their worker, which worker processes import by name."""

import os
import signal
import sys


class DiesOnce:
    """Kills its worker at task ``k``, unless the mark is there already."""

    def __init__(self, k: int, mark: str) -> None:
        self.k, self.mark = k, mark

    def __call__(self, k: int) -> int:
        if k == self.k and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return k * k


class DiesWhileItWrites(DiesOnce):
    """Leaves half of a result behind, as a worker that is killed while it hands a large one over."""

    def __call__(self, k: int) -> int:
        if k == self.k and not os.path.exists(self.mark):
            frame = sys._getframe()
            while "result_queue" not in frame.f_locals:
                frame = frame.f_back
            results = frame.f_locals["result_queue"]
            results._wlock.acquire()
            os.write(results._writer.fileno(), (1000).to_bytes(4, "big") + b"half")
        return super().__call__(k)
