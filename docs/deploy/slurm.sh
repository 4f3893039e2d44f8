#!/usr/bin/env bash
# A Ray cluster for the length of a Slurm job, and `vpo materialize` on its first node:
#
#   sbatch docs/deploy/slurm.sh            all assets
#   sbatch docs/deploy/slurm.sh videos     some of them
#
# A job that ends early is submitted again and does what is missing. Not run under Slurm: docs/cluster.md says what of it
# was tried. Change the requests below, and SHARED.
#SBATCH --job-name=vpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
set -euo pipefail

SHARED="${SHARED:-$HOME/vpo}"   # a folder that all nodes see under this path
export VPO_HOME="$SHARED/home"
export VPO_PROFILE="${VPO_PROFILE:-$SHARED/profile.yaml}"   # compute.address: auto, and trainer.launcher: ray
export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$SHARED/ray-token-$SLURM_JOB_ID"
PORT="${RAY_PORT:-6379}"
cpus="$SLURM_CPUS_PER_TASK"
gpus="${SLURM_GPUS_ON_NODE:-0}"

# shellcheck source=/dev/null
source "$SHARED/venv/bin/activate"   # the same environment on every node

mkdir -p "$VPO_HOME"
(umask 077; python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')"

steps=()
finish() {
  trap - EXIT TERM
  if [[ -n "${run:-}" ]]; then
    kill -TERM "$run" 2>/dev/null || true   # a training saves its state, then the run ends
    wait "$run" || true
  fi
  kill "${steps[@]}" 2>/dev/null || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'finish; exit 143' TERM

srun --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --block --node-ip-address="$address" --port="$PORT" --num-cpus="$cpus" --num-gpus="$gpus" &
steps+=("$!")
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$node" \
    ray start --block --address="$address:$PORT" --num-cpus="$cpus" --num-gpus="$gpus" &
  steps+=("$!")
done

# The batch script runs on the first node, which is the cluster's head.
for _ in $(seq 120); do
  alive="$(python -c 'import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$address:$PORT" 2>/dev/null || echo 0)"
  [[ "$alive" -ge "${#nodes[@]}" ]] && break
  sleep 2
done
[[ "$alive" -ge "${#nodes[@]}" ]] || { echo "only $alive of ${#nodes[@]} Ray nodes came up" >&2; exit 1; }

vpo materialize "$@" &
run="$!"
wait "$run"
