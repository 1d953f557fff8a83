"""Several processes of one command on this machine, started and watched by torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from detkit.errors import DetkitError

_UNIX = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]


def launch_processes(words: Sequence[str], processes: int) -> int:
    """Runs ``detkit`` with these words in each of several processes, which find each other as under torchrun.

    The first one speaks; of another its messages are shown where it ended first.

    Args:
        words: The command line after ``detkit``.
        processes: How many; each takes a GPU of its own, or a share of the CPU's threads.

    Returns:
        The exit code of the process that failed first; 0 if none did.

    Raises:
        DetkitError: Code 4: a process was ended from outside.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would show tracebacks
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *_UNIX)}
    with TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "detkit", *words)
        except SignalException as stop:
            return 128 + int(stop.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = int(failure.exitcode)
            if code < 0:
                what = f"process {rank} of {processes} was ended from outside (signal {-code}), and so all were"
                do = "the state of the last save is kept: detkit train --resume RUN goes on, with any number of them"
                raise DetkitError(what, f"process {failure.pid}", do, code=4) from None
            if rank and (0 not in error.failures or error.failures[0].exitcode != code):
                for log in Path(folder).glob(f"**/{rank}/stderr.log"):
                    sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
            return code
        finally:  # the agent has its own
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0
