# Sourced: finds the environment and puts its `python` and `torchrun` on the path. The active one (venv, or conda other
# than its base), else .venv of the repository; none: $environment is empty.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${VIRTUAL_ENV:-}
if [ -z "$environment" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then environment=${CONDA_PREFIX:-}; fi
if [ -z "$environment" ] && [ -x "$repository/.venv/bin/python" ]; then environment=$repository/.venv; fi
PATH="${environment:+$environment/bin:}$PATH"
