#!/usr/bin/env bash
# Packs what a machine without a network lacks for the GPU check, in a clone of the repository:
#
#   bash benchmarks/gpu/pack.sh [--python 3.12] [--part MIB] [BUNDLE...]
#
# BUNDLE: base dali nvdec rtx; none = all. build/offline/parts/ then holds each bundle in parts
# BUNDLE.00, BUNDLE.01, … that are, each with the tracked files of the repository, at most 60 MiB,
# or each alone at most --part; and BUNDLE.sha256, which travels with every part. Copy them, in one
# transfer or in several, to the same place in a copy of the repository on that machine, where
# offline.sh unpacks a bundle as soon as all its parts are there. PYTHON names the interpreter whose
# pip downloads; --python the version of the one on that machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
limit=$((60 << 20))
python=${PYTHON:-python3}
packages=benchmarks/gpu/offline-packages.txt
version=3.12
part=
while [[ ${1:-} == --* ]]; do
  if [[ $1 == --python && ${2:-} =~ ^3\.[0-9]+$ ]]; then
    version=$2
  elif [[ $1 == --part && ${2:-} =~ ^[1-9][0-9]*$ ]]; then
    part=$(($2 << 20))
  else
    echo "pack.sh: $1 ${2:-}: give --python a version, as 3.12, and --part a number of MiB" >&2
    exit 2
  fi
  shift 2
done
mapfile -t known < <(awk '!/^#/ && NF == 2 && $1 != "image" {print $1}' "$packages" | sort -u)
for bundle in "$@"; do
  if [[ ! " ${known[*]} " == *" $bundle "* ]]; then
    echo "pack.sh: $bundle: no such bundle: choose from ${known[*]}" >&2
    exit 2
  fi
done
for program in xz split sha256sum; do
  if ! command -v "$program" > /dev/null; then
    echo "pack.sh: $program is not installed: install xz and coreutils" >&2
    exit 3
  fi
done

tree=$(git ls-files -z | du -cb --files0-from=- | tail -1 | cut -f1)
part=${part:-$((limit - tree - (1 << 20)))}
if ((part < 1 << 20)); then
  echo "pack.sh: the tracked files take $tree bytes, which leaves no room in $limit" >&2
  exit 3
fi
parts=build/offline/parts
mkdir -p "$parts"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

fetch() {  # BUNDLE FOLDER: its wheels, unpacked, for the machine that runs them
  local requirements
  mapfile -t requirements < <(awk -v bundle="$1" '$1 == bundle {print $2}' "$packages")
  local platforms=()
  for glibc in manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${glibc}_x86_64")
  done
  "$python" -m pip install --quiet --root-user-action ignore --no-deps --no-compile --only-binary=:all: \
    --implementation cp --python-version "$version" "${platforms[@]}" \
    --target "$2" "${requirements[@]}"
}

complete_rtx() {  # FOLDER: the name `tensorrt_rtx` and its metadata come from an sdist
  local release
  release=$(awk '$1 == "rtx" {sub(/.*==/, "", $2); print $2; exit}' "$packages")
  mkdir -p "$1/tensorrt_rtx" "$1/tensorrt_rtx-$release.dist-info"
  printf 'from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n' \
    > "$1/tensorrt_rtx/__init__.py"
  printf 'Metadata-Version: 2.1\nName: tensorrt-rtx\nVersion: %s\n' "$release" \
    > "$1/tensorrt_rtx-$release.dist-info/METADATA"
}

slim_dali() {  # FOLDER: what other interpreters load, and what nobody runs
  find "$1/nvidia/dali" -name 'backend_impl*' ! -name "*-${version/./}-*" -delete
  rm -rf "$1/nvidia/dali/include" "$1/nvidia/dali/test"
}

if [ $# = 0 ]; then set -- "${known[@]}"; fi
for bundle in "$@"; do
  site=$temporary/$bundle
  fetch "$bundle" "$site"
  case $bundle in
    dali) slim_dali "$site" ;;
    rtx) complete_rtx "$site" ;;
  esac
  echo "$version" > "$site/.packed-for-python"
  rm -f "$parts/$bundle".*
  tar -C "$site" -cf - . | xz -T0 --x86 --lzma2=preset=3 |
    split -b "$part" -d -a 2 - "$parts/$bundle."
  (cd "$parts" && sha256sum "$bundle".[0-9][0-9] > "$temporary/sums")
  mv "$temporary/sums" "$parts/$bundle.sha256"
  rm -rf "$site"
done
echo "tracked files of the repository: $((tree >> 20)) MiB; parts for Python $version:"
(cd "$parts" && du -b -- *.[0-9][0-9] | awk '{printf "  %-12s %5.1f MiB\n", $2, $1 / 1048576}')
