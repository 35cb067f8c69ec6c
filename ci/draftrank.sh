# Sourced by the other scripts: the command, on the workspace that they are about. WORKSPACE names another folder than
# the repository the script lies in; PYTHON another interpreter than that of .venv.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workspace=${WORKSPACE:-$repository}
python=${PYTHON:-$repository/.venv/bin/python}
draftrank() {
  case $1 in
    comment) "$python" -m draftrank "$@" ;;
    *) "$python" -m draftrank "$@" --workspace "$workspace" ;;
  esac
}
