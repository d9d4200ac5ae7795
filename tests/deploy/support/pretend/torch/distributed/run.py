"""Stub of torchrun: starts one process per rank, each in its own session; if one fails, it ends the others."""

import os
import signal
import subprocess
import sys
import time


def main() -> int:
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    module = sys.argv[1:].index("-m") + 2
    count = next(int(word.split("=")[1]) for word in options if word.startswith("--nproc-per-node="))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-u", "-m", *sys.argv[module:]],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count)},
            start_new_session=True,
        )
        for rank in range(count)
    ]

    def pass_on(number: int, _: object) -> None:
        for process in ranks:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    while any(process.poll() is None for process in ranks):
        if any(process.poll() not in (None, 0) for process in ranks):
            for process in ranks:
                process.terminate()
            for process in ranks:
                process.wait()
            return 1
        time.sleep(0.02)
    return int(any(process.returncode for process in ranks))


if __name__ == "__main__":
    sys.exit(main())
