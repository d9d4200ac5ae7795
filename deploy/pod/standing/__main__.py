"""`python -m deploy.pod.standing`: a laptop asks a snapshot of any version."""

import sys

from deploy.pod.watchdog.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
