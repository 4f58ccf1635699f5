# Sourced by other scripts, or run: goes to the repository root and installs the packages of a requirements file into
# the active environment, or else into .venv, which is made if it is missing.
#   bash scripts/setup.sh [requirements.txt]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
requirements="${1:-requirements.txt}"
if [ -z "$environment" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || { echo "error: Python 3.10 or newer is needed (PYTHON=python3.12 picks one)" >&2; exit 2; }
    echo "making .venv"
    if ! "${PYTHON:-python3}" -m venv .venv; then
        rm -f .venv/bin/python  # otherwise the next call would take this half of an environment for a whole one
        echo "error: 'python3 -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
    source scripts/environment.sh
fi
# an empty file in the environment says that the packages are installed; its name has a checksum of the requirements
stamp="$environment/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$(basename "$requirements" .txt)"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements (PyTorch alone is several GB: this takes minutes)"
    python -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$stamp"
fi
