"""`python -m deploy.pod.guard`: a laptop starts it in a snapshot of any version."""

import sys

from deploy.pod.watchdog.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
