"""`python -m deploy.pod.supervisor`: images of earlier versions look for a process of this name."""

import sys

from deploy.pod.job.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
