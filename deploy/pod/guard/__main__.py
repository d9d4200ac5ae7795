"""`python -m deploy.pod.guard`: the laptop starts it by this name in snapshots of all versions."""

import sys

from deploy.pod.watchdog.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
