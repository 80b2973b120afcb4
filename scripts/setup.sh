#!/usr/bin/env bash
# Makes .venv with everything Recombine needs: system packages (Debian and Ubuntu), Python packages, FFCV.
# Safe to repeat: a finished step is recognised and skipped. PYTHON=python3.11 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
quiet=(); [ -t 1 ] || quiet=(-q)

# FFCV is compiled here and needs OpenCV's core and imgproc, the turbojpeg headers and a compiler.
packages=(g++ pkg-config libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev)
install_system_packages() {
    command -v apt-get >/dev/null || { say "no apt-get: see the README for the libraries FFCV needs"; return 0; }
    local missing=() package
    [ -n "${PYTHON:-}" ] || packages+=(python3 python3-venv python3-dev)
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local root=(); [ "$(id -u)" = 0 ] || root=(sudo)
    say "system packages: ${missing[*]}"
    if ! { "${root[@]}" apt-get update -qq && "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
        say "system packages could not be installed; going on without (FFCV may not build)"
    fi
}

install_python_packages() {
    local python="${PYTHON:-python3}" stamp=.venv/.requirements.sha256
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || { echo "Recombine needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
    [ -x .venv/bin/python ] || { say "virtual environment .venv"; "$python" -m venv .venv; }
    sha256sum --status -c "$stamp" 2>/dev/null && return 0
    say "Python packages (about 3 minutes and 5 GB the first time: PyTorch with CUDA)"
    .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check -r requirements.txt
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --editable .
    sha256sum requirements.txt pyproject.toml > "$stamp"
}

# A step of its own: FFCV's setup.py stops a whole `pip install -r` where a header is missing, and its
# metadata asks for the OpenCV build with a GUI, so its dependencies are in our requirements.txt instead.
install_ffcv() {
    local version=1.0.2
    .venv/bin/python -c "import importlib.metadata as m; assert m.version('ffcv') == '$version'" 2>/dev/null && return 0
    say "FFCV $version (compiled, half a minute)"
    if ! PKG_CONFIG_PATH="$PWD/scripts/ffcv_build:${PKG_CONFIG_PATH:-}" \
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps "ffcv==$version" > .venv/ffcv.log 2>&1; then
        say "FFCV could not be built (why: .venv/ffcv.log); the torch loader is used in its place"
    fi
}

install_system_packages
install_python_packages
install_ffcv
