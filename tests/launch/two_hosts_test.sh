#!/usr/bin/env bash
# Training on two hosts that are network namespaces, two ranks each, against one rank: two_hosts_test.sh RIDGE SOURCE.
# Exit code 77: network namespaces cannot be made here.
set -euo pipefail
ridge=$1 source=$2
command -v ip >/dev/null || { echo "skipped: there is no ip: install iproute2"; exit 77; }
probe=ridge-probe-$$
ip netns add "$probe" || { echo "skipped: this process may not make network namespaces"; exit 77; }
ip netns del "$probe"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stop() { printf 'two_hosts_test: %s\n' "$*" >&2; [[ ! -e $work/err ]] || cat "$work/err" >&2; exit 1; }
export RIDGE_THREADS=1 ASAN_OPTIONS=detect_leaks=0  # of a sanitized build: Open MPI keeps memory

"$ridge" sample-text --kind tales --bytes 40000 --seed 3 --out "$work/tales.txt" >/dev/null 2>&1
"$ridge" train-tokenizer --text "$work/tales.txt" --vocab-size 300 --out "$work/tokenizer" >/dev/null 2>&1
cat >"$work/run.yaml" <<YAML
model:
  tokenizer: $work/tokenizer
  arch: {architectures: [LlamaForCausalLM], model_type: llama, hidden_size: 64, intermediate_size: 172, num_hidden_layers: 5,
         num_attention_heads: 8, num_key_value_heads: 4, vocab_size: 300, max_position_embeddings: 512,
         rms_norm_eps: 1.0e-5, tie_word_embeddings: true, bos_token_id: 0, eos_token_id: 0}
data: {train: [$work/tales.txt], sequence_length: 32, seed: 5}
optim: {lr: 3.0e-3}
train: {steps: 2, global_batch: 4, precision: f32, seed: 7}
YAML
on_hosts() {
  "$source/launch/cluster/emulate-hosts" --hosts 2 --ranks-per-host 2 -- \
    "$ridge" train "$work/run.yaml" "output=$work/hosts" parallel.tp=2 parallel.shard=2 "$@"
}
losses() { sed -n 's/.*"loss":\([-+.0-9e]*\).*/\1/p' "$1/metrics.jsonl"; }

"$ridge" train "$work/run.yaml" "output=$work/one" >"$work/out" 2>"$work/err" || stop "one rank failed"
on_hosts >/dev/null 2>"$work/err" || stop "four ranks on two hosts failed"
for line in "rank 0 on emulated0: shard 0, tp 0" "rank 1 on emulated0: shard 0, tp 1" \
  "rank 2 on emulated1: shard 1, tp 0" "rank 3 on emulated1: shard 1, tp 1"; do
  grep -qxF "$line" "$work/err" || stop "no line says '$line'"
done
paste <(losses "$work/one") <(losses "$work/hosts") >"$work/losses"
awk '{ d = $1 - $2; if (d < 0) d = -d; if (NF == 2 && $1 > 1 && d <= 1e-5) good++ } END { exit !(NR == 2 && good == 2) }' \
  "$work/losses" || stop "losses of one rank and of two hosts: $(tr '\n\t' '; ' <"$work/losses")"

code=0
on_hosts train.global_batch=3 >"$work/out" 2>"$work/err" || code=$?
((code == 1)) || stop "a batch that ranks do not divide: exit code $code, not 1"
grep -q '^ridge: .*3 is not divisible by 2 data-parallel ranks' "$work/err" || stop "the complaint of that batch is missing"
