#!/usr/bin/env bash
# Everything that needs a GPU, from a bare checkout and without a network, in less than ten minutes:
#
#     bench/gpu.sh [--parts build,tests,sanitize,timings,profile] [--seconds 590] [FOLDER]
#
# build     compile the extension in place, for the GPU that is there alone
# tests     the tests of the CUDA and Triton kernels on the device
# sanitize  compute-sanitizer over tiny cases of every kernel: memcheck, racecheck, and synccheck and
#           initcheck where there is time
# timings   bench.gpu: times, bandwidth and memory, checked first
# profile   the kernels of the case that misses its goal by most
#
# A part that fails, or takes longer than its limit, is reported and the next one goes on. FOLDER
# (default: bench/results/gpu-NAME, NAME that of the device) gets a log of each part, timings.json
# and summary.json. The exit status is 0 only if every part that was asked for passed.
# $PYTHON chooses the interpreter, which needs torch, triton, numpy, pytest, ninja and setuptools.
# $FASTLIF_COMMIT names the commit where there is no git checkout to ask.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

python=${PYTHON:-python3}
# Neither what runs on the CPU nor what compiles for other GPUs.
test_selection="(cuda or triton or gpu) and not emulat and not interpreted and not compile and not gpu_script and not race and not accepted and not process_of_its_own"
parts=build,tests,sanitize,timings,profile
total=590
folder=

usage() { sed -n '2,20s/^# \{0,1\}//p' bench/gpu.sh; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --parts) parts=${2:?--parts needs a list}; shift 2 ;;
        --seconds) total=${2:?--seconds needs a number}; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
        *) folder=$1; shift ;;
    esac
done
for part in ${parts//,/ }; do
    case $part in
        build | tests | sanitize | timings | profile) ;;
        *) echo "unknown part $part" >&2; exit 2 ;;
    esac
done
[[ $total =~ ^[0-9]+$ ]] || { echo "--seconds needs a whole number, got $total" >&2; exit 2; }

# Name and compute capability, "NVIDIA H100 80GB HBM3|9.0"; empty without a GPU that torch can use.
describe_device='
import torch
if torch.cuda.is_available():
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    print(f"{name}|{major}.{minor}")'
device=$("$python" -c "$describe_device" 2>/dev/null) || device=
name=${device%%|*}
capability=${device##*|}
if [[ -z $folder ]]; then
    slug=$(printf '%s' "${name:-none}" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
    folder=bench/results/gpu-${slug%-}
fi
mkdir -p "$folder" || exit 2
folder=$(cd "$folder" && pwd) || exit 2
: >"$folder/parts.tsv" || exit 2
rm -f "$folder"/{build,tests,sanitize,timings,profile}.log "$folder"/{timings,summary}.json

record() { # PART STATUS SECONDS NOTE
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$folder/parts.tsv"
    printf '== %s: %s after %s s%s\n' "$1" "$2" "$3" "${4:+ ($4)}"
}

limit=0 # seconds that the part now running may still take
within() { # COMMAND...: run it within the part's time; 124 when that is over
    local left=$((limit - SECONDS))
    ((left > 0)) || return 124
    timeout --kill-after=10 "$left" "$@"
}

wanted() { [[ ,$parts, == *,$1,* ]]; }

run_part() { # NAME SECONDS: run the function part_NAME, its output to a log
    wanted "$1" || return 0
    local start=$SECONDS code=0 status=passed note
    if ((SECONDS >= total)); then
        record "$1" skipped 0 "no time left"
        return 0
    fi
    limit=$((SECONDS + $2 < total ? SECONDS + $2 : total))
    note_file="$folder/.note"
    : >"$note_file"
    echo "== $1"
    "part_$1" >"$folder/$1.log" 2>&1 || code=$?
    note=$(tr '\t\n' '  ' <"$note_file")
    rm -f "$note_file"
    if ((code != 0)); then
        status=failed
        ((code == 124 || code == 137)) && status="timed out"
        tail -n 15 "$folder/$1.log"
    fi
    record "$1" "$status" "$((SECONDS - start))" "${note% }"
}

note() { printf '%s\n' "$*" >>"$note_file"; }

part_build() {
    FASTLIF_CUDA=1 FASTLIF_CUDA_ARCHS=${capability/./} within "$python" setup.py build_ext --inplace
}

part_tests() {
    within "$python" -m pytest tests -k "$test_selection" --durations=10 -p no:cacheprovider
    local code=$?
    note "$(grep -E '[0-9]+ (passed|failed|error)' "$folder/tests.log" | tail -n 1)"
    return "$code"
}

# Every allocation by itself, or an access past the end of a tensor falls into its neighbour.
sanitizer() { # TOOL
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within "$sanitizer_program" --tool "$1" --error-exitcode 9 \
        "$python" -m bench.gpu.sanitize
}

sanitizer_program=
find_sanitizer() {
    local place
    for place in "$(command -v compute-sanitizer)" \
        "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer \
        "${CUDA_HOME:-/usr/local/cuda}"/compute-sanitizer/compute-sanitizer; do
        [[ -x $place ]] && sanitizer_program=$place && return 0
    done
    return 1
}

part_sanitize() {
    local tool code result=0 until=$limit
    find_sanitizer || { echo "no compute-sanitizer on this machine"; note "not found"; return 1; }
    for tool in memcheck racecheck synccheck initcheck; do
        echo "== $tool"
        # The first two must run to their end; the others may take what time they leave.
        limit=$((SECONDS + 55 < until ? SECONDS + 55 : until))
        code=0
        sanitizer "$tool" || code=$?
        if ((code == 124 || code == 137)); then
            note "$tool: out of time"
            [[ $tool == memcheck || $tool == racecheck ]] && ((result == 0)) && result=124
        elif ((code != 0)); then
            note "$tool: errors"
            result=1
        else
            note "$tool: clean"
        fi
    done
    return "$result"
}

part_timings() {
    local left=$((limit - SECONDS - 20))
    within "$python" -m bench.gpu --json "$folder/timings.json" --budget $((left > 1 ? left : 1))
}

part_profile() {
    local kernels='regex:stack|scan|lif|weight|words|pack|recurrent|synapse' code=0
    within "$python" -m bench.gpu.profile --timings "$folder/timings.json" || code=$?
    if command -v ncu >/dev/null; then
        echo "== ncu"
        within ncu --set basic --clock-control none --kernel-name "$kernels" --launch-count 12 \
            "$python" -m bench.gpu.profile --timings "$folder/timings.json" --bare ||
            note "ncu gave nothing, see the log"
    else
        note "no ncu"
    fi
    return "$code"
}

if [[ -z $device ]]; then
    for part in ${parts//,/ }; do
        record "$part" failed 0 "no GPU that torch can use"
    done
    echo "no GPU: $python finds no CUDA device through torch; nothing was run" >&2
else
    echo "$name, compute capability $capability, results in $folder"
    run_part build 150
    run_part tests 170
    run_part sanitize 110
    run_part timings 130
    run_part profile 40
fi

if [[ -f $folder/timings.log ]]; then
    cat "$folder/timings.log"
fi
"$python" -m bench.gpu.summary "$folder"
status=$?
if [[ ! -f $folder/summary.json ]]; then
    echo "the summary could not be written; what is known is in $folder/parts.tsv" >&2
    exit 1
fi
echo "summary in $folder/summary.json, after $SECONDS s"
exit "$status"
