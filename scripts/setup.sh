# Sourced by the other scripts: changes to the repository root, and makes the packages of a requirements file there.
# An active virtual environment is used as it is; otherwise .venv is made and activated.
#   source scripts/setup.sh [requirements.txt]
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements="${1:-requirements.txt}"
if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
            || { echo "error: Python 3.10 or newer is needed (PYTHON=python3.12 picks one)" >&2; exit 2; }
        echo "making .venv"
        "${PYTHON:-python3}" -m venv .venv \
            || { echo "error: 'python3 -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
    fi
    source .venv/bin/activate
fi
# what is installed is noted in the environment, by the files' content
stamp="$VIRTUAL_ENV/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$(basename "$requirements" .txt)"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements (PyTorch alone is several GB: this takes minutes)"
    python -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$stamp"
fi
