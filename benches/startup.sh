#!/usr/bin/env bash
# Start-up: `atomic-rs --version` beside `ostree --version`, in turn, in one run. Only the
# latter loads libostree for it. Prints medians of 101 and their ratio.
set -euo pipefail
program=${PROGRAM:-target/release/atomic-rs}
python3 - "$program" <<'PY'
import statistics, subprocess, sys, time
times = {"atomic-rs": [], "ostree": []}
commands = {"atomic-rs": [sys.argv[1], "--version"], "ostree": ["ostree", "--version"]}
for _ in range(101):
    for name, command in commands.items():
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times[name].append(time.perf_counter() - start)
ours, theirs = (statistics.median(times[name]) for name in ("atomic-rs", "ostree"))
print(f"atomic-rs --version {ours * 1000:.1f} ms, ostree --version {theirs * 1000:.1f} ms, ratio {ours / theirs:.2f}")
PY
