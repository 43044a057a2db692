"""Fuzzes the engine: `python tests/fuzz SECONDS [TARGET ...]`, from the project's root; `make fuzz` does.

Builds tests/probe with clang (flavour `fuzz`: libFuzzer, AddressSanitizer, UndefinedBehaviorSanitizer) into build/fuzz, gives
each target its share of the time, and prints what each did. Found inputs go to build/fuzz/TARGET; `--keep` adds the smallest
set of them that covers the same to tests/fuzz/corpus. Ends with 1, and the path of the input, where a rule was broken.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILT = ROOT / "build" / "fuzz"
TARGETS = ("request_head", "response_head", "chunked", "conversation")
SHARES = {"conversation": 3}  # of the time; the others have 1


def ask_clang(*arguments: str) -> str:
    return subprocess.run(["clang", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def build() -> None:
    clang = {"LLMPIPE_BUILD": "fuzz", "CC": "clang", "LDSHARED": "clang -shared"}
    command = [sys.executable, "tests/probe/setup.py", "--quiet", "build_ext", "--force"]
    folders = ["--build-lib", str(BUILT / "lib"), "--build-temp", str(BUILT / "temp")]
    result = subprocess.run([*command, *folders], cwd=ROOT, env={**os.environ, **clang}, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)


def fuzz(target: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs libFuzzer in a process of its own."""
    runtime = Path(ask_clang("--print-resource-dir")) / "lib/linux/libclang_rt.asan-x86_64.so"
    code = "import sys, llmpipe_world; sys.exit(llmpipe_world.fuzz(sys.argv[1], sys.argv[2:]))"
    sanitizers = {
        "LD_PRELOAD": str(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(BUILT / "lib"),
    }
    return subprocess.run(
        [sys.executable, "-c", code, target, *arguments],
        env={**os.environ, **sanitizers},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def report(target: str, output: str) -> str:
    """One line: how many inputs, how much they cover."""
    runs = re.findall(r"stat::number_of_executed_units: +(\d+)", output)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
    cov, features, corpus = covered[-1] if covered else ("?", "?", "?")
    return f"{target:14} {runs[-1] if runs else '?':>9} inputs  {cov:>5} edges  {features:>6} features  {corpus:>5} kept"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, help="in all")
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="target")
    parser.add_argument("--keep", action="store_true", help="minimise into tests/fuzz/corpus")
    arguments = parser.parse_args()
    build()
    parts = sum(SHARES.get(target, 1) for target in arguments.targets)
    for target in arguments.targets:
        corpus, found = HERE / "corpus" / target, BUILT / target
        crashes = BUILT / "crashes"
        for folder in (corpus, found, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        seconds = max(1, arguments.seconds * SHARES.get(target, 1) // parts)
        options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-timeout=10", "-rss_limit_mb=4096"]
        options += ["-max_len=2048" if target == "conversation" else "-max_len=600", f"-artifact_prefix={crashes}/{target}-"]
        if target != "conversation":
            options.append(f"-dict={HERE / 'http.dict'}")
        result = fuzz(target, [*options, str(found), str(corpus)])
        print(report(target, result.stdout), flush=True)
        if result.returncode:
            print("\n".join(result.stdout.splitlines()[-60:]))
            paths = re.findall(r"Test unit written to (\S+)", result.stdout)
            print(f"{target}: {paths[-1] if paths else 'no input was written'}")
            return 1
        if arguments.keep:
            smallest = BUILT / f"{target}-smallest"
            shutil.rmtree(smallest, ignore_errors=True)
            smallest.mkdir()
            fuzz(target, ["-merge=1", str(smallest), str(corpus), str(found)])
            for path in corpus.iterdir():
                path.unlink()
            for path in smallest.iterdir():
                shutil.copy(path, corpus / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
