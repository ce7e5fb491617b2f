#!/usr/bin/env bash
# Installs what a job needs: Debian packages, and Python packages (LibTorch among them) into .venv.
# Usage: setup.sh run|test|lint|fuzz
#
# A finished set-up leaves a stamp in .venv with a hash of all that it depends on, so that the next
# call returns at once without asking apt or pip.
set -euo pipefail
cd "$(dirname "$0")/.."

job=${1:?usage: setup.sh run|test|lint|fuzz}
wanted=""  # groups that are taken only where they can be installed
case $job in
  run) groups="build run" requirements=(requirements.txt) ;;
  test) groups="build run test" wanted="slurm" requirements=(requirements.txt requirements-test.txt) ;;
  lint) groups="build run lint" requirements=(requirements.txt) ;;
  fuzz) groups="build run test fuzz" requirements=(requirements.txt) ;;
  *) echo "setup: unknown job '$job' (run, test, lint or fuzz)" >&2; exit 2 ;;
esac

# The kernels and their tests need nvcc, which PyPI has too where there is no CUDA toolkit (100 MB).
cuda=()
if [[ $job == test && -z ${CUDACXX:-} && ! -x /usr/local/cuda/bin/nvcc ]] &&
  ! command -v nvcc >/dev/null; then
  cuda=(requirements-cuda.txt)
fi

python=${PYTHON:-/usr/bin/python3}
stamp=.venv/setup-$job.stamp
key=$(cat scripts/packages.txt scripts/setup.sh "${requirements[@]}" "${cuda[@]}" | sha256sum | cut -c1-64)
if [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
  exit 0
fi

say() { printf '\n== setup: %s\n' "$*"; }

if ((EUID == 0)); then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  as_root=(false)
fi
if [[ ${as_root[*]} != false ]]; then
  groups+=" $wanted"
fi

packages_of_groups() {
  local group
  for group in $groups; do
    awk -v group="$group" '$1 == group { print $2 }' scripts/packages.txt
  done
}

missing_packages() {
  local package
  for package in $(packages_of_groups); do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' ||
      echo "$package"
  done
}

say "1/3 system packages"
if ! command -v apt-get >/dev/null; then
  echo "There is no apt-get here, so these are taken as given (see scripts/packages.txt):"
  packages_of_groups | xargs echo "  "
else
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]} == 0)); then
    echo "All $(packages_of_groups | wc -l) packages are installed."
  else
    if [[ ${as_root[*]} == false ]]; then
      echo "These packages are missing, and installing them needs root:" >&2
      printf '  %s\n' "${missing[@]}" >&2
      echo "Run this, then start again:" >&2
      echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
      exit 1
    fi
    echo "Installing ${#missing[@]} packages: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
      --no-install-recommends "${missing[@]}" </dev/null
  fi
fi

say "2/3 Python environment .venv"
# A copied or half-made environment is made anew: its python does not run.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv
  "$python" -m venv .venv
fi
.venv/bin/python --version

say "3/3 Python packages (LibTorch alone is 4.7 GB unpacked: one to three minutes)"
.venv/bin/python -m pip install --disable-pip-version-check --no-input \
  "${requirements[@]/#/--requirement=}" </dev/null
if ((${#cuda[@]} > 0)) &&
  ! .venv/bin/python -m pip install --disable-pip-version-check --no-input \
    "${cuda[@]/#/--requirement=}" </dev/null; then
  # Without a stamp the next call tries again.
  say "done, but without nvcc: the build leaves out the CUDA kernels and the tests of GPU memory"
  exit 0
fi

echo "$key" >"$stamp"
say "done"
