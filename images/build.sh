#!/usr/bin/env bash
# Builds and tags the images: ./build.sh images [--registry R] [--base IMAGE] [--torch VERSION]
#          [--only IMAGE] [--push]
#
# All wheels are made on this machine first, so that pip's own configuration (index, proxy,
# certificates) is the user's and nothing of it gets into an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

registry=
python=${PYTHON:-.venv/bin/python}
base=
torch=
only=
push=
while [ $# -gt 0 ]; do
  case "$1" in
    --registry) registry=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --torch) torch=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --push) push=1 && shift ;;
    *)
      sed -n 's/^# Builds and tags the images: /usage: /p; s/^#          /  /p' "$0" >&2
      exit 2
      ;;
  esac
done
registry=${registry:-$("$python" -c '
from medseg.kubeflow.settings import load_settings
print(load_settings().image("").rpartition("/")[0])')}
base=${base:-python:$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-slim-bookworm}

# A client with BuildKit: docker.io's own, or a newer one with its buildx plugin.
docker=${DOCKER:-}
for candidate in ${docker:-$(type -ap docker)}; do
  if "$candidate" buildx version >/dev/null 2>&1 ||
    [[ $("$candidate" --version) =~ version\ (1[89]|2[0-2])\. ]]; then
    docker=$candidate
    break
  fi
done
[ -n "$docker" ] || {
  echo "Please install Docker with BuildKit (sudo apt-get install docker.io)." >&2
  exit 1
}
"$docker" info >/dev/null || exit 1

out=build/images
wheels=$out/wheels
mkdir -p "$out/sbom" "$out/source"

# --- wheels of all dependencies, kept until these change
requirements() { # NAME EXTRA…
  "$python" - "${@:2}" >"$out/$1.txt" <<'PYTHON'
import pathlib
import sys
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for extra in sys.argv[1:]:
    wanted = project["dependencies"] if extra == "-" else project["optional-dependencies"][extra]
    print(*wanted, sep="\n")
PYTHON
}
requirements builder -
requirements runtime - runtime
requirements map map
sed "s/^torch==.*/torch==${torch:-$(sed -n 's/^torch==//p' constraints.txt)}/" constraints.txt \
  >"$out/constraints.txt"

collect() { # FOLDER NAME [MORE FOR PIP]
  local folder=$1 name=$2 stamp
  shift 2
  stamp=$({ cat "$out/$name.txt" "$out/constraints.txt" && "$python" --version; } | sha256sum)
  if [ "$(cat "$folder.complete" 2>/dev/null)" = "$stamp" ]; then return; fi
  echo "collecting the wheels of $name"
  rm -rf "$folder"
  mkdir -p "$folder"
  "$python" -m pip wheel -qq --wheel-dir "$folder" --constraint "$out/constraints.txt" \
    --requirement "$out/$name.txt" "$@"
  cp "$out"/*.txt "$folder"
  echo "$stamp" >"$folder.complete"
}
collect "$wheels" runtime pip
[ -e "$wheels/pip.whl" ] || cp "$wheels"/pip-*.whl "$wheels/pip.whl"
collect "$wheels-map" map --find-links "$wheels"

# --- the package itself
version=$("$python" -c 'import medseg; print(medseg.__version__)')
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-dirty
rm -rf "$out/source" build/lib build/bdist.*
"$python" -m pip wheel -qq --no-deps --wheel-dir "$out/source" .

build() { # IMAGE FOLDER TARGET [ARGUMENTS]
  local image=$1 folder=$2 target=$3
  shift 3
  echo "building $registry/$image:$version"
  DOCKER_BUILDKIT=1 "$docker" build --quiet --network host --file "images/$folder/Dockerfile" \
    ${target:+--target "$target"} --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --tag "$registry/$image:$version" --tag "$registry/$image:$version-$revision" "$@" .
}

bill_of_materials() { # IMAGE ; read by tools that stay outside the image
  local image=$registry/$1:$version bom=$out/sbom/$1-$version tools
  tools=$(dirname "$python")
  "$docker" run --rm --network none --entrypoint python3 "$image" -c '
from importlib.metadata import distributions
print("\n".join(sorted(f"{d.name}=={d.version}" for d in distributions())))' |
    "$tools/cyclonedx-py" requirements --output-reproducible --of JSON -o "$bom.python.cdx.json" -
  "$docker" run --rm --network none --entrypoint tar "$image" \
    -cC / var/lib/dpkg/status usr/lib/os-release >"$bom.tar"
  # it warns of much that does not matter, but must not fail without a word
  "$tools/debsbom" generate --root "$bom.tar" -t cdx --out "$bom.debian" >"$bom.log" 2>&1 || {
    cat "$bom.log" >&2
    exit 1
  }
  rm "$bom.tar" "$bom.log"
}

bills=() # made while the next image is built
build dependencies runtime dependencies --build-arg "BASE_IMAGE=$base"
for image in ${only:-runtime builder map-dicom map-nifti}; do
  case "$image" in
    runtime) build runtime runtime runtime --build-arg "BASE_IMAGE=$base" ;;
    builder) build builder builder "" --build-arg "BASE_IMAGE=$base" ;;
    *) build "$image" map "$image" --build-arg "DEPENDENCIES_IMAGE=$registry/dependencies:$version" ;;
  esac
  bill_of_materials "$image" &
  bills+=($!)
  [ -z "$push" ] || "$docker" push --quiet "$registry/$image:$version"
done
for bill in "${bills[@]}"; do wait "$bill"; done
"$docker" images --filter "label=org.opencontainers.image.revision=$revision" \
  --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}'
