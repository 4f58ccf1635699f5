# Sourced by other scripts: finds the Python environment and puts its `python` and `torchrun` on the path. It is the
# active one (a venv, or conda's unless that is "base"), or else .venv of the repository. If there is none, $environment
# is empty.
repository=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${VIRTUAL_ENV:-}
if [ -z "$environment" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment=${CONDA_PREFIX:-}
fi
if [ -z "$environment" ] && [ -x "$repository/.venv/bin/python" ]; then
    environment=$repository/.venv
fi
PATH="${environment:+$environment/bin:}$PATH"
