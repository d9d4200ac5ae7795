"""`python -m deploy.pod.supervisor`: an image of an earlier version looks for a process of this name."""

import sys

from deploy.pod.job.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
