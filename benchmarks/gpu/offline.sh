#!/usr/bin/env bash
# Runs steps of the GPU check on a machine without a network, with its own Python and PyTorch, and
# leaves a report, whatever dies:
#
#   bash benchmarks/gpu/offline.sh SECONDS STEP...
#
# What pack.sh made is unpacked; nothing is downloaded. $OUT, or build/gpu-check/out, then holds
# report.json and report.txt, log.txt (everything that was printed), probe.txt (the machine), and
# traces. Reports of earlier calls on the same machine are added to. PYTHON names the interpreter.
# Exit code: 0 = something passed and nothing failed, 1 = a step failed, 2 = a wrong call,
# 4 = nothing could be checked, 124 = the time was over, 130 or 143 = interrupted, 137 = it had to
# be killed.
set -uo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[0-9]+$ ]]; then
  echo "offline.sh: usage: offline.sh SECONDS STEP...: see gpu.check --list" >&2
  exit 2
fi
seconds=$1
shift
cd "$(dirname "$0")/../.." || exit
root=$PWD
python=${PYTHON:-python3}
out=${OUT:-$root/build/gpu-check/out}
site=$root/build/offline/site
kept=$root/build/gpu-check  # ignored by git: the next call finds it
mkdir -p "$site" "$kept" || exit 2
if ! { mkdir -p "$out" && : > "$out/log.txt"; } 2> /dev/null; then
  echo "offline.sh: $out: no report can be written there: name another folder in OUT" >&2
  exit 2
fi
out=$(cd "$out" && pwd)
code=1
child=
printer=

# shellcheck disable=SC2329  # what traps call uses it
gone() {  # PROCESS: waits 5 s for its end
  for _ in {1..50}; do
    kill -0 "$1" 2> /dev/null || return 0
    sleep 0.1
  done
  return 1
}
# shellcheck disable=SC2329  # a trap calls it
finish() {  # in every case, and only once
  trap - EXIT
  if [ -n "$printer" ]; then
    exec 3>&-
    gone "$printer" || kill "$printer"
  fi
  if [ -f "$out/report.json" ]; then
    cp -f "$out/report.json" "$kept/report.json"
  else
    printf '{"steps": {}, "exit": %d}\n' "$code" > "$out/report.json"
  fi
  if [ ! -f "$out/report.txt" ]; then
    printf 'No step was begun, exit code %d: see log.txt\n' "$code" > "$out/report.txt"
  fi
  cp -f "$kept"/trace-*.json "$out/" 2> /dev/null
  echo "exit $code after $SECONDS s; the report is in $out" | tee -a "$out/log.txt"
  exit "$code"
}
# shellcheck disable=SC2329  # a trap calls it
stop() {  # CODE
  code=$1
  if [ -n "$child" ]; then
    kill -s INT "$child" 2> /dev/null
    gone "$child" || kill -s KILL -- "-$child"
  fi
  exit "$code"
}
trap finish EXIT
trap 'stop 130' INT
trap 'stop 143' TERM HUP
rm -f "$out/report.json" "$out/report.txt"
if [ -f "$kept/report.json" ]; then cp "$kept/report.json" "$out/report.json"; fi

unpack() {  # every bundle whose parts are all there, once
  local sums name
  for sums in "$root"/build/offline/parts/*.sha256; do
    [ -f "$sums" ] || continue
    name=$(basename "$sums" .sha256)
    if cmp -s "$sums" "$site/.$name.sha256"; then continue; fi
    if (cd "$(dirname "$sums")" && sha256sum --check --quiet "$name.sha256"); then
      cat "${sums%.sha256}".[0-9][0-9] | "$python" -c '
import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1], filter="tar")
' "$site" && cp "$sums" "$site/.$name.sha256" && echo "unpacked: $name"
    else
      echo "not unpacked: $name: not all of its parts are there, or whole"
    fi
  done
}

link() {  # vicort as a package of links, with the metadata that versions are compared with
  local room
  mkdir -p "$site/vicort" "$site/vicort.dist-info"
  for room in runtime export configs benchmarks engines; do
    ln -sfn "$root/$room" "$site/vicort/$room"
  done
  "$python" -c '
import tomllib
from pathlib import Path
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print("Metadata-Version: 2.1", "Name: vicort", "Version: " + project["version"], sep="\n")
for wanted in project["dependencies"]:
    print("Requires-Dist:", wanted)
for extra, requirements in project["optional-dependencies"].items():
    for wanted in requirements:
        print(f"Requires-Dist: {wanted}; extra == \"{extra}\"")
' > "$site/vicort.dist-info/METADATA"
}

probe() {  # each line may hang or be missing
  date -u
  uname -r
  timeout 20 nvidia-smi \
    --query-gpu=name,driver_version,memory.total,pstate,clocks.sm --format=csv,noheader
  free -g | sed -n 2p
  df -h . | tail -1
  nproc
  ulimit -l
  timeout 20 g++ --version | head -1
  timeout 20 nvcc --version | tail -1
  timeout 60 "$python" -m vicort.benchmarks.gpu.cuda_toolkit
  ldconfig -p | grep -E 'libnvcuvid|libnvidia-encode|libcuda\.so'
  command -v ncu compute-sanitizer
  timeout 60 "$python" -c '
import sys
from importlib.metadata import distributions
names = {f"{each.name} {each.version}" for each in distributions()}
print(sys.version, *sorted(names, key=str.lower), sep="\n")
'
}

export PYTHONUNBUFFERED=1 PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
{
  unpack
  link
} 2>&1 | tee -a "$out/log.txt"
probe > "$out/probe.txt" 2>&1

here=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
packed=$(cat "$site/.packed-for-python" 2> /dev/null || echo "$here")
if [ "$here" != "$packed" ]; then
  echo "offline.sh: packed for Python $packed, and $python is ${here:-none}: name another one in" \
    "PYTHON, or pack with --python $here" | tee -a "$out/log.txt"
  code=2
  exit
fi

left=$((seconds - SECONDS - 10))  # for the last words
if ((left < 5)); then
  echo "offline.sh: $seconds s are too few: preparing took $SECONDS" | tee -a "$out/log.txt"
  code=124
  exit
fi
steps=()
for step in "$@"; do steps+=(--only "$step"); done
exec 3> >(exec tee -a "$out/log.txt")
printer=$!
timeout -s INT -k 5 "$left" "$python" -m vicort.benchmarks.gpu.check \
  --within "$((left - 5))" --cache "$kept" --out "$out/report.json" "${steps[@]}" \
  >&3 2>&1 3>&- &
child=$!
wait "$child"
code=$?
child=
exit "$code"
