# shellcheck shell=sh
# For the other scripts: `prepare FOLDER EXTRAS` makes a virtual environment with this package in it.
# Needs Python 3.10 or later and a package index. When nothing has changed since the last time, it takes no time.

# The environment's folder: the one that is asked for, seen from FOLDER, or the default, in the repository.
venv_folder() { # FOLDER DEFAULT
    case ${GENAI_NOTEBOOK_VENV:-} in
        "") echo "$2" ;;
        /*) echo "$GENAI_NOTEBOOK_VENV" ;;
        *) echo "$1/$GENAI_NOTEBOOK_VENV" ;;
    esac
}

find_python() {
    for candidate in ${GENAI_NOTEBOOK_PYTHON:+"$GENAI_NOTEBOOK_PYTHON"} python3.13 python3.12 python3.11 python3.10 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.10 or later is needed and was not found. GENAI_NOTEBOOK_PYTHON may name one." >&2
    return 1
}

make_environment() {
    python=$(find_python) || return 1
    echo "Creating $1 with $("$python" --version)."
    # Debian keeps ensurepip apart; uv and virtualenv bring their own pip.
    "$python" -m venv "$1" 2>/dev/null ||
        { command -v uv >/dev/null && uv venv --quiet --seed --clear --python "$python" "$1"; } ||
        "$python" -m virtualenv --quiet "$1" 2>/dev/null ||
        {
            echo "A virtual environment could not be made. On Debian or Ubuntu: apt-get install python3-venv" >&2
            rm -rf "$1"
            return 1
        }
}

prepare() {
    venv=$1
    extras=$2
    # A half-made environment, or one whose Python has gone, is made again.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        make_environment "$venv" || return 1
    fi
    # The package is installed in place: only a change of what follows asks for a new installation.
    stamp=$(
        pwd
        echo "$extras"
        "$venv/bin/python" --version
        cksum pyproject.toml genai_notebook/_version.py jupyter-config/genai_notebook.json scripts/environment.sh
    )
    if [ "$stamp" != "$(cat "$venv/.stamp-$extras" 2>/dev/null)" ]; then
        echo "Installing genai-notebook[$extras] into $venv. The first time this takes some minutes."
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" || return 1
        printf '%s\n' "$stamp" >"$venv/.stamp-$extras"
    fi
}
