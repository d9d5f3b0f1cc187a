#!/usr/bin/env bash
# One door: ./build.sh setup | demo | test | lint | compile | new-component | images | bench
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
venv=$here/.venv

usage() {
  cat <<'EOF'
usage: ./build.sh COMMAND [ARGUMENTS]

  setup                    make .venv and install everything (the other commands do it themselves)
  demo [--dataset DIR]     run everything once, on phantoms or on a Decathlon-format folder
  test [--slow] [PYTEST…]  lint, check compiled/, run the tests
  lint                     ruff, mypy and the checks of imports and workflows
  compile                  write compiled/*.yaml, with the default settings
  compile --settings F     write a site's own set to site/ (another folder: -o DIR)
  new-component NAME [--gpu] [--shared-memory] [--secret KIND]…
                           make a new stage: component, pipeline and test
  images [--registry R] [--base IMAGE] [--torch VERSION] [--push]
                           build and tag the container images
  bench [NAME…]            speed and memory against the tools used directly, as ratios
EOF
}

# What a stage or a test needs from the system: command to Debian package.
need() {
  local missing=()
  while [ $# -gt 0 ]; do
    [ -n "$(PATH=$PATH:/usr/sbin type -P "$1")" ] || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # services must not start by themselves: the tests start their own
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      "${missing[@]}" >/dev/null
  else
    echo "Please install what is missing, then run this again:"
    echo "  sudo apt-get install ${missing[*]}"
    exit 1
  fi
}

find_python() {
  for python in python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null &&
      "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "Python 3.11 or 3.12 is needed: sudo apt-get install python3 python3-venv" >&2
  exit 1
}

setup() {
  local python stamp
  stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
  if [ -f "$venv/.complete" ] && [ "$(cat "$venv/.complete")" = "$stamp" ]; then return; fi
  python=$(find_python)
  echo "setting up .venv with $($python --version) (2.4 GB with a CPU build of torch)"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then need ensurepip "$python-venv"; fi
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e '.[runtime,dev]'
  "$venv/bin/pip" check
  echo "$stamp" >"$venv/.complete"
}

lint() {
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  "$venv/bin/mypy"
  "$venv/bin/lint-imports" >/dev/null || "$venv/bin/lint-imports"
  "$venv/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
  "$venv/bin/zizmor" --offline --quiet --pedantic .github
}

command=${1:-}
[ $# -gt 0 ] && shift
case "$command" in
  setup)
    setup
    echo "ready: .venv/bin/medseg --help"
    ;;
  demo)
    setup
    exec "$venv/bin/medseg" demo "$@"
    ;;
  lint)
    setup
    lint
    ;;
  compile)
    setup
    if [ $# -eq 0 ]; then
      unset "${!MEDSEG_PLATFORM_@}" # what is committed is made with the defaults
      set -- --output compiled --catalogue docs/components.md --manifests manifests
    fi
    exec "$venv/bin/medseg" compile "$@"
    ;;
  test)
    need Orthanc orthanc chromium chromium storescu dcmtk dciodvfy dicom3tools \
      dockerd docker.io docker-registry docker-registry mmdebstrap mmdebstrap \
      skopeo skopeo umoci umoci kubectl kubernetes-client
    [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || need orthanc-dicomweb orthanc-dicomweb
    setup
    lint
    if [ "${1:-}" = --slow ]; then
      how=(-m "") # one at a time: a long training is to have all cores
      shift
    else # three at once, on two cores: most of a test's time goes to imports, some to waiting
      how=(-n 3 --no-loadscope-reorder)
      export OMP_NUM_THREADS=1 # threads of several tests would wait for each other
    fi
    export PATH="$venv/bin:$PATH" # the tests call programs that came with packages
    exec pytest --durations=10 "${how[@]}" "$@"
    ;;
  new-component)
    setup
    "$venv/bin/python" scaffold/new_component.py "$@"
    "$0" compile
    echo "Now write what it does; then: ./build.sh lint, ./build.sh test tests/unit/components"
    ;;
  images)
    setup
    exec images/build.sh "$@"
    ;;
  bench)
    need dcm2niix dcm2niix # what the conversion is measured against
    setup
    exec "$venv/bin/python" -m tests.bench "$@"
    ;;
  "" | -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
