# The machine that trains: torch and its friends in one virtual environment, an SSH server, git, tmux. No code of the
# project: it arrives over SSH as a snapshot, so a changed line of it never rebuilds an image.
#
#   docker build -t sniperface .                                          CUDA, as `invoke build` does
#   docker build -t sniperface --build-arg BASE_IMAGE=ubuntu:24.04 --build-arg FAISS=faiss-cpu \
#       --build-arg PIP_OPTIONS="--index-url ..." .                       CPU: PIP_OPTIONS names PyTorch's CPU packages
#   docker run --rm sniperface selftest
#
# No syntax line and nothing of BuildKit alone: the classic builder must read this too.

# torch 2.13 is built for CUDA 13.0 and brings those libraries itself, so neither NVIDIA's runtime nor its devel image is
# needed. What the base image adds is the compatibility package for older drivers, and the variables that make the
# container toolkit hand over the GPUs. Ubuntu 24.04 has Python 3.12. The digest is that of the index of all platforms:
# a tag can be moved to other bytes. `docker buildx imagetools inspect NAME:TAG` prints it for a new tag.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

FROM ${BASE_IMAGE}

# g++ and python3-dev are for train.compile=true: torch writes C++ for CPUs, Triton a launcher in C for GPUs, and both
# include Python.h.
# openssh-server makes host keys when it is installed. In an image they would be the same for everybody: away with them,
# in this very layer; init.py makes new ones in each container.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ git openssh-server python3 python3-dev python3-venv tmux \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /etc/ssh/ssh_host_*

# Dependencies have their layer before anything of ours.
# pip checks the hash of every file. For CPUs, PIP_OPTIONS may name another build of torch, which is pinned by version.
# FAISS: faiss-gpu is Meta's own package of the same version, for CUDA 12.6, whose libraries it brings next to torch's;
# a driver for CUDA 13 runs both. It takes the place of faiss-cpu: both install the module `faiss`.
# PIP_OPTIONS stays readable in the image's history, so a password has no place in it.
ARG FAISS=faiss-gpu
ARG PIP_OPTIONS=""
ENV PATH=/opt/sniperface/bin:${PATH} VIRTUAL_ENV=/opt/sniperface
COPY constraints.txt requirements/app.txt requirements/build.txt requirements/cuda.txt \
    requirements/gpu.txt requirements/s3.txt requirements/torch.txt requirements/wandb.txt /opt/sniperface/
RUN cd /opt/sniperface \
    && sed -i 's/\r$//' *.txt \
    && python3 -m venv . \
    && pip_install() { python -m pip install "$@" --no-cache-dir --no-input --progress-bar off \
        --disable-pip-version-check ${PIP_OPTIONS}; } \
    && hashed() { pip_install --require-hashes --no-deps --no-build-isolation --use-pep517 --requirement "$1"; } \
    && hashed build.txt \
    && hashed app.txt \
    && hashed s3.txt \
    && hashed wandb.txt \
    && if [ "${FAISS}" = faiss-cpu ]; then pip_install --constraint constraints.txt torch; \
        else python -m pip uninstall --yes faiss-cpu && hashed gpu.txt && hashed torch.txt && hashed cuda.txt; fi

# A checkout on Windows may have CRLF line ends and no execute bits; both are put right here.
COPY deploy/pod/image/init.py /usr/local/lib/sniperface/__main__.py
COPY deploy/pod/image/login.py deploy/pod/image/selftest.py /usr/local/lib/sniperface/
COPY deploy/pod/base/processes.py deploy/pod/base/redact.py deploy/pod/base/text.py \
    /usr/local/lib/sniperface/deploy/pod/base/
COPY deploy/pod/image/unattended.py /usr/local/lib/sniperface/deploy/pod/image/
COPY deploy/pod/watchdog/release.py /usr/local/lib/sniperface/deploy/pod/watchdog/
RUN cd /usr/local/lib/sniperface \
    && find . -name '*.py' -exec sed -i 's/\r$//' {} + \
    && chmod 0755 login.py \
    && /usr/bin/python3 -I . install \
    && mkdir -p /workspace

# SNIPERFACE_PYTHON tells the launcher, which asks for it over SSH, that this machine has our environment.
ENV LANG=C.UTF-8 SNIPERFACE_PYTHON=/opt/sniperface/bin/python
WORKDIR /workspace
EXPOSE 22
# The system's Python, so that even a broken environment can be looked into.
ENTRYPOINT ["/usr/bin/python3", "-I", "-u", "/usr/local/lib/sniperface"]
