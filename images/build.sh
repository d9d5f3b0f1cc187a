#!/usr/bin/env bash
# Builds and tags the images: ./build.sh images [--registry R] [--base IMAGE] [--torch VERSION] [--push]
#
# All wheels are made on this machine first, so that pip's own configuration (index, proxy,
# certificates) is the user's and nothing of it gets into an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

registry=${MEDSEG_PLATFORM_REGISTRY:-kfp-medseg}
python=${PYTHON:-.venv/bin/python}
base=
torch=
push=
while [ $# -gt 0 ]; do
  case "$1" in
    --registry) registry=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --torch) torch=$2; shift 2 ;;
    --push) push=1 && shift ;;
    *)
      echo "usage: ./build.sh images [--registry R] [--base IMAGE] [--torch VERSION] [--push]" >&2
      exit 2
      ;;
  esac
done
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
stamp=$({ cat "$out"/*.txt && "$python" --version; } | sha256sum | cut -c1-16)
if [ "$(cat "$wheels.complete" 2>/dev/null)" != "$stamp" ]; then
  echo "collecting wheels"
  rm -rf "$wheels"
  mkdir -p "$wheels"
  "$python" -m pip wheel -qq --wheel-dir "$wheels" --constraint "$out/constraints.txt" \
    --requirement "$out/runtime.txt" --requirement "$out/map.txt" pip
  cp "$out"/*.txt "$wheels"
  cp "$wheels"/pip-*.whl "$wheels/pip.whl"
  echo "$stamp" >"$wheels.complete"
fi

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

bill_of_materials() { # IMAGE
  local image=$registry/$1:$version
  # what the image itself says is installed, read by tools that stay outside it
  "$docker" run --rm --network none --entrypoint python3 "$image" -c '
from importlib.metadata import distributions
print("\n".join(sorted(f"{d.name}=={d.version}" for d in distributions())))' |
    "$python" -m cyclonedx_py requirements --output-reproducible --of JSON \
      -o "$out/sbom/$1-$version.python.cdx.json" -
  "$docker" run --rm --network none --entrypoint cat "$image" /var/lib/dpkg/status |
    "$python" -m debsbom generate --from-pkglist -t cdx -o "$out/sbom/$1-$version.debian" >/dev/null
}

build dependencies runtime dependencies --build-arg "BASE_IMAGE=$base"
build runtime runtime runtime --build-arg "BASE_IMAGE=$base"
build builder builder "" --build-arg "BASE_IMAGE=$base"
for image in map-dicom map-nifti; do
  build "$image" map "$image" --build-arg "DEPENDENCIES_IMAGE=$registry/dependencies:$version"
done
for image in runtime builder map-dicom map-nifti; do
  bill_of_materials "$image"
  [ -z "$push" ] || "$docker" push --quiet "$registry/$image:$version"
done
"$docker" images --filter "label=org.opencontainers.image.revision=$revision" \
  --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}'
