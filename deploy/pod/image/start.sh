#!/bin/bash
# Make a machine of ours out of a stock image: install what is missing, unpack init.py and its modules, and run it.
#
#     bash start.sh ARCHIVE       ARCHIVE: a zip file of them, as deploy/providers/runpod/start.py makes it
#
# The launcher sends both as the pod's start command, in place of the image's own. Nothing but bash and apt-get is needed;
# a stock image of RunPod has all the programs already. An image that has init.py, under whatever name, runs its own.

archive=$1
home=/usr/local/lib/sniperface
python=/usr/bin/python3 # the system's: login.py names it

say() {
    echo "sniperface $*"
}

missing() {
    [ -x /usr/sbin/sshd ] || echo openssh-server
    command -v git >/dev/null || echo git
    command -v tmux >/dev/null || echo tmux
    [ -x "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3 python3-venv
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

install_missing() {
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    timeout 300 apt-get update -qq &&
        timeout 600 apt-get install --yes -qq --no-install-recommends "$@" >/dev/null
}

# The switch of unattended.py, for an image in which init.py cannot run. RunPod puts runpodctl into each pod.
release() {
    runpodctl pod delete "$RUNPOD_POD_ID" || runpodctl remove pod "$RUNPOD_POD_ID"
}

give_up() {
    say "bad start: $*"
    [ -n "${SNIPERFACE_UNATTENDED_MIN:-}" ] || exec sleep infinity
    sleep "${SNIPERFACE_UNATTENDED_MIN}m"
    until say "releasing this machine" && release; do
        sleep 60
    done
    exec sleep infinity
}

if [ -e "$home/__main__.py" ] && [ ! -e "$home/.unpacked" ]; then
    exec "$python" -I -u "$home"
fi
packages=$(missing)
# shellcheck disable=SC2086 - one word a package
[ -z "$packages" ] || install_missing $packages
[ -x /usr/sbin/sshd ] || give_up "the image has no SSH server, and apt-get cannot install one"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    give_up "the image has no Python 3.9 or newer as $python, and apt-get cannot install one"
mkdir -p "$home" && touch "$home/.unpacked" && cd "$home" || give_up "$home cannot be written"
"$python" -I -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall()' "$archive" &&
    chmod 0755 login.py && "$python" -I . install || give_up "the start of this machine cannot be unpacked"
mkdir -p /workspace
exec "$python" -I -u "$home"
