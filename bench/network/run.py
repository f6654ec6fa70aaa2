#!/usr/bin/env python3
"""Communication beside computation (zero.overlap_comm), over a real TCP network on one machine.

    bench/network/run.py --sizes S,M --stages 2,3 --rates 1gbit,10gbit

Two network namespaces, joined by a pair of veth devices whose speed a token bucket limits, are two
hosts of one core each: MPI reaches the other only by TCP, and Shoal sees two hosts. Needs root,
iproute2, Open MPI and two cores; cleans up after itself. Each case runs with and without overlap in
turns; each measurement is printed as a JSON line and appended to --results, and the table follows.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "bench", "profile"))
import step as job  # noqa: E402
from step import FIRST, STEPS  # noqa: E402

HOSTS = [f"shoal-{os.getpid()}-a", f"shoal-{os.getpid()}-b"]
ADDRESSES = ["10.77.31.1", "10.77.31.2"]

def sh(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def set_up(rate):
    ends = ["veth0", "veth1"]
    for host in HOSTS:
        sh("ip", "netns", "add", host)
        sh("ip", "-n", host, "link", "set", "lo", "up")
    sh("ip", "-n", HOSTS[0], "link", "add", ends[0], "type", "veth", "peer", "name", ends[1],
       "netns", HOSTS[1])  # fmt: skip
    for host, end, address in zip(HOSTS, ends, ADDRESSES):
        sh("ip", "-n", host, "address", "add", address + "/24", "dev", end)
        sh("ip", "-n", host, "link", "set", end, "up")
        if rate != "none":
            sh("tc", "-n", host, "qdisc", "add", "dev", end, "root", "tbf", "rate", rate,
               "burst", "512kb", "latency", "50ms")  # fmt: skip


def tear_down():
    for host in HOSTS:
        sh("ip", "netns", "del", host, check=False)


def agent(folder):
    """What mpirun calls in place of ssh: `agent ADDRESS COMMAND...`."""
    path = os.path.join(folder, "agent.sh")
    cases = "".join(
        f"  {address}) host={host}; core={core} ;;\n"
        for core, (address, host) in enumerate(zip(ADDRESSES, HOSTS))
    )
    with open(path, "w") as file:
        file.write(
            f'#!/bin/sh\naddress=$1; shift\ncase "$address" in\n{cases}esac\n'
            "exec taskset -c $core ip netns exec $host unshare --uts "
            'sh -c "hostname $host; $*"\n'
        )
    os.chmod(path, 0o755)
    return path


def measure(case, args, folder):
    recipe, out = job.write_recipe(
        folder,
        case["size"],
        dtype=case["dtype"],
        stage=case["stage"],
        overlap=str(case["overlap"]).lower(),
    )
    # The first host is where mpirun itself runs.
    command = ["taskset", "-c", "0", "ip", "netns", "exec", HOSTS[0], "unshare", "--uts", "sh", "-c",
               f"hostname {HOSTS[0]}; exec mpirun --allow-run-as-root"
               f" --mca plm_rsh_agent {agent(folder)} --mca btl tcp,self --mca pml ob1"
               f" --mca btl_tcp_if_include {ADDRESSES[0]}/24"
               f" --mca oob_tcp_if_include {ADDRESSES[0]}/24 --bind-to none"
               f" --host {ADDRESSES[0]}:1,{ADDRESSES[1]}:1 -np 2"
               f" -x OMP_NUM_THREADS=1 {args.shoal} run {recipe}"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
    if result.returncode != 0:
        raise SystemExit(f"{case}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    steps, profile = job.read_metrics(out)
    mean = lambda key: job.mean_over_ranks(profile, key) / STEPS
    trace = os.path.join(out, f"trace-{FIRST}-{FIRST + STEPS - 1}.json")
    if args.keep_traces:
        overlap = "overlap" if case["overlap"] else "no-overlap"
        name = f"{case['size']}-zero{case['stage']}-{case['rate']}-{overlap}.json"
        shutil.copy(trace, os.path.join(args.keep_traces, name))
    return dict(
        case,
        step_seconds=statistics.median(step["step_seconds"] for step in steps),
        bytes_sent=steps[-1]["bytes_sent"],
        exposed=mean("communication_seconds") + mean("waiting_seconds"),
        background=mean("background_communication_seconds"),
        hidden=mean("hidden_communication_seconds"),
        last_loss=steps[-1]["loss"],
    )


def table(results):
    """Medians over repeats, a line a case."""
    cases = {}
    for r in results:
        key = (r["rate"], r["size"], r["dtype"], r["stage"])
        cases.setdefault(key, {}).setdefault(r["overlap"], []).append(r)
    lines = [
        "| link | size | ZeRO | step, no overlap | step, overlap | gain | communication left "
        "without | with overlap | in the background | of it hidden |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (rate, size, dtype, stage), by in cases.items():
        if len(by) < 2:
            continue
        of = lambda overlap, key: statistics.median(r[key] for r in by[overlap])
        off, on = of(False, "step_seconds"), of(True, "step_seconds")
        background = of(True, "background")
        lines.append(
            f"| {rate} | {size} {dtype} | {stage} | {off:.3f} s | {on:.3f} s "
            f"| {100 * (off - on) / off:+.0f} % | {of(False, 'exposed'):.3f} s "
            f"| {of(True, 'exposed'):.3f} s | {background:.3f} s "
            f"| {100 * of(True, 'hidden') / background if background else 0:.0f} % |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shoal", default=os.path.join(ROOT, "build/release/shoal"))
    parser.add_argument("--sizes", default="S,M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stages", default="2,3")
    parser.add_argument("--rates", default="1gbit", help="of tc's tbf; none: no limit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", help="file that measurements are appended to")
    parser.add_argument("--from-results", action="store_true", help="only the table of --results")
    parser.add_argument("--keep-traces", help="folder for a trace of every case")
    parser.add_argument("--timeout", type=float, default=300)
    args = parser.parse_args()
    results = []
    if args.from_results:
        with open(args.results) as file:
            print(table([json.loads(line) for line in file]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for rate in args.rates.split(","):
            try:
                set_up(rate)
                for repeat in range(args.repeats):
                    for size in args.sizes.split(","):
                        for stage in args.stages.split(","):
                            for overlap in (repeat % 2 == 0, repeat % 2 == 1):
                                case = dict(rate=rate, size=size, dtype=args.dtype,
                                            stage=int(stage), overlap=overlap)  # fmt: skip
                                results.append(measure(case, args, folder))
                                print(json.dumps(results[-1]), flush=True)
                                if args.results:
                                    with open(args.results, "a") as file:
                                        file.write(json.dumps(results[-1]) + "\n")
            finally:
                tear_down()
    print(table(results))


if __name__ == "__main__":
    main()
