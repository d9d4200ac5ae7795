"""`python -m deploy.pod.standing`: the laptop runs it by this name in snapshots of all versions."""

import sys

from deploy.pod.watchdog.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
