#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, in stages that can be run alone:
#
#   benchmarks/run_on_gpu.sh OUTPUT_FOLDER [build|tests|sanitize|ceilings|gemm|conv|models|stream]...
#
# benchmarks/README.md says what each writes. BNN_EXT_COMMIT names the commit of a copy without .git.
set -uo pipefail

stages=(build tests sanitize ceilings gemm conv models stream)

build() {
  local package
  for package in torch setuptools ninja; do
    python3 -c "import $package" || {
      echo "building bnn_ext needs the Python package $package" >&2
      return 1
    }
  done
  BNN_EXT_CUDA=1 python3 -m pip install --disable-pip-version-check --no-build-isolation \
    --no-deps --verbose .. && python3 -m bnn_ext
}
tests() { python3 -m gpu.run_tests "$output/tests.json"; }
sanitize() { python3 -m gpu.sanitize "$output/sanitize.json"; }
ceilings() { python3 -m gpu.ceilings "$output/ceilings.json"; }
gemm() { limited python3 bench_gemm.py --device cuda --output "$output/gemm.json"; }
conv() { limited python3 bench_conv.py --device cuda --output "$output/conv.json"; }
models() { limited python3 bench_models.py --device cuda --output "$output/models.json"; }
stream() { limited python3 -m gpu.stream --output "$output/stream.json"; }

# A kernel may hang; what was measured before is in the file.
limited() { timeout --kill-after=10 560 "$@"; }

usage() {
  echo "usage: benchmarks/run_on_gpu.sh OUTPUT_FOLDER [STAGE...], with stages of: ${stages[*]}" >&2
  exit 2
}

[[ $# -ge 1 && $1 != -* ]] || usage
output=$1
shift
for stage in "$@"; do
  [[ " ${stages[*]} " == *" $stage "* ]] || { echo "unknown stage: $stage" >&2; usage; }
done
[[ $# -eq 0 ]] || stages=("$@")
mkdir -p "$output" && output=$(cd "$output" && pwd) || exit 1

# Not the repository's root: there Python would import the package's sources, without the operators.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
export PYTHONUNBUFFERED=1
failed=0
verdicts=()
for stage in "${stages[@]}"; do
  echo "=== $stage"
  SECONDS=0
  verdict=done
  "$stage" 2>&1 | tee "$output/$stage.log" || { verdict=FAILED; failed=1; }
  verdicts+=("$stage $verdict after $SECONDS s")
done
printf '%s\n' "=== all" "${verdicts[@]}"
exit "$failed"
